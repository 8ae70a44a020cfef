"""What bfloat16 costs in accuracy and saves in time, on CIFAR-10.

    python benchmarks/precision.py --root FOLDER --json [--epochs 10]

FOLDER holds torchvision's CIFAR-10. Plain networks on 8,000 training images, scored on the 2,000
that validate (stratified, drawn from seed 0) and, at the end, on the test set; crop of 4 and
mirror, batch 64, SGD with Nesterov momentum, rate 0.1 with norms and 0.05 without. Each network is
trained in float32 and in bfloat16 from the seeds 0 to 2, one after the other for each seed. The
claims: the mean accuracy on validation images in bfloat16 lies within two standard errors of
float32's (of the difference of two means of three), and a training in it takes less time. One
thread. `auto` is told beside: what planter takes for the network on this machine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from measuring import claim, print_claims, surroundings
from recipes import IMAGES, NETWORKS, architecture

from planter import Recipe, build, evaluate, fit, load_data
from planter.data import Data
from planter.machine.memory import keep_memory
from planter.networks.pipelines import Pipelines
from planter.training.batches import Batch, batch_order, make_batch
from planter.training.losses import classification_loss
from planter.training.running.fastest import chosen

PRECISIONS = ("float32", "bfloat16")
RATES = {"convnet16": 0.05, "resnet8": 0.1, "resnet8_narrow": 0.1}


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return classification_loss(model(batch.images), batch.labels)


def recipe_of(network: str, precision: str, epochs: int) -> Recipe:
    return Recipe.model_validate(
        {
            "epochs": epochs,
            "batch": 64,
            "lr": RATES[network],
            "nesterov": True,
            "augment": {"crop": 4, "flip": True},
            "precision": precision,
        }
    )


def train(network: str, recipe: Recipe, seed: int, data: Data) -> dict[str, float]:
    model = Pipelines(build(architecture(network), seed), {}).detach("base")
    began = time.process_time()
    fit(model, loss_of, data.train, recipe, seed=seed)
    seconds = time.process_time() - began
    assert data.test is not None
    return {
        "validation": 100 * evaluate(model, data.validation).accuracy,
        "test": 100 * evaluate(model, data.test).accuracy,
        "seconds": seconds,
    }


def chosen_by_auto(network: str, epochs: int, data: Data) -> str:
    """What `precision: auto` comes to for a network on this machine."""
    recipe = recipe_of(network, "auto", epochs)
    steps, generator = batch_order(data.train, recipe, 0, 0)
    batch = make_batch(data.train, steps[0], recipe.augment, generator, None)
    model = Pipelines(build(architecture(network), 0), {}).detach("base")
    return chosen(model, loss_of, batch, recipe, steps=len(steps) * epochs).precision


def report(found: dict[str, dict[str, list[dict[str, float]]]]) -> list[dict[str, Any]]:
    claims = []
    for network, of in found.items():
        single, half = ([run["validation"] for run in of[precision]] for precision in PRECISIONS)
        error = math.sqrt((stdev(single) ** 2 + stdev(half) ** 2) / len(single))
        told = f"{network}: points between the means, of two standard errors"
        claims.append(claim(told, abs(mean(half) - mean(single)) / (2 * error), "<=", 1.0))
        ratio = median(
            one["seconds"] / other["seconds"]
            for one, other in zip(of["float32"], of["bfloat16"], strict=True)
        )
        claims.append(claim(f"{network}: seconds, float32 / bfloat16", ratio, ">=", 1.0))
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    data = load_data("cifar10", root=given.root, subset=IMAGES, validation=0.2, seed=0)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    auto: dict[str, str] = {}
    for network in given.networks:
        found[network] = {precision: [] for precision in PRECISIONS}
        auto[network] = chosen_by_auto(network, given.epochs, data)
        for seed in given.seeds:
            for precision in PRECISIONS:
                run = train(network, recipe_of(network, precision, given.epochs), seed, data)
                found[network][precision].append(run)
                print(network, precision, seed, run, file=sys.stderr, flush=True)
    claims = report(found)
    if given.json:
        told = {"claims": claims, "trainings": found, "auto": auto, **surroundings()}
        print(json.dumps(told, indent=1))
    else:
        print_claims(claims)


if __name__ == "__main__":
    main()
