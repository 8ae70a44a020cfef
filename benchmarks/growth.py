"""Does growing within one training pay, beside the same network trained from nothing?

    python benchmarks/growth.py --root FOLDER --out FILE.jsonl --json    # CIFAR-10
    python benchmarks/growth.py --out FILE.jsonl --json                  # digits
    python benchmarks/growth.py --quick --json                           # digits, a minute

FOLDER holds torchvision's CIFAR-10. A small network begins untrained and grows to several times its
multiply-adds in four steps within the first half of one training, as `evolve.grow_steps: 4` does
(the task of the search is called), by each rule of `evolve.grow_rules`. The network it has become
is then trained from nothing, under the same recipe, for as many epochs as take the same training
multiply-adds, what the rule measured among them; at 1, 2 and 4 times the epochs. Labels only, no
teacher. Rows that stand in FILE are not trained again, so the command may be stopped. The test set
is read when a training has ended. One thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from measuring import claim, print_claims, surroundings

from planter import Architecture, Recipe, build, evaluate, load, load_data
from planter.backbones import full_widths
from planter.data import Data
from planter.driver.tasks.context import Context
from planter.driver.tasks.run_job import run_job
from planter.driver.trials.jobs import Job, Outcome
from planter.evolution.edit import Edit
from planter.evolution.grow import Grow
from planter.evolution.table import to_data
from planter.evolution.whole import GoOn
from planter.study.schema import Study
from planter.training.augment import Augment

STEPS = 4
RULES = ("even", "gradient", "measured")


@dataclass(frozen=True)
class Task:
    """What grows, how far, and under which recipe; `epochs` is the budget of 1."""

    data: Mapping[str, Any]
    builder: str
    widths: int | Mapping[str, int]
    options: Mapping[str, Any]
    size: float
    recipe: Recipe
    epochs: int
    budgets: tuple[int, ...] = (1, 2, 4)

    def start(self, data: Data) -> Architecture:
        options = {**self.options, "classes": data.classes, "image": data.image}
        widths = self.widths if isinstance(self.widths, int) else dict(self.widths)
        return Architecture(self.builder, full_widths(self.builder, widths, options), options)


CIFAR10 = Task(
    {"name": "cifar10", "subset": 10_000, "validation": 0.2},
    "resnet",
    {"stem": 3, "group1": 3, "group2": 6, "group3": 12},
    {"depth": 8, "shortcut": "conv"},
    6.0,
    Recipe(
        batch=64, lr=0.1, nesterov=True, warmup=1.0, augment=Augment(crop=4, flip=True), epochs=1
    ),
    epochs=4,
)
DIGITS = Task(
    {"name": "digits", "validation": 0.2},
    "convnet",
    4,
    {},
    8.0,
    Recipe(batch=64, optimizer="adam", lr=0.005, weight_decay=0.0, warmup=1.0, epochs=1),
    epochs=8,
)
QUICK = replace(DIGITS, epochs=8, budgets=(1,))


class Bench:
    """Trains networks of one seed as a search's worker does."""

    def __init__(self, task: Task, seed: int, data: Data, run: Path) -> None:
        settings = {
            "name": "growth",
            "seed": seed,
            "evolve": {"kd": None},
            "baselines": [{"builder": task.builder}],
        }
        study = Study.model_validate(settings)
        self._context = Context(study, run, data, data.fingerprint(), run / "teachers")
        self._task, self._data, self._seed = task, data, seed
        self._jobs = 0

    def compared(self, rule: str, budget: int) -> dict[str, Any]:
        """A network that grew within its training, and the same one from nothing."""
        start = self._task.start(self._data)
        epochs = budget * self._task.epochs
        grown = self._trained(start, Grow(self._task.size, rule, STEPS), epochs)
        (point,) = grown["outcome"]["points"]
        after = Architecture.from_dict(point["architecture"])
        images = len(self._data.train)
        same = max(round(grown["train_macs"] / (3 * point["macs"] * images)), 1)
        scratch = self._trained(after, GoOn(), same)
        for way in (grown, scratch):
            del way["outcome"]
        return {
            "rule": rule,
            "budget": budget,
            "seed": self._seed,
            "start_widths": dict(start.widths),
            "widths": {n: w for n, w in after.widths.items() if w != start.widths.get(n)},
            "macs": point["macs"],
            "grown": grown,
            "scratch": scratch,
        }

    def _trained(self, begin: Architecture, edit: Edit, epochs: int) -> dict[str, Any]:
        """A fresh network after a training in which an edit takes place."""
        first, name = f"b{self._jobs}", f"e{self._jobs:04d}"
        self._jobs += 1
        network = build(begin, self._seed).eval()
        self._context.outcome(first, {"base": network}, begin, train_macs=0)
        recipe = self._task.recipe.model_copy(update={"epochs": epochs})
        params = {
            "parent": f"{first}/base",
            "edits": to_data([edit]),
            "recipe": recipe.model_dump(),
        }
        began = time.process_time()
        outcome: Outcome = run_job(self._context, Job(name, "evolve", params))
        if "error" in outcome:
            raise RuntimeError(outcome["error"])
        assert self._data.test is not None
        saved = load(self._context.run / "models" / name / "base")
        return {
            "epochs": epochs,
            "train_macs": outcome["train_macs"],
            "validation": outcome["points"][0]["accuracy"],
            "test": evaluate(saved, self._data.test).accuracy,
            "cpu_s": round(time.process_time() - began, 1),
            "outcome": outcome,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of torchvision's CIFAR-10; else digits")
    parser.add_argument("--out", type=Path, help="file of finished comparisons")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--quick", action="store_true", help="digits, one budget, seed 0")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, seeds = (CIFAR10 if given.root else DIGITS), given.seeds
    if given.quick:
        task, seeds = QUICK, [0]
    data = load_data(**task.data, root=given.root, seed=0)
    rows = read(given.out)
    done = {(row["rule"], row["budget"], row["seed"]) for row in rows}
    for budget in task.budgets:
        for rule in given.rules:
            for seed in seeds:
                if (rule, budget, seed) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    row = Bench(task, seed, data, Path(folder)).compared(rule, budget)
                rows.append(row)
                if given.out is not None:
                    with given.out.open("a") as out:
                        out.write(json.dumps(row) + "\n")
    claims = claims_of(rows)
    if given.json:
        told = {
            "data": dict(task.data),
            "size": task.size,
            "steps": STEPS,
            "recipe": task.recipe.model_dump(exclude={"epochs"}),
        }
        print(json.dumps({"claims": claims, "rows": rows, **told, **surroundings()}, indent=2))
        return
    print(table(rows))
    print_claims(claims)


def read(file: Path | None) -> list[dict[str, Any]]:
    if file is None or not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def claims_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, and the worst of what was to be equal."""
    claims = []
    for rule, budget in sorted({(row["rule"], row["budget"]) for row in rows}):
        alike = [row for row in rows if (row["rule"], row["budget"]) == (rule, budget)]
        gains = [100 * (row["grown"]["test"] - row["scratch"]["test"]) for row in alike]
        name = f"{rule}, {budget} x: grown - from nothing, test points, mean of {len(alike)}"
        claims.append(claim(name, mean(gains), ">=", 0.0))
    uneven = [abs(row["scratch"]["train_macs"] / row["grown"]["train_macs"] - 1) for row in rows]
    claims.append(claim("multiply-adds from nothing / grown: off by", max(uneven), "<=", 0.1))
    return claims


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["grown, then from nothing: epochs, training multiply-adds, test accuracy [%]"]
    for row in rows:
        ways = "   ".join(
            f"{way['epochs']:10d} {way['train_macs']:8.2e} {100 * way['test']:6.2f}"
            for way in (row["grown"], row["scratch"])
        )
        lines.append(f"{row['rule']:9} {row['budget']:6} {row['seed']:4} {row['macs']:9,} {ways}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
