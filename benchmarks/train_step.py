"""Images a second of `planter.fit` against a plain PyTorch loop and against the bare step.

    python benchmarks/train_step.py [NETWORK ...] [--quick] [--threads N] [--json]

Random images of 3x32x32, batches of 128, SGD with momentum. Three sides by turns in one process,
medians of the rounds:

    planter  `planter.fit`, one epoch
    loop     a Dataset of uint8 tensors, torchvision's transforms, a DataLoader (the faster of no
             worker and two), torch's default optimiser, from its second batch on
    limit    forward, loss, backward and optimiser on one batch that is there already, in planter's
             layout: no data, no augmentation, no teacher

each without and with augmentation (crop of 4, mirror) and, of networks up to 20 million
multiply-adds, without and with distillation from a network of ten times as many. A teacher is asked
about every augmented batch; its logits are given where images stay as they are. Its share of a
training is also told for a pool of three views over 20 epochs, about which it is asked once, in
float32 and in what `precision: auto` comes to.

`--quick` takes the small networks and fewer rounds. `--processor` counts seconds of this process on
the processor instead, for a machine that others use; the loop is then without workers. `fit` is
timed as a whole, with what it does before and after its epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from measuring import claim, print_claims, surroundings
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from planter import Architecture, Recipe, build, cost, fit
from planter.backbones import full_widths, with_data_options
from planter.data import InMemorySplit
from planter.machine.memory import keep_memory
from planter.networks.pipelines import Pipelines
from planter.training.augment import Augment
from planter.training.batches import Batch, layout_of
from planter.training.losses import classification_loss
from planter.training.scores import predict

IMAGE, BATCH, CLASSES = (3, 32, 32), 128, 10
NETWORKS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "convnet-8": ("convnet", 8, {}),
    "convnet-16": ("convnet", 16, {}),
    "convnet-64": ("convnet", 64, {}),
    "resnet-8": ("resnet", None, {"depth": 8}),
    "cifar-quick": ("cifar_quick", None, {}),
    "vgg16": ("vgg16", None, {}),
    "wrn-16-4": ("wrn", None, {"depth": 16, "widen": 4}),
    "mobilenet": ("mobilenet", None, {}),
}
QUICK = ("convnet-8", "convnet-16", "resnet-8")
SMALL, GUIDED = 1e6, 20e6
"""Multiply-adds up to which a network counts as small, and up to which one is taught."""
AUGMENT = Augment(crop=4, flip=True)
VIEWS, EPOCHS = 3, 20
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class Case(NamedTuple):
    """A network, its teacher, and what is done to its images."""

    name: str
    architecture: Architecture
    augmented: bool
    teacher: nn.Module | None

    def network(self) -> nn.Module:
        return built(self.architecture)


def spec(builder: str, widths: Any, options: dict[str, Any]) -> Architecture:
    made = Architecture(builder, full_widths(builder, widths, options), options)
    return with_data_options(made, CLASSES, list(IMAGE))


def built(architecture: Architecture) -> nn.Module:
    network = build(architecture, 0)
    return network.detach("base") if isinstance(network, Pipelines) else network


def teacher_of(architecture: Architecture) -> nn.Module:
    """The same family, about ten times the multiply-adds."""
    widths = {name: round(width * 10**0.5) for name, width in architecture.widths.items()}
    given = {k: v for k, v in architecture.options.items() if k not in ("classes", "image")}
    return built(spec(architecture.builder, widths, given)).requires_grad_(False).eval()


def images(count: int) -> InMemorySplit:
    draw = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (count, *IMAGE), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,), generator=draw)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return InMemorySplit(raw, labels, mean, std)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return classification_loss(
        model(batch.images), batch.labels, batch.teacher, kd_weight=float(batch.teacher is not None)
    )


def clock(arguments: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if arguments.processor else time.perf_counter


def of_planter(case: Case, precision: str, now: Callable[[], float]) -> Callable[[int], float]:
    """Images a second of so many steps."""
    model = case.network()
    recipe = Recipe.model_validate(
        {"epochs": 1, "batch": BATCH, "lr": 1e-3, "precision": precision}
    )
    recipe = recipe.model_copy(update={"augment": AUGMENT if case.augmented else Augment()})

    def run(steps: int) -> float:
        split = images(steps * BATCH)
        guide: Any = case.teacher
        if guide is not None and not case.augmented:
            guide = torch.zeros(len(split), CLASSES)
        began = now()
        fit(model, loss_of, split, recipe, seed=0, teacher=guide)
        return len(split) / (now() - began)

    return run


class Images(Dataset[tuple[Tensor, ...]]):
    """As torchvision's data sets are: one image, transformed, with its label and logits."""

    def __init__(self, split: InMemorySplit, transform: nn.Module, logits: Tensor | None) -> None:
        self.split, self.transform, self.logits = split, transform, logits

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        made = self.transform(self.split.images[index]), self.split.labels[index]
        return made if self.logits is None else (*made, self.logits[index])


