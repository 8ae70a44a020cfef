"""Pipelines on CIFAR-10 against the networks they replace, same budget, several seeds.

    python benchmarks/pipelines_cifar10.py --root FOLDER --out studies/results/pipelines_cifar10

FOLDER holds torchvision's CIFAR-10. 20,000 of its training images (stratified, drawn from seed 0),
10 epochs, nothing is selected; the test set is read when a training has ended: for the networks as
trained, and once more with norm statistics of plain images, as planter once scored them.

    vgg16     a quarter of its width: cut2 and cut7 trained jointly (CNSN), and each network alone
    resnet14  alone; deeply supervised by its two branches (DS); with knowledge synergy (DKS)
    toy       jointly with an image head in front (Hu); without head; with head as one network

Every training appends one line to results.jsonl; a training that has its line is not repeated, so
the command may be stopped, and run in two processes with other --only or --seeds at a time.
`seconds` are wall-clock, of a machine that may do other things meanwhile; what a step costs is
measured by benchmarks/pipelines.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planter import Architecture, Recipe, build, evaluate, fit, load_data
from planter.backbones import full_widths, with_data_options
from planter.data import Data
from planter.networks.assembly import build_network
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.loop import Epoch
from planter.training.losses import classification_loss, multi_pipeline_loss
from planter.training.scores import recalibrate_batchnorm_

IMAGES, HELD_BACK = 20_000, 5_000


@dataclass(frozen=True)
class Run:
    """One training: all pipelines jointly, or the one named `alone` as a network of its own."""

    alone: str | None = None
    synergy: str | None = None


@dataclass(frozen=True)
class Experiment:
    builder: str
    recipe: Recipe
    runs: Mapping[str, Run]
    pipelines: Mapping[str, dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    width: float = 1.0

    def architecture(self) -> Architecture:
        full = full_widths(self.builder, None, self.options)
        widths = {name: int(width * self.width) for name, width in full.items()}
        plain = Architecture(self.builder, widths, self.options, self.pipelines)
        return with_data_options(plain, 10, (3, 32, 32))


CROPS = Augment(crop=4, flip=True)
EXPERIMENTS = {
    "vgg16": Experiment(
        "vgg16",
        # CNSN's momentum and decay; its 300 epochs of batch 32 would take days here.
        Recipe(epochs=10, batch=64, lr=0.05, weight_decay=6e-4, warmup=1.0, augment=CROPS),
        {"joint": Run(), "base": Run("base"), "cut2": Run("cut2"), "cut7": Run("cut7")},
        {"cut2": {}, "cut7": {}},
        width=0.25,
    ),
    "resnet14": Experiment(
        "resnet",
        # DKS's recipe for residual networks; the rate falls along a cosine instead of steps.
        Recipe(epochs=10, batch=64, lr=0.1, weight_decay=1e-4, augment=CROPS),
        {"plain": Run("base"), "DS": Run(), "DKS": Run(synergy="bidirectional")},
        {"branch1": {"after": "group1_2"}, "branch2": {"after": "group2_2"}},
        {"depth": 14},
    ),
    "toy": Experiment(
        "toy",
        # The paper names its rate alone (and that it falls); no augmentation.
        Recipe(epochs=10, batch=64, optimizer="adam", lr=1e-3, weight_decay=0.0),
        {"joint": Run(), "base": Run("base"), "head-fsrcnn": Run("head-fsrcnn")},
        {"head-fsrcnn": {"head": "fsrcnn"}},
    ),
}


def train(experiment: Experiment, run: Run, seed: int, data: Data) -> dict[str, Any]:
    """One training; losses by epoch and the test accuracy of every pipeline it yields."""
    architecture = experiment.architecture()
    losses = []

    def note(epoch: Epoch) -> None:
        losses.append(round(epoch.loss, 4))

    began = time.perf_counter()
    if run.alone is not None:
        network = build_network(architecture, run.alone, seed=seed)
        fit(network, _alone, data.train, experiment.recipe, seed=seed, on_epoch=note)
        ways = {run.alone: network}
    else:
        joint = build(architecture, seed)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            logits = model(batch.images)
            return multi_pipeline_loss(logits, batch.labels, exits=joint.exits, synergy=run.synergy)

        fit(joint, loss, data.train, experiment.recipe, seed=seed, on_epoch=note)
        ways = {name: joint.detach(name) for name in joint.names}
    seconds = round(time.perf_counter() - began, 1)
    assert data.test is not None
    scores = {name: evaluate(way, data.test) for name, way in ways.items()}
    plain_images = experiment.recipe.model_copy(update={"augment": Augment()})
    for way in ways.values():
        recalibrate_batchnorm_(way, data.train, plain_images, seed=seed)
    recalibrated = {name: evaluate(way, data.test) for name, way in ways.items()}
    return {
        "test_accuracy": {name: round(100 * s.accuracy, 2) for name, s in scores.items()},
        "after_plain_recalibration": {
            name: round(100 * s.accuracy, 2) for name, s in recalibrated.items()
        },
        "test_loss": {name: round(s.loss, 4) for name, s in scores.items()},
        "train_losses": losses,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _alone(model: nn.Module, batch: Batch) -> Tensor:
    return classification_loss(model(batch.images), batch.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of torchvision's CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl")
    every = [f"{name}/{run}" for name, experiment in EXPERIMENTS.items() for run in experiment.runs]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.jsonl"
    data = load_data("cifar10", root=given.root, subset=IMAGES + HELD_BACK, validation=HELD_BACK)
    for seed in given.seeds:
        for name in given.only:
            backbone, run = name.split("/")
            if any((row["run"], row["seed"]) == (name, seed) for row in read(file)):
                continue
            experiment = EXPERIMENTS[backbone]
            line = {"run": name, "seed": seed, "epochs": experiment.recipe.epochs}
            line |= train(experiment, experiment.runs[run], seed, data)
            with file.open("a") as out:  # one write: two processes may append
                out.write(json.dumps(line) + "\n")
    print(report(read(file), as_json=given.json))


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def report(rows: list[dict[str, Any]], *, as_json: bool) -> str:
    """Mean and spread (the standard deviation over seeds, n - 1) of each pipeline of each run."""
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        for pipeline, accuracy in row["test_accuracy"].items():
            entry = found.setdefault(f"{row['run']} {pipeline}", {"test_accuracy": [], "seeds": []})
            entry["test_accuracy"].append(accuracy)
            entry["seeds"].append(row["seed"])
    for entry in found.values():
        values = entry["test_accuracy"]
        entry["mean"] = round(statistics.mean(values), 2)
        entry["std"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
    if as_json:
        return json.dumps({"runs": found, "claims": []}, indent=2)
    lines = ["test accuracy [%]: mean +/- standard deviation over seeds"]
    for name, entry in found.items():
        lines.append(f"{name:28} {entry['mean']:.2f} +/- {entry['std']}  {entry['test_accuracy']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
