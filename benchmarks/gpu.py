"""What a GPU gives, in one run of less than ten minutes; small on the CPU where there is none.

    python benchmarks/gpu.py [--json] [--root FOLDER] [--networks 1 8 32] [--epochs 12]

- `candidates`: images per second of several 16-channel convnets that are trained in one program, on
  random images of CIFAR's shape: in a stack (`planter.training.stacked`), and one after another.
- `to_accuracy`: seconds of training until ResNet-8 has 85 % of CIFAR-10's test images (from FOLDER,
  where torchvision keeps it), with the recipe `fast`. Without that data, and on the CPU: digits.
- `round`: a round of planting in three ways (see planting_round.py), seconds.

On the CPU the numbers of images and networks are small, one thread computes, and nothing is
claimed: the script is rehearsed, not the machine measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import claim, print_claims, surroundings
from planting_round import Round, random_split
from torch import Tensor, nn

from planter import Architecture, Recipe, build, load_data
from planter.backbones import full_widths
from planter.data import Split
from planter.machine.memory import keep_memory
from planter.training.batches import Batch
from planter.training.loop import Epoch, fit
from planter.training.losses import classification_loss
from planter.training.stacked.together import Together

AIM = 0.85


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return classification_loss(model(batch.images), batch.labels)


def seconds(device: str, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def candidates(split: Split, count: int, epochs: int, *, stacked: bool) -> float:
    """Images per second of `count` networks."""
    options = {"classes": 10, "image": [3, 32, 32]}
    architecture = Architecture("convnet", full_widths("convnet", 16), options, {})
    device = split.labels.device.type
    models = [build(architecture, seed=seed).to(device) for seed in range(count)]

    def train(epochs: int) -> None:
        together: Together[nn.Module] = Together(lambda passes, batches: stacked)
        settings = Recipe(epochs=epochs, batch=512, lr=0.01)
        for result in together.all(
            [
                partial(fit, model, loss, split, settings, seed=seed, together=together)
                for seed, model in enumerate(models)
            ]
        ):
            if isinstance(result, BaseException):
                raise result

    train(1)  # warms up
    return count * epochs * len(split) / seconds(device, lambda: train(epochs))


def to_accuracy(data: str, root: Path | None, device: str, epochs: int) -> dict[str, Any]:
    """When a training of ResNet-8 has come to 85 %: seconds of its epochs, and which it was."""
    loaded = load_data(data, root=root, validation=0.1)
    assert loaded.test is not None
    train, test = loaded.train.to(device), loaded.test.to(device)
    options = {"classes": 10, "image": list(loaded.image), "depth": 8}
    model = build(Architecture("resnet", {}, options, {}), seed=0).to(device)
    seen: list[Epoch] = []
    settings = Recipe(base="fast", epochs=epochs, validate_every=1)  # type: ignore[call-arg]
    fit(model, loss, train, settings, seed=0, validation=test, on_epoch=seen.append)
    spent = 0.0
    for epoch in seen:
        spent += epoch.seconds
        if (epoch.val_accuracy or 0.0) >= AIM:
            return {"data": data, "seconds": round(spent, 2), "epoch": epoch.epoch}
    best = max(epoch.val_accuracy or 0.0 for epoch in seen)
    return {"data": data, "seconds": None, "best": best, "trained_s": round(spent, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--root", type=Path, help="where cifar10 is; default: digits instead")
    parser.add_argument("--networks", type=int, nargs="+", default=None)
    parser.add_argument("--epochs", type=int, default=None, help="of ResNet-8")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = device == "cuda"
    if not gpu:
        print("no GPU: a rehearsal on one thread of the CPU", file=sys.stderr)
        keep_memory()
        torch.set_num_threads(1)
    split = random_split(20_000 if gpu else 128).to(device)
    rates: dict[str, dict[str, float]] = {}
    for count in given.networks or ([1, 8, 32] if gpu else [1, 2]):
        ways = {"stacked": True, "apart": False} if count > 1 else {"apart": False}
        rates[str(count)] = {
            name: round(candidates(split, count, 3 if gpu else 1, stacked=stacked))
            for name, stacked in ways.items()
        }
        print(f"{count} networks, images per second: {rates[str(count)]}", file=sys.stderr)
    data = "cifar10" if gpu and given.root is not None else "digits"
    reached = to_accuracy(data, given.root, device, given.epochs or (24 if gpu else 2))
    print(f"ResNet-8 to {AIM:.0%}: {reached}", file=sys.stderr)
    planted = Round(random_split(10_000 if gpu else 64), device)
    planted.warm_up()
    rounds = {
        "literal": 5 * planted.literal(1),
        "cached": planted.cached(),
        "planter": planted.planter(),
    }
    print(f"a round of planting, seconds: {rounds}", file=sys.stderr)
    claims = []
    if gpu:
        most = max(rate for ways in rates.values() for rate in ways.values())
        claims.append(claim("images per second over candidates", most, ">=", 1e6))
    report = {
        "claims": claims,
        **surroundings(),
        "device": torch.cuda.get_device_name() if gpu else "cpu, a rehearsal",
        "images_per_second": rates,
        "to_accuracy": reached,
        "round_s": {name: round(taken, 2) for name, taken in rounds.items()},
    }
    if given.json:
        print(json.dumps(report))
    else:
        print_claims(claims)


if __name__ == "__main__":
    main()
