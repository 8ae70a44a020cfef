"""Time of one joint training step against the sum of the steps of its networks trained apart.

    python benchmarks/pipelines.py [--json] [--threads 2] [--only vgg16 wrn] [--default-memory]

VGG16 with CNSN's cut2 and cut7, and WRN-16-2 with the two branches of DKS; 128 images, the loss and
the optimiser of `planter.fit`. One process; in each round the joint network and every network
alone take a step on the same images, in an order that changes by round. A ratio is the median over
rounds of joint / sum of the others within the round, so that a machine that slows down for a while
slows both sides. `apart` is the joint step as it would be done plainly: every pipeline goes through
its stages alone, so that nothing but the weights is shared. Memory stays with the process (glibc
would hand large tensors back after each step, which costs more than what is compared here) unless
--default-memory leaves glibc as it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from measuring import claim, print_claims, surroundings
from torch import Tensor, nn

from planter import Architecture, Recipe, build
from planter.backbones import with_data_options
from planter.machine.memory import keep_memory
from planter.networks.assembly import build_network
from planter.networks.pipelines import Pipelines
from planter.training.losses import multi_pipeline_loss
from planter.training.recipe import make_optimizer

BATCH = 128
RECIPE = Recipe(lr=0.01, weight_decay=1e-4)
# Backbone: its options, its pipelines, synergy, rounds, and the ratio to reach.
CASES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]], str | None, int, float]] = {
    "vgg16": ({}, {"cut2": {}, "cut7": {}}, None, 9, 1.0),
    "wrn": (
        {"depth": 16, "widen": 2},
        {"branch1": {"after": "group1"}, "branch2": {"after": "group2"}},
        "bidirectional",
        9,
        0.8,
    ),
}
Forward = Callable[[nn.Module, Tensor], Mapping[str, Tensor]]


def stepper(net: nn.Module, forward: Forward, synergy: str | None) -> Callable[[], float]:
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    net.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(net, RECIPE)
    exits = net.exits if isinstance(net, Pipelines) else []

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        logits = forward(net, images)
        multi_pipeline_loss(logits, labels, exits=exits, synergy=synergy).backward()
        optimizer.step()
        return 1000 * (time.perf_counter() - began)

    return step


def together(net: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    logits: Mapping[str, Tensor] = net(images)
    return logits


def one_by_one(net: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    assert isinstance(net, Pipelines)
    return {name: net(images, [name])[name] for name in net.names}


def alone(net: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    return {"alone": net(images)}


def measure(backbone: str) -> dict[str, list[float]]:
    """Milliseconds of each round: of the joint step, the plain joint step, each network alone."""
    options, pipelines, synergy, rounds, _ = CASES[backbone]
    plain = Architecture(backbone, {}, options, pipelines)
    architecture = with_data_options(plain, 10, (3, 32, 32))
    steps = {
        "joint": stepper(build(architecture), together, synergy),
        "apart": stepper(build(architecture), one_by_one, synergy),
    }
    for name in ["base", *pipelines]:
        steps[name] = stepper(build_network(architecture, name), alone, None)
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        for name in order:
            times[name].append(steps[name]())
        order = [*order[1:], order[0]]
    return times


def ratios(times: dict[str, list[float]], way: str) -> list[float]:
    """Of each round: that joint step over the sum of the networks alone."""
    others = [series for name, series in times.items() if name not in ("joint", "apart")]
    sums = [sum(step) for step in zip(*others, strict=True)]
    return [a / b for a, b in zip(times[way], sums, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--default-memory", action="store_true")
    given = parser.parse_args()
    if not given.default_memory:
        keep_memory()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    found = {backbone: measure(backbone) for backbone in given.only}
    claims = [
        claim(
            f"{backbone}: joint step / sum of separate steps",
            statistics.median(ratios(times, "joint")),
            "<=",
            CASES[backbone][-1],
        )
        for backbone, times in found.items()
    ]
    report = {
        "claims": claims,
        "medians_ms": {
            backbone: {name: round(statistics.median(series), 1) for name, series in times.items()}
            for backbone, times in found.items()
        },
        "ratios": {
            backbone: {
                way: [round(q, 3) for q in statistics.quantiles(ratios(times, way), n=4)]
                for way in ("joint", "apart")
            }
            for backbone, times in found.items()
        },
        "batch": BATCH,
        "threads": given.threads,
        "default_memory": given.default_memory,
        **surroundings(),
    }
    if given.json:
        print(json.dumps(report, indent=2))
        return
    for backbone, times in report["medians_ms"].items():
        print(f"{backbone}, ms a step of {BATCH} images, {given.threads} threads")
        for name, median in times.items():
            print(f"  {name:10} {median:9.1f}")
    print_claims(claims)


if __name__ == "__main__":
    main()
