"""The named recipes beside each other on CIFAR-10, at equal training multiply-adds.

    python benchmarks/recipes.py --root FOLDER --out FILE.jsonl --json

FOLDER holds torchvision's CIFAR-10. A plain network on 8,000 training images (2,000 validate,
stratified, drawn from seed 0), seeds 0 to 2. Of one network every image of every recipe costs the
same, so that equal multiply-adds are equal epochs: each recipe is trained for as many as `fast`
asks for, and as `strong` does, its schedule stretched alike. The claims: at its own length, `fast`
and `strong` are the best of the three, by validation accuracy, mean over seeds; the test set is
read when a training has ended and is told beside it.

A training that stands in FILE is not repeated, so the command may be stopped, and run in several
processes with other --seeds or --epochs at a time. `--only` takes names, or keys of a recipe as
JSON, to try presets: `--only '{"base": "fast", "lr": 0.1}'`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from measuring import claim, print_claims, surroundings

from planter import Architecture, Recipe, build, evaluate, fit, load_data
from planter.backbones import full_widths, with_data_options
from planter.costs.macs import cost
from planter.data import Data
from planter.networks.pipelines import Pipelines
from planter.training.class_weights import entropy_settings
from planter.training.losses import classification_loss
from planter.training.named import NAMED

IMAGES = 10_000
_NARROW = {"stem": 8, "group1": 8, "group2": 16, "group3": 32}
NETWORKS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "convnet16": ("convnet", 16, {}),
    "resnet8": ("resnet", None, {"depth": 8, "shortcut": "conv"}),
    "resnet8_narrow": ("resnet", _NARROW, {"depth": 8, "shortcut": "conv"}),
}
"""Without norms, with them, and that of half the widths."""


def architecture(name: str) -> Architecture:
    builder, width, options = NETWORKS[name]
    made = Architecture(builder, full_widths(builder, width, options), options)
    return with_data_options(made, 10, (3, 32, 32))


def train(network: str, keys: dict[str, Any], epochs: int, seed: int, data: Data) -> dict[str, Any]:
    """One training: accuracies on validation and test images, what it took."""
    recipe = Recipe.model_validate(keys | {"epochs": epochs})
    entropy = entropy_settings(recipe, data.train.labels, data.classes)
    made = architecture(network)
    model = Pipelines(build(made, seed), {}).detach("base")
    began = time.perf_counter()
    fit(
        model,
        lambda net, batch: classification_loss(net(batch.images), batch.labels, **entropy),
        data.train,
        recipe,
        seed=seed,
    )
    seconds = time.perf_counter() - began
    assert data.test is not None
    score = evaluate(model, data.validation)
    return {
        "validation": round(100 * score.accuracy, 2),
        "loss": round(score.loss, 4),
        "test": round(100 * evaluate(model, data.test).accuracy, 2),
        "train_macs": 3 * cost(made).macs * len(data.train) * epochs,
        "seconds": round(seconds, 1),
    }


def recipes(only: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in only or NAMED:
        yield name, json.loads(name) if name.startswith("{") else {"base": name}


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


def report(lines: Sequence[dict[str, Any]], networks: Sequence[str]) -> dict[str, Any]:
    """Mean and deviation over seeds of each recipe at each length, and the claims of these."""
    medians: dict[str, Any] = {}
    claims = []
    for network in networks:
        for best in ("fast", "strong"):
            epochs = NAMED[best]["epochs"]
            found = {}
            for name in NAMED:
                alike = (network, name, epochs)
                mine = [x for x in lines if (x["network"], x["recipe"], x["epochs"]) == alike]
                if mine:
                    key = f"{network} {name} {epochs} epochs"
                    found[name] = mean(x["validation"] for x in mine)
                    medians[key] = {"seeds": len(mine), "train_macs": mine[0]["train_macs"]} | {
                        part: [
                            round(mean(x[part] for x in mine), 2),
                            round(stdev([x[part] for x in mine]), 2) if len(mine) > 1 else None,
                        ]
                        for part in ("validation", "test", "seconds")
                    }
            if len(found) == len(NAMED):
                others = max(score for name, score in found.items() if name != best)
                told = f"{network}, {epochs} epochs: points of {best} above the best other recipe"
                claims.append(claim(told, found[best] - others, ">=", 0.0))
    return {"claims": claims, "means": medians, **surroundings()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("recipes.jsonl"))
    parser.add_argument("--networks", nargs="+", default=["convnet16"], choices=list(NETWORKS))
    parser.add_argument("--epochs", nargs="+", type=int, help="default: those of fast and strong")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("cifar10", root=given.root, subset=IMAGES, validation=0.2, seed=0)
    lengths = given.epochs or [NAMED["fast"]["epochs"], NAMED["strong"]["epochs"]]
    for seed in given.seeds:
        for network in given.networks:
            for epochs in lengths:
                for name, keys in recipes(given.only):
                    of = {"network": network, "recipe": name, "epochs": epochs, "seed": seed}
                    if any(of.items() <= line.items() for line in lines_of(given.out)):
                        continue
                    line = of | train(network, keys, epochs, seed, data)
                    with given.out.open("a") as out:
                        out.write(json.dumps(line) + "\n")
                    if not given.json:
                        print(line, flush=True)
    found = report(lines_of(given.out), given.networks)
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        print_claims(found["claims"])


if __name__ == "__main__":
    main()
