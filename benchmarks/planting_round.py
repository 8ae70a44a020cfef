"""One round of planting by three ways: the literal one, with cached teacher logits, and planter's.

    python benchmarks/planting_round.py --json

10,000 images of CIFAR's shape, a parent of width 16 with a candidate of four more channels for each
of its five convolutions, a teacher of width 128, batch 256, five epochs each. The three ways train
the same plants to the same values:

- literal: in plain torch, for each candidate and step a forward pass of the teacher and all of the
  child, forward and backward; the gradient of the frozen part is masked;
- cached: the same with the teacher's logits kept, computed once for a study: that pass is in
  neither of the last two, and told as `teacher_pass_s`;
- planter: cached logits, and all candidates fed by the parent's activations, computed once
  (`train_round`). The pass that keeps them is told apart, as `keeping`; it is
  in the time of `planter`, and out of it in the claims.

`train_plant` is planter's own full way, with cached logits: it computes no
gradient that is not needed and lays tensors out as the machine likes them, so that it is about
twice as fast as `cached`.

With crop and flip (`augmented`) the literal way and planter's draw new views in every step, where
planter's computes teacher and parent once a step for all candidates; `pool` is planter's with three
fixed views of each image, of which everything frozen can be kept. `strong` is `augmented` with
resized crops, RandAugment, erasing, mixup and cutmix instead of crops.

The literal way is timed for `--literal-epochs` (by default 1) of the five epochs and scaled up; the
other ways run as a whole. They take turns, so that what else the machine does meets all of them; a
figure is the median over `--rounds`. `literal` and `cached` run in a process with memory handling
as the system has it, the others in one that keeps memory (`planter.machine.memory`), as a worker of
planter's does; `--keep-memory` lets both keep it.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from measuring import claim, print_claims, surroundings
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import full_widths
from planter.data import InMemorySplit, Split
from planter.machine.memory import keep_memory
from planter.networks.assembly import build_network
from planter.planting.activations import Activations
from planter.planting.contribution import candidate_of
from planter.planting.plants import plant, train_plant
from planter.planting.round import train_round
from planter.training.augment import Augment
from planter.training.batches import Batch, batch_order, make_batch, training_images
from planter.training.losses import distillation_loss
from planter.training.recipe import Recipe
from planter.training.scores import evaluate, predict

IMAGES, BATCH, EPOCHS, PLANTED = 10_000, 256, 5, 4
LAYERS = [f"conv{n}" for n in range(1, 6)]
Training = Callable[[nn.Module, nn.Module, Split, Recipe, Tensor | nn.Module], None]
OPTIONS = {"classes": 10, "image": (3, 32, 32)}


class Float64(InMemorySplit):
    """A split whose network inputs are float64."""

    def normalise(self, images: Tensor) -> Tensor:
        return (images.double() / 255 - self.mean) / self.std


def random_split(images: int, kind: type[InMemorySplit] = InMemorySplit) -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,), generator=generator)
    like = torch.float64 if kind is Float64 else torch.float32
    return kind(
        pixels, labels, torch.full((3, 1, 1), 0.5, dtype=like), torch.ones((3, 1, 1), dtype=like)
    )


def network(width: int, seed: int) -> nn.Module:
    return build_network(Architecture("convnet", full_widths("convnet", width), OPTIONS), seed=seed)


def candidates(parent: nn.Module, width: int) -> dict[str, nn.Module]:
    arch = Architecture("convnet", full_widths("convnet", width), OPTIONS)
    return {layer: plant(arch, parent, layer, PLANTED, seed=1)[1] for layer in LAYERS}


def train_literally(
    child: nn.Module,
    parent: nn.Module,
    split: Split,
    settings: Recipe,
    teacher: Tensor | nn.Module,
) -> None:
    """The procedure as it is written down, without planter's trainings: all of the child, forward
    and backward, and zeros for the gradient of what the parent has."""
    old = parent.state_dict()
    masks = {name: torch.ones_like(p) for name, p in child.named_parameters()}
    for name, mask in masks.items():
        mask[tuple(map(slice, old[name].shape))] = 0
    optimizer = torch.optim.Adam(child.parameters(), lr=settings.lr)
    child.train()
    for epoch in range(settings.epochs):
        batches, generator = batch_order(split, settings, 0, epoch)
        for index in batches:
            as_read = torch.contiguous_format
            images = make_batch(split, index, settings.augment, generator, None, as_read).images
            if isinstance(teacher, Tensor):
                wanted = teacher[index]
            else:
                with torch.no_grad():
                    wanted = teacher(images)
            optimizer.zero_grad()
            loss = functional.kl_div(
                functional.log_softmax(child(images), dim=1),
                functional.log_softmax(wanted, dim=1),
                reduction="batchmean",
                log_target=True,
            )
            loss.backward()
            for name, parameter in child.named_parameters():
                assert parameter.grad is not None
                parameter.grad *= masks[name]
            optimizer.step()


def by_model(model: nn.Module, batch: Batch) -> Tensor:
    assert batch.teacher is not None
    return distillation_loss(model(batch.images), batch.teacher)


def by_logits(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    assert teacher is not None
    return distillation_loss(logits, teacher)


def recipe(epochs: int, augment: Augment | None = None) -> Recipe:
    return Recipe(
        epochs=epochs,
        batch=BATCH,
        optimizer="adam",
        lr=0.003,
        weight_decay=0.0,
        schedule="constant",
        augment=augment or Augment(),
    )


class Round:
    """The three ways to train one round's candidates, each on candidates of its own."""

    def __init__(self, split: Split, device: str) -> None:
        self.split = split.to(device)
        self.device = device
        self.parent = network(16, 0).to(device).eval()
        self.teacher = network(128, 2).to(device).requires_grad_(False).eval()
        self.logits = predict(self.teacher, self.split)

    def warm_up(self) -> float:
        made = candidates(self.parent, 16)["conv5"]
        return self._timed(
            lambda: train_literally(made, self.parent, self.split, recipe(1), self.logits)
        )

    def teacher_pass(self) -> float:
        return self._timed(lambda: predict(self.teacher, self.split))

    def literal(self, epochs: int, augment: Augment | None = None) -> float:
        return self._each(train_literally, recipe(epochs, augment), self.teacher)

    def cached(self) -> float:
        return self._each(train_literally, recipe(EPOCHS), self.logits)

    def train_plant(self) -> float:
        def train(
            child: nn.Module,
            parent: nn.Module,
            split: Split,
            settings: Recipe,
            teacher: Tensor | nn.Module,
        ) -> None:
            train_plant(child, parent, split, settings, by_model, teacher=teacher, seed=0)

        return self._each(train, recipe(EPOCHS), self.logits)

    def planter(self, augment: Augment | None = None) -> float:
        made = candidates(self.parent, 16)
        settings = recipe(EPOCHS, augment)
        images = training_images(self.split, settings)
        teacher: Tensor | nn.Module = self.logits
        if settings.augment.changes():
            teacher = self.teacher
        elif settings.augment.views:
            teacher = predict(self.teacher, images)
        return self._timed(
            lambda: train_round(
                self.parent, made, images, settings, by_logits, teacher=teacher, seed=0
            )
        )

    def keeping(self) -> tuple[float, int]:
        """Seconds of the pass that keeps the parent's activations, and the bytes it keeps."""
        frozen = copy.deepcopy(self.parent).to(memory_format=torch.channels_last)
        made = candidates(self.parent, 16).values()
        wanted = {at for child in made for at in candidate_of(child, frozen).wanted}
        kept: list[Activations] = []
        seconds = self._timed(lambda: kept.append(Activations(frozen, self.split, wanted)))
        return seconds, kept[0].bytes

    def _each(self, train: Training, settings: Recipe, teacher: Tensor | nn.Module) -> float:
        made = candidates(self.parent, 16).values()
        return self._timed(
            lambda: [train(child, self.parent, self.split, settings, teacher) for child in made]
        )

    def _timed(self, work: Callable[[], object]) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def largest_difference() -> float:
    """Of the validation losses of the cached way and planter's, on a small case in float64."""
    split, validation = random_split(600, Float64), random_split(200, Float64)
    parent, teacher = network(4, 0).double().eval(), network(16, 2).double().eval()
    logits = predict(teacher, split)
    arch = Architecture("convnet", full_widths("convnet", 4), OPTIONS)
    slow = {layer: plant(arch, parent, layer, PLANTED, seed=1)[1] for layer in LAYERS}
    fast = copy.deepcopy(slow)
    for child in slow.values():
        train_literally(child, parent, split, recipe(3), logits)
    train_round(parent, fast, split, recipe(3), by_logits, teacher=logits, seed=0)
    return max(
        abs(evaluate(slow[layer], validation).loss - evaluate(fast[layer], validation).loss)
        for layer in LAYERS
    )


