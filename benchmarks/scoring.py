"""What planter says of a network with norms, against the network as its training left it.

    python benchmarks/scoring.py --root FOLDER --out FILE.jsonl --json

FOLDER holds torchvision's CIFAR-10. ResNet-8 with 1x1 shortcuts on 8,000 training images (2,000
validate, stratified, drawn from seed 0), 40 epochs, SGD with Nesterov's momentum, crops and mirror.
A worker of the search trains, scores and saves, seeds 0 to 2:

    plain  the network alone
    ema    the moving average of its weights
    base, cut2  the network and a sub-model that enters before group2, trained jointly

Each is scored three ways: `planter`, the accuracy told and that of the saved file; `trained`, as it
stood after the last step, by plain torch (the average has no such state); `plain images`, with
statistics recomputed over images that are not augmented, as planter once did. The plain network and
the average are one training, as `fit` promises: for `plain` the worker gets the weights of its last
step, so that what is tested is what comes behind `fit`; `base` and `cut2` go through all of it.

A training that stands in FILE is not repeated, so the command may be stopped, and run in several
processes with other --only or --seeds at a time. The test set is read when a training has ended.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measuring import claim, print_claims, surroundings
from torch import Tensor, nn

from planter import Architecture, Candidate, Recipe, evaluate, load, load_data
from planter.data import Data, Split
from planter.driver.tasks.context import Context
from planter.driver.tasks.run_job import run_job
from planter.driver.trials.jobs import Job
from planter.driver.trials.networks import candidate_architecture
from planter.networks.pipelines import Pipelines
from planter.study.schema import Study
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.loop import Epoch
from planter.training.scores import recalibrate_batchnorm_

IMAGES, EMA = 10_000, 0.99
RESNET8 = {"builder": "resnet", "options": {"depth": 8, "shortcut": "conv"}}
RECIPE = Recipe(
    epochs=40, batch=64, lr=0.1, nesterov=True, warmup=1.0, augment=Augment(crop=4, flip=True)
)


def space(trial: Any) -> Candidate:
    """The one network of the joint training."""
    widths = {"stem": 16, "group1": 16, "group2": 32, "group3": 64}
    return Candidate(
        Architecture("resnet", widths, RESNET8["options"], {"cut2": {"before": "group2"}})
    )


@dataclass
class WatchedContext(Context):
    """A context that keeps how its last training left the network, and may be given the end of a
    training in its place."""

    last: nn.Module | None = None
    given: dict[str, Tensor] | None = None
    _network: list[nn.Module] = field(default_factory=list)

    def fit(
        self,
        trial: str,
        network: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        recipe: Recipe,
        **how: Any,
    ) -> int:
        if self.given is not None:
            network.load_state_dict(self.given)
            self.last = copy.deepcopy(network)
            return recipe.epochs
        self._network = [network]
        return super().fit(trial, network, loss, recipe, **how)

    def metrics(self, trial: str) -> Callable[[Epoch], None]:
        tell = super().metrics(trial)

        def note(epoch: Epoch) -> None:
            tell(epoch)
            if epoch.epoch == RECIPE.epochs:  # before an average takes the weights' place
                self.last = copy.deepcopy(self._network[0])

        return note


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of a split that a network classifies correctly, in plain torch."""
    correct = 0
    network.eval()
    with torch.no_grad():
        for at in range(0, len(split), 500):
            pixels = split.images[at : at + 500].float() / 255
            logits = network((pixels - split.mean) / split.std)
            correct += int((logits.argmax(1) == split.labels[at : at + 500]).sum())
    return round(correct / len(split), 4)


def both(network: nn.Module, data: Data) -> dict[str, float]:
    assert data.test is not None
    return {
        "validation": accuracy(network, data.validation),
        "test": accuracy(network, data.test),
    }


def train_alone(seed: int, data: Data, root: Path) -> dict[str, Any]:
    """The network alone and the average along its training: accuracies, by point."""
    averaged = watched(root, "ema", seed, data, EMA)
    job = Job("b-resnet8", "baseline", {"index": 0})
    points = outcome(averaged, job, {"base": "ema"}, data)
    assert averaged.last is not None
    points["ema"]["trained"] = None  # it has no training of its own
    # What the worker keeps of it below is the end of the same training without an average.
    plain = watched(root, "plain", seed, data)
    plain.given = averaged.last.state_dict()
    return points | outcome(plain, job, {"base": "plain"}, data)


