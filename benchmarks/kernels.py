"""Time of a training step in each training form of the kernels, against the plain network.

    python benchmarks/kernels.py [--json] [--threads 2] [--only cifar_quick vgg16 wrn]

One process; each form takes steps in turn with the plain network (who is first changes by round)
on 128 images, with the loss, the decay and the optimiser of `planter.fit`. A ratio is the
median over rounds of form / plain within the round, so that a machine that slows down for a while
slows both sides; added time is the median of the differences, with its quartiles. Memory stays with
the process: glibc would hand large tensors back after each step, and what getting them again costs
(0 to 25 ms a step of Cifar-quick) depends on the heap, not on the form.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from measuring import claim, print_claims, surroundings
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from planter import Architecture, build, collapse_kernels_, expand_kernels_, form_of
from planter.backbones import with_data_options
from planter.kernels.filters import is_conv_or_linear, kernel_decay
from planter.machine.memory import keep_memory
from planter.training.recipe import Recipe, make_optimizer

BATCH = 128
RECIPE = Recipe(lr=0.01, weight_decay=1e-4)
EVERY = " every layer"
# Backbone: its options, rounds, and forms; " every layer" overrides KFLO's default `where`.
CASES = {
    "cifar_quick": (
        {},
        40,
        ["kflo:2x1", "kflo:2x2", "kflo:2x4", "do-conv", "acnet", "features:4"],
    ),
    "vgg16": (
        {"head": "hidden"},
        5,
        [
            "kflo:2x1" + EVERY,
            "kflo:2x2" + EVERY,
            "kflo:2x4" + EVERY,
            "kflo:2x4",
            "features:4",
        ],
    ),
    "wrn": (
        {"depth": 28, "widen": 2},
        5,
        ["kflo:2x1", "kflo:2x2", "kflo:2x4", "features:4"],
    ),
}


def network(builder: str, options: dict, form: str) -> nn.Module:
    net = build(with_data_options(Architecture(builder, {}, options), 10, (3, 32, 32)))
    if form == "collapsed":
        collapse_kernels_(expand_kernels_(net, form_of("kflo:2x4")))
    elif form != "plain":
        where = is_conv_or_linear if form.endswith(EVERY) else None
        expand_kernels_(net, form_of(form.removesuffix(EVERY)), where)
    return net.to(memory_format=torch.channels_last).train()


def stepper(net: nn.Module) -> Callable[[], float]:
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    optimizer = make_optimizer(net, RECIPE)

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        with parametrize.cached():
            loss = functional.cross_entropy(net(images), labels)
            if (decay := kernel_decay(net)) is not None:
                loss = loss + RECIPE.weight_decay * decay
            loss.backward()
        optimizer.step()
        return 1000 * (time.perf_counter() - began)

    return step


def measure(builder: str) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each round, of the variant and of the plain network beside it."""
    options, rounds, forms = CASES[builder]
    plain = stepper(network(builder, options, "plain"))
    found = {}
    for form in ["collapsed", *forms]:
        step = stepper(network(builder, options, form))
        plain(), step()
        times: dict[str, list[float]] = {"plain": [], "form": []}
        sides = [("plain", plain), ("form", step)]
        for _ in range(rounds):
            for side, take in sides:
                times[side].append(take())
            sides.reverse()
        found[form] = times
    return found


def ratio(times: dict[str, list[float]]) -> float:
    return statistics.median(a / b for a, b in zip(times["form"], times["plain"], strict=True))


def added(times: dict[str, list[float]]) -> list[float]:
    """Quartiles of the milliseconds a form adds to a step."""
    more = [a - b for a, b in zip(times["form"], times["plain"], strict=True)]
    return statistics.quantiles(more, n=4)


def claims(found: dict[str, dict[str, dict[str, list[float]]]]) -> list[dict]:
    rows = [
        (f"{builder}: collapsed / plain", ratio(times["collapsed"]), "<=", 1.03)
        for builder, times in found.items()
    ]
    if (times := found.get("cifar_quick")) is not None:
        rows.append(("cifar_quick: kflo:2x4 / plain", ratio(times["kflo:2x4"]), "<=", 1.05))
        # No less than a thousandth of the step: below that a difference is noise.
        least = statistics.median(times["kflo:2x4"]["plain"]) / 1000
        cheaper = added(times["features:4"])[1] / max(added(times["kflo:2x4"])[1], least)
        rows.append(("cifar_quick: time added by features:4 / by kflo:2x4", cheaper, ">=", 20))
    if (times := found.get("vgg16")) is not None:
        every = ratio(times["kflo:2x4" + EVERY])
        rows.append(("vgg16: kflo:2x4 in every layer / plain", every, "<=", 1.8))
        rows.append(("vgg16: kflo:2x4 by default / plain", ratio(times["kflo:2x4"]), "<=", 1.25))
    return [claim(*row) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    found = {builder: measure(builder) for builder in given.only}
    report = {
        "claims": claims(found),
        "medians_ms": {
            builder: {
                form: {side: round(statistics.median(t), 2) for side, t in times.items()}
                for form, times in forms.items()
            }
            for builder, forms in found.items()
        },
        "ratios": {
            builder: {form: round(ratio(times), 3) for form, times in forms.items()}
            for builder, forms in found.items()
        },
        "added_ms_quartiles": {
            builder: {form: [round(q, 2) for q in added(times)] for form, times in forms.items()}
            for builder, forms in found.items()
        },
        "batch": BATCH,
        "threads": given.threads,
        **surroundings(),
    }
    if given.json:
        print(json.dumps(report, indent=2))
        return
    for builder, forms in report["medians_ms"].items():
        print(f"{builder}, ms a step of {BATCH} images beside plain, {given.threads} threads")
        for form, times in forms.items():
            times_plain = report["ratios"][builder][form]
            print(f"  {form:22} {times['form']:8.1f} {times['plain']:8.1f} {times_plain:7.3f} x")
    print_claims(report["claims"])


if __name__ == "__main__":
    main()
