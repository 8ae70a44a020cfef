"""Cifar-quick on the whole of CIFAR-10 in each training form, same budget, several seeds.

    python benchmarks/kflo_cifar10.py --root FOLDER --out studies/results/kflo_cifar10 [--json]

FOLDER holds torchvision's CIFAR-10. The recipe is the paper's (arXiv 2207.05532, sec. 4.1: SGD 0.1,
momentum 0.9, batch 128, cosine to zero, decay 1e-4, pad 4 and crop, flip, images in -1..1) with
fewer epochs. Every training appends one line to results.jsonl; a training that has its line is not
repeated, so the command may be stopped, and run in two processes with other --methods at a time.
`ema` is the average of the `plain` training's weights, taken along the way: it changes nothing in
that training, and is not trained a second time. `seconds` are wall-clock, of a machine that may do
other things meanwhile; what a step costs is measured by benchmarks/kernels.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from planter import Architecture, build, collapse_kernels_, expand_kernels_
from planter.backbones import with_data_options
from planter.data import InMemorySplit, Split, load_data
from planter.kernels.filters import is_conv_or_linear
from planter.kernels.forms import form_of
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.loop import Epoch, fit
from planter.training.losses import classification_loss
from planter.training.recipe import Recipe
from planter.training.scores import evaluate

# Names of planter.kernels.forms.form_of. KFLO takes every layer, as in the paper.
METHODS = ("plain", "do-conv", "acnet", "kflo:2x1", "kflo:2x4")
EMA_DECAY = 0.999
PUBLISHED = {  # after 150 epochs, mean of an unstated number of runs: Table 1 of the paper
    "plain": 86.26,
    "ema": 86.26,
    "do-conv": 86.85,
    "acnet": 86.83,
    "kflo:2x4": 87.41,
}


def load(root: Path) -> tuple[Split, Split]:
    """All 50,000 training images and the 10,000 test images, pixels scaled to -1..1."""
    data = load_data("cifar10", root=root)
    assert data.test is not None
    half = torch.full((3, 1, 1), 0.5)
    images = torch.cat([part.batch(slice(len(part))) for part in (data.train, data.validation)])
    labels = torch.cat([data.train.labels, data.validation.labels])
    test = data.test.taken_by(half, half)
    return InMemorySplit(images, labels, half, half), test


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return classification_loss(model(batch.images), batch.labels)


def train(method: str, seed: int, epochs: int, train_split: Split, test: Split) -> list[dict]:
    """One training; its line, and that of the averaged weights where the method is plain."""
    recipe = Recipe(
        epochs=epochs,
        weight_decay=1e-4,
        augment=Augment(crop=4, flip=True),
        ema=EMA_DECAY if method == "plain" else None,
    )
    network = build(with_data_options(Architecture("cifar_quick", {}), 10, (3, 32, 32)), seed)
    if (form := form_of(method)) is not None:
        where = is_conv_or_linear if method.startswith("kflo") else None
        expand_kernels_(network, form, where, seed=seed)
    losses, last = [], []

    def note(epoch: Epoch) -> None:
        losses.append(round(epoch.loss, 4))
        if epoch.epoch == epochs and method == "plain":
            last.append(copy.deepcopy(network))  # before fit puts the average in its place

    began = time.perf_counter()
    fit(network, loss, train_split, recipe, seed=seed, on_epoch=note)
    seconds = round(time.perf_counter() - began, 1)
    networks = {"plain": last[0], "ema": network} if method == "plain" else {method: network}
    lines = []
    for name, trained in networks.items():
        score = evaluate(collapse_kernels_(trained), test)
        lines.append(
            {
                "method": name,
                "seed": seed,
                "epochs": epochs,
                "test_accuracy": round(100 * score.accuracy, 2),
                "test_loss": round(score.loss, 4),
                "train_losses": losses,
                "seconds": seconds,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of torchvision's CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.jsonl"
    train_split, test = load(given.root)
    for seed in given.seeds:
        for method in given.methods:
            if (method, seed, given.epochs) not in {
                (row["method"], row["seed"], row["epochs"]) for row in read(file)
            }:
                lines = train(method, seed, given.epochs, train_split, test)
                with file.open("a") as out:  # one write: two processes may append
                    out.write("".join(json.dumps(line) + "\n" for line in lines))
    print(report(read(file), given.epochs, as_json=given.json))


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def report(rows: list[dict], epochs: int, *, as_json: bool) -> str:
    """Mean and spread (the standard deviation over seeds, n - 1) of each method."""
    methods = {}
    for method in ["plain", "ema", *METHODS[1:]]:
        found = [r for r in rows if r["method"] == method and r["epochs"] == epochs]
        if not found:
            continue
        values = [row["test_accuracy"] for row in found]
        methods[method] = {
            "test_accuracy": [row["test_accuracy"] for row in found],
            "mean": round(statistics.mean(values), 2),
            "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
            "seeds": [row["seed"] for row in found],
            "published_at_150_epochs": PUBLISHED.get(method),
        }
    if as_json:
        return json.dumps({"epochs": epochs, "methods": methods, "claims": []}, indent=2)
    lines = [f"test accuracy [%] after {epochs} epochs: mean +/- standard deviation over seeds"]
    for method, row in methods.items():
        lines.append(f"{method:10} {row['mean']:.2f} +/- {row['std']}  {row['test_accuracy']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
