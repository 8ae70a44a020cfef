"""Steps of several small networks of one shape: one after another, and as one program.

    python benchmarks/stacked.py [--json] [--threads 1] [--networks 8] [--rounds 9] [--only digits]

Each network has its own weights, batch and optimiser, as trainings of different seeds have. In each
round every way takes one step (forward, loss, backward, optimiser) of all networks, in an order
that changes by round; figures are medians over rounds, and ratios medians of the rounds' ratios,
so that a machine that slows down for a while slows all sides. `planter` is
`planter.training.stacked`; the other ways were tried beside it:

- `vmap`: torch.func.stack_module_state, functional_call and vmap, one optimiser for all;
- `grouped`, `grouped channels last`: convolutions in groups, written by hand, one optimiser;
- `dense`: block-diagonal convolutions without groups, channels last;
- `same batch`: `grouped channels last`, of networks that all see one batch: a dense first layer;
- `bfloat16`: `planter` under autocast.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import claim, print_claims, surroundings
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional

from planter import Architecture, Recipe, build
from planter.data import InMemorySplit
from planter.machine.memory import keep_memory
from planter.training.batches import Batch
from planter.training.losses import classification_loss
from planter.training.recipe import make_optimizer
from planter.training.stacked.epoch import gradients
from planter.training.stacked.network import stack
from planter.training.stacked.passes import Pass

RECIPE = Recipe(lr=0.01, weight_decay=0.0)
# Image, batch, width.
CASES = {
    "digits": ((1, 8, 8), 32, 8),
    "digits, batch 128": ((1, 8, 8), 128, 8),
    "cifar, batch 32": ((3, 32, 32), 32, 8),
    "cifar, batch 128": ((3, 32, 32), 128, 8),
}
Step = Callable[[], None]
CHANNELS_LAST = torch.channels_last


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return classification_loss(model(batch.images), batch.labels)


def networks(count: int, image: tuple[int, int, int], width: int) -> list[nn.Module]:
    widths = {f"conv{i}": width for i in range(1, 6)}
    architecture = Architecture("convnet", widths, {"image": list(image), "classes": 10}, {})
    return [build(architecture, seed=seed).to(memory_format=CHANNELS_LAST) for seed in range(count)]


def passes_of(models: list[nn.Module]) -> list[Pass]:
    nothing = InMemorySplit(*[torch.zeros(1)] * 4)
    return [
        Pass(m, loss, nothing, RECIPE, make_optimizer(m, RECIPE), 0, 0, None, None, float)
        for m in models
    ]


def planter_step(
    models: list[nn.Module], batches: list[Batch], *, stacked: bool, half: bool = False
) -> Step:
    passes = passes_of(models)
    whole = stack(models) if stacked else None

    def step() -> None:
        for one in passes:
            one.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            gradients(passes, whole, batches)
        for one in passes:
            one.optimizer.step()

    return step


def vmap_step(models: list[nn.Module], batches: list[Batch]) -> Step:
    parameters, _ = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.01, momentum=0.9, fused=True)
    images = torch.stack([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])

    def one(parameter: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(base, parameter, (x,))

    def step() -> None:
        optimizer.zero_grad()
        logits = torch.vmap(one)(parameters, images)
        total = len(models) * functional.cross_entropy(logits.flatten(0, 1), labels)
        total.backward()
        optimizer.step()

    return step


def by_hand_step(
    models: list[nn.Module],
    batches: list[Batch],
    layout: torch.memory_format,
    *,
    dense: bool = False,
    same: bool = False,
) -> Step:
    """Five convolutions, ReLU after the pooling, two products; weights stacked once."""
    count = len(models)
    tensors, _ = stack_module_state(models)
    optimizer = torch.optim.SGD(list(tensors.values()), lr=0.01, momentum=0.9, fused=True)
    labels = torch.cat([batch.labels for batch in batches])
    at = torch.arange(count)[:, None]

    def convolution(x: Tensor, name: str) -> Tensor:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"].flatten()
        _, out, own = weight.shape[:3]
        if dense:
            whole = weight.new_zeros(count, out, count, own, *weight.shape[3:])
            whole = whole.index_put((at, torch.arange(out), at), weight)
            kernel = whole.reshape(count * out, count * own, *weight.shape[3:])
            return functional.conv2d(x, kernel.contiguous(memory_format=layout), bias, padding=1)
        kernel = weight.flatten(0, 1).contiguous(memory_format=layout)
        groups = 1 if x.shape[1] == own else count
        return functional.conv2d(x, kernel, bias, padding=1, groups=groups)

    def step() -> None:
        optimizer.zero_grad()
        images = [batch.images for batch in batches]
        x = images[0] if same else torch.cat(images, 1).contiguous(memory_format=layout)
        for i in range(1, 6):
            x = convolution(x, f"stages.conv{i}.conv")
            x = (functional.max_pool2d(x, 2) if i in (1, 2, 5) else x).relu()
        rows = x.flatten(1).unflatten(1, (count, -1)).transpose(0, 1)
        for name in ("head.fc1", "head.fc2"):
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            rows = torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))
            rows = rows.relu() if name == "head.fc1" else rows
        (count * functional.cross_entropy(rows.flatten(0, 1), labels)).backward()
        optimizer.step()

    return step


def measured(
    image: tuple[int, int, int], batch: int, width: int, count: int, rounds: int, only: list[str]
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            torch.randn(batch, *image, generator=generator).contiguous(memory_format=CHANNELS_LAST),
            torch.randint(10, (batch,), generator=generator),
            None,
        )
        for _ in range(count)
    ]

    def own() -> list[nn.Module]:
        return networks(count, image, width)

    plain = torch.contiguous_format
    makers: dict[str, Callable[[], Step]] = {
        "apart": lambda: planter_step(own(), batches, stacked=False),
        "planter": lambda: planter_step(own(), batches, stacked=True),
        "vmap": lambda: vmap_step(own(), batches),
        "grouped": lambda: by_hand_step(own(), batches, plain),
        "grouped channels last": lambda: by_hand_step(own(), batches, CHANNELS_LAST),
        "dense": lambda: by_hand_step(own(), batches, CHANNELS_LAST, dense=True),
        "same batch": lambda: by_hand_step(own(), batches, CHANNELS_LAST, same=True),
        "bfloat16": lambda: planter_step(own(), batches, stacked=True, half=True),
    }
    ways = {name: make() for name, make in makers.items() if not only or name in ["apart", *only]}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        order = list(ways)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            began = time.perf_counter()
            ways[name]()
            if number:
                taken[name].append(1000 * (time.perf_counter() - began))
    gains = {
        name: statistics.median(a / b for a, b in zip(taken["apart"], times, strict=True))
        for name, times in taken.items()
    }
    return {
        "image": list(image),
        "batch": batch,
        "width": width,
        "step_ms": {name: round(statistics.median(times), 2) for name, times in taken.items()},
        "times_as_fast": {name: round(gain, 3) for name, gain in gains.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--ways", nargs="*", default=[], help="beside apart; default: all")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_memory()
    found = {
        name: measured(*CASES[name], given.networks, given.rounds, given.ways)
        for name in given.only
    }
    claims = [
        claim(f"{name}: times as fast as one after another", gain, ">=", 2.0)
        for name in ("digits", "cifar, batch 128")
        if name in found and (gain := found[name]["times_as_fast"].get("planter"))
    ]
    if given.json:
        report = {"claims": claims, **surroundings(), "threads": given.threads, "cases": found}
        print(json.dumps(report))
        return
    for name, case in found.items():
        print(name)
        for way, ms in case["step_ms"].items():
            print(f"  {way:22} {ms:8.1f} ms  x {case['times_as_fast'][way]:.2f}")
    print_claims(claims)


if __name__ == "__main__":
    main()