def train_jointly(seed: int, data: Data, root: Path) -> dict[str, Any]:
    """The network and its sub-model."""
    joint = watched(root, "joint", seed, data)
    network = candidate_architecture(space(None), joint.study, data).key()
    params = {"trial": {}, "network": network, "kernels": "plain"}
    job = Job("s0000", "sample", params)
    return outcome(joint, job, {"base": "base", "cut2": "cut2"}, data)


TRAININGS = {"alone": train_alone, "joint": train_jointly}


def watched(
    root: Path, name: str, seed: int, data: Data, ema: float | None = None
) -> WatchedContext:
    settings = {
        "name": name,
        "seed": seed,
        "recipe": {**RECIPE.model_dump(), "ema": ema},
        "baselines": [RESNET8],
        "sample": {"space": f"{__file__}:space"},
    }
    return WatchedContext(Study.model_validate(settings), root / name, data, "", root / "teachers")


def outcome(
    context: WatchedContext, job: Job, names: dict[str, str], data: Data
) -> dict[str, dict[str, Any]]:
    """Trains, and scores each pipeline the three ways; raises RuntimeError where the saved file has
    not the accuracy that was told."""
    found = run_job(context, job)
    if "error" in found:
        raise RuntimeError(found["error"])
    told = {point["pipeline"]: point["accuracy"] for point in found["points"]}
    trained = context.last
    assert trained is not None
    lines: dict[str, dict[str, Any]] = {}
    for pipeline, name in names.items():
        saved = load(context.run / "models" / job.id / pipeline)
        way = trained.detach(pipeline) if isinstance(trained, Pipelines) else trained
        assert data.test is not None
        scored = {"validation": told[pipeline], "test": evaluate(saved, data.test).accuracy}
        if accuracy(saved, data.validation) != round(told[pipeline], 4):
            raise RuntimeError(f"{name}: told {told[pipeline]}, the saved file has another")
        as_trained = both(way, data)
        plain_images = RECIPE.model_copy(update={"augment": Augment()})
        recalibrate_batchnorm_(saved, data.train, plain_images, seed=0)
        lines[name] = {
            "planter": scored,
            "trained": as_trained,
            "plain images": both(saved, data),
        }
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of torchvision's CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="file of finished trainings")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = load_data("cifar10", root=given.root, subset=IMAGES, validation=0.2, seed=0)
    for training in given.only:
        for seed in given.seeds:
            if any((row["training"], row["seed"]) == (training, seed) for row in read(given.out)):
                continue
            with tempfile.TemporaryDirectory() as folder:
                points = TRAININGS[training](seed, data, Path(folder))
            line = {"training": training, "seed": seed, "points": points, **surroundings()}
            with given.out.open("a") as out:  # one write: two processes may append
                out.write(json.dumps(line) + "\n")
    rows = sorted(read(given.out), key=lambda row: (row["seed"], row["training"]))
    claims = claims_of(rows)
    if given.json:
        print(json.dumps({"claims": claims, "runs": rows, **surroundings()}, indent=2))
        return
    print(table(rows))
    print_claims(claims)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def claims_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst seed and split of each claim, in points."""

    def worst(name: str, one: str, other: str) -> list[float]:
        return [
            100 * (row["points"][name][one][split] - row["points"][name][other][split])
            for row in rows
            if name in row["points"]
            for split in ("validation", "test")
        ]

    claims = []
    for name in ("plain", "base", "cut2"):
        if gaps := worst(name, "planter", "trained"):
            value = max(map(abs, gaps))
            claims.append(claim(f"{name}: |scored - as trained|, points", value, "<=", 0.3))
    for name in ("cut2", "ema"):
        if gaps := worst(name, "planter", "plain images"):
            value = min(gaps)
            claims.append(claim(f"{name}: scored - plain recalibration, points", value, ">=", 0.0))
    return claims


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'seed':4} {'point':6} {'planter':>15} {'as trained':>15} {'plain images':>15}"]
    for row in rows:
        for name, ways in row["points"].items():
            cells = [
                f"{100 * way['validation']:6.2f} / {100 * way['test']:5.2f}" if way else "-"
                for way in (ways["planter"], ways["trained"], ways["plain images"])
            ]
            lines.append(f"{row['seed']:4} {name:6} " + " ".join(f"{cell:>15}" for cell in cells))
    return "\n".join(["accuracy [%]: validation / test", *lines])


if __name__ == "__main__":
    main()