def of_loop(
    case: Case, precision: str, now: Callable[[], float], workers: int
) -> Callable[[int], float]:
    model, teacher = case.network().train(), case.teacher
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    drawn = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()] if case.augmented else []
    given = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([*drawn, *given])
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def step(batch: list[Tensor]) -> None:
        inputs, labels, *logits = batch
        guide = logits[0] if logits else None
        if teacher is not None and case.augmented:
            with torch.no_grad(), autocast():
                guide = teacher(inputs)
        with autocast():
            answered = model(inputs)
        loss = functional.cross_entropy(answered.float(), labels)
        if guide is not None:
            loss = loss + functional.kl_div(
                answered.float().log_softmax(1),
                guide.float().log_softmax(1),
                reduction="batchmean",
                log_target=True,
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def batches(steps: int) -> Iterator[list[Tensor]]:
        split = images(steps * BATCH)
        kept = teacher is not None and not case.augmented
        logits = torch.zeros(len(split), CLASSES) if kept else None
        data = Images(split, transform, logits)
        yield from DataLoader(data, BATCH, shuffle=True, num_workers=workers)

    def run(steps: int) -> float:
        every = batches(steps + 1)
        step(next(every))  # while the workers start
        began = now()
        for batch in every:
            step(batch)
        return steps * BATCH / (now() - began)

    return run


def of_limit(case: Case, precision: str, now: Callable[[], float]) -> Callable[[int], float]:
    model = case.network().train()
    half = precision == "bfloat16"
    layout = layout_of(model, 32 if half else 16)
    model.to(memory_format=layout)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True
    )
    inputs = torch.randn(BATCH, *IMAGE).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (BATCH,))

    def run(steps: int) -> float:
        began = now()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                answered = model(inputs)
            functional.cross_entropy(answered.float(), labels).backward()
            optimizer.step()
        return steps * BATCH / (now() - began)

    return run


def measured(case: Case, arguments: argparse.Namespace) -> dict[str, float]:
    """Images a second of each side, medians of rounds by turns."""
    precision, now = arguments.precision, clock(arguments)
    sides = {
        "planter": of_planter(case, precision, now),
        "limit": of_limit(case, precision, now),
        "loop, no worker": of_loop(case, precision, now, 0),
    }
    if not arguments.processor:
        sides["loop, two workers"] = of_loop(case, precision, now, 2)
    seconds = BATCH / sides["limit"](1)
    steps = max(2, round(arguments.seconds / min(seconds, BATCH / sides["limit"](1))))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(arguments.rounds + 1):
        for name, run in sides.items():
            rate = run(steps)
            if round_:  # the first warms up
                found[name].append(rate)
    return {name: statistics.median(rates) for name, rates in found.items()}


def answers_a_second(teacher: nn.Module, precision: str, arguments: argparse.Namespace) -> float:
    split, taken, now = images(2 * BATCH), [], clock(arguments)
    for _ in range(arguments.rounds + 1):
        began = now()
        predict(teacher, split, precision)  # type: ignore[arg-type]
        taken.append(now() - began)
    return len(split) / statistics.median(taken[1:])


def of_network(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    architecture = spec(*NETWORKS[name])
    macs = cost(architecture).macs
    teacher = teacher_of(architecture) if macs <= GUIDED else None
    rates: dict[str, dict[str, float]] = {}
    for augmented in (False, True):
        for guide in (None, teacher) if teacher is not None else (None,):
            what = "augmented" if augmented else "plain"
            what += ", taught" if guide is not None else ""
            rates[what] = measured(Case(name, architecture, augmented, guide), arguments)
            told = ", ".join(f"{side} {rate:,.0f}" for side, rate in rates[what].items())
            print(f"{name} ({macs / 1e6:.1f}M), {what}: {told}", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"macs": macs, "images_per_s": rates}
    if teacher is not None:
        alone, taught = (rates[key]["planter"] for key in ("augmented", "augmented, taught"))
        shares = {"asked about every batch": 1 - taught / alone}
        for precision in ("float32", "auto"):
            of_pool = VIEWS / answers_a_second(teacher, precision, arguments)
            what = f"a pool of {VIEWS} views, {EPOCHS} epochs, {precision}"
            shares[what] = of_pool / (of_pool + EPOCHS / alone)
        found["teacher_share"] = shares
    return found


def claims_of(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    made = []
    for what, rates in found["images_per_s"].items():
        loop = max(rate for side, rate in rates.items() if side.startswith("loop"))
        if "taught" not in what and found["macs"] > SMALL:
            value = rates["planter"] / rates["limit"]
            made.append(claim(f"{name}, {what}: planter / limit", value, ">=", 0.95))
        if found["macs"] <= 10 * SMALL:
            made.append(
                claim(f"{name}, {what}: planter / loop", rates["planter"] / loop, ">=", 1.3)
            )
    for how, share in found.get("teacher_share", {}).items():
        if how.startswith("a pool"):
            made.append(claim(f"{name}: the teacher's share, {how}", share, "<=", 0.15))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of a round of one side, about")
    parser.add_argument("--processor", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = arguments.networks or (QUICK if arguments.quick else NETWORKS)
    if unknown := [name for name in names if name not in NETWORKS]:
        parser.error(f"no network {unknown[0]!r}: {', '.join(NETWORKS)}")
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 5)
    arguments.seconds = arguments.seconds or (0.5 if arguments.quick else 1.5)
    keep_memory()  # as planter's workers do; of all sides
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    found, claims = {}, []
    for name in names:
        found[name] = of_network(name, arguments)
        claims += claims_of(name, found[name])
    if not arguments.json:
        print_claims(claims)
        return
    asked = {
        "seconds_of": "the processor" if arguments.processor else "the clock",
        "threads": arguments.threads,
        "batch": BATCH,
        "precision": arguments.precision,
    }
    print(json.dumps({"claims": claims, "networks": found, **asked, **surroundings()}, indent=2))


if __name__ == "__main__":
    main()