def prepare(images: int, device: str, threads: int, keep: bool) -> None:
    """Makes this process one that times ways: `timed` calls them by name."""
    global work
    if keep:
        keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = Round(random_split(images), device)


def timed(way: str, *arguments: object) -> Any:
    return getattr(work, way)(*arguments)


def peak_memory() -> tuple[float, float | None]:
    """Of this process, in MB: resident, and on the GPU if it has used one."""
    gpu = torch.cuda.max_memory_allocated() / 1e6 if work.device == "cuda" else None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, gpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--literal-epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    difference = largest_difference()
    spawn = multiprocessing.get_context("spawn")
    plain, planters = (
        ProcessPoolExecutor(1, spawn, prepare, (given.images, given.device, given.threads, keep))
        for keep in (given.keep_memory, True)
    )
    flips, views = Augment(crop=4, flip=True), Augment(crop=4, flip=True, views=3)
    several: dict[str, Any] = {
        "resized_crop": True, "randaugment": True, "erasing": 0.25, "mixup": 0.2, "cutmix": 1.0,
    }  # fmt: skip
    strong = Augment(flip=True, **several)
    scale = EPOCHS / given.literal_epochs
    ways: dict[str, Callable[[], float]] = {
        "literal": lambda: scale * run(plain, "literal", given.literal_epochs),
        "cached": lambda: run(plain, "cached"),
        "train_plant": lambda: run(planters, "train_plant"),
        "planter": lambda: run(planters, "planter"),
        "keeping": lambda: run(planters, "keeping")[0],
        "literal, augmented": lambda: scale * run(plain, "literal", given.literal_epochs, flips),
        "planter, augmented": lambda: run(planters, "planter", flips),
        "planter, pool": lambda: run(planters, "planter", views),
        "literal, strong": lambda: scale * run(plain, "literal", given.literal_epochs, strong),
        "planter, strong": lambda: run(planters, "planter", strong),
    }

    def run(process: ProcessPoolExecutor, *call: object) -> Any:
        return process.submit(timed, *call).result()

    times: dict[str, list[float]] = {}
    for pool in (plain, planters):
        run(pool, "warm_up")
    for _ in range(given.rounds):
        for name, way in ways.items():
            times.setdefault(name, []).append(way())
            print(f"{name}: {times[name][-1]:.2f} s", file=sys.stderr)
    medians = {name: statistics.median(each) for name, each in times.items()}

    def ratio(a: str, b: str, without: str | None = None) -> float:
        less = times[without] if without else [0.0] * given.rounds
        return statistics.median(
            x / (y - z) for x, y, z in zip(times[a], times[b], less, strict=True)
        )

    claims = [
        claim("literal / planter", ratio("literal", "planter", "keeping"), ">=", 50),
        claim("cached / planter", ratio("cached", "planter", "keeping"), ">=", 8),
        claim(
            "augmented: literal / planter",
            ratio("literal, augmented", "planter, augmented"),
            ">=",
            4,
        ),
        claim("strong: literal / planter", ratio("literal, strong", "planter, strong"), ">=", 4),
        {
            "name": "largest difference of validation losses, cached and planter, float64",
            "value": difference,
            "target": "<= 1e-6",
            "holds": difference <= 1e-6,
        },
    ]
    peaks = {"plain": plain, "planter": planters}
    report = {
        "claims": claims,
        "medians_s": {name: round(seconds, 3) for name, seconds in medians.items()},
        "times_s": {name: [round(t, 3) for t in each] for name, each in times.items()},
        "with the pass that keeps: literal / planter": round(ratio("literal", "planter"), 2),
        "with the pass that keeps: cached / planter": round(ratio("cached", "planter"), 2),
        "train_plant / planter": round(ratio("train_plant", "planter", "keeping"), 2),
        "augmented: literal / planter with a pool of 3 views": round(
            ratio("literal, augmented", "planter, pool"), 2
        ),
        "teacher_pass_s": round(run(planters, "teacher_pass"), 3),
        "kept_mb": round(run(planters, "keeping")[1] / 1e6, 1),
        "peak_memory_mb": {
            name: [mb and round(mb, 1) for mb in process.submit(peak_memory).result()]
            for name, process in peaks.items()
        },
        "images": given.images,
        "batch": BATCH,
        "epochs": EPOCHS,
        "literal_epochs": given.literal_epochs,
        "threads": given.threads,
        "device": given.device,
        "keep_memory": given.keep_memory,
        **surroundings(),
    }
    for pool in (plain, planters):
        pool.shutdown()
    if given.json:
        print(json.dumps(report, indent=2))
        return
    for name, seconds in medians.items():
        print(f"{name:20} {seconds:9.2f} s")
    print_claims(claims)


if __name__ == "__main__":
    main()
