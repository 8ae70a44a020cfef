"""One round of planting by three ways: the literal one, with cached teacher logits, and planter's.

    python benchmarks/planting_round.py --json

10,000 images of CIFAR's shape, a parent of width 16 with a candidate of four more channels for each
of its five convolutions, a teacher of width 128, batch 256, five epochs each. The three ways train
the same plants to the same values:

- literal: for each candidate and step a forward pass of the teacher and all of the child, of which
  only what is new is trained (the frozen part is masked);
- cached: the same with the teacher's logits kept (`planter.planting.train_plant`), computed once
  for a study: that pass is in neither of the last two, and told as `teacher_pass_s`;
- planter: cached logits, and all candidates fed by the parent's activations, computed once
  (`planter.fast_round.train_round`). The pass that keeps them is in its time, and told apart.

With crop and flip (`augmented`) the literal way and planter's draw new views in every step, where
planter's computes teacher and parent once a step for all candidates; `pool` is planter's with three
fixed views of each image, of which everything frozen can be kept.

The literal way is timed for `--literal-epochs` (by default 1) of the five epochs and scaled up; the
other two run as a whole. They take turns, so that what else the machine does meets all of them; a
figure is the median over `--rounds`. Memory is kept by the process (measuring.py).
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import time
from collections.abc import Callable

import torch
from measuring import claim, keep_memory, print_claims, surroundings
from torch import Tensor, nn

from planter.activations import Activations
from planter.arch import Architecture
from planter.assembly import build_network
from planter.backbones import full_widths
from planter.data import Split
from planter.fast_round import candidate_of, train_round
from planter.losses import distillation_loss
from planter.planting import plant, train_plant
from planter.recipe import Augment, Recipe
from planter.train import Batch, evaluate, predict, training_images

IMAGES, BATCH, EPOCHS, PLANTED = 10_000, 256, 5, 4
LAYERS = [f"conv{n}" for n in range(1, 6)]
OPTIONS = {"classes": 10, "image": (3, 32, 32)}


class Float64(Split):
    """A split whose network inputs are float64."""

    def normalise(self, images: Tensor) -> Tensor:
        return (images.double() / 255 - self.mean) / self.std


def random_split(images: int, kind: type[Split] = Split) -> Split:
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
        self.teacher_seconds = self._timed(lambda: predict(self.teacher, self.split))
        self.logits = predict(self.teacher, self.split)

    def literal(self, epochs: int, augment: Augment | None = None) -> float:
        return self._literally(self.teacher, recipe(epochs, augment))

    def cached(self) -> float:
        return self._literally(self.logits, recipe(EPOCHS))

    def planter(self, augment: Augment | None = None, logits: Tensor | None = None) -> float:
        made = candidates(self.parent, 16)
        settings = recipe(EPOCHS, augment)
        images = training_images(self.split, settings)
        teacher = self.teacher if settings.augment.changes() else logits
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

    def _literally(self, teacher: Tensor | nn.Module, settings: Recipe) -> float:
        made = candidates(self.parent, 16)

        def train() -> None:
            for child in made.values():
                train_plant(
                    child, self.parent, self.split, settings, by_model, teacher=teacher, seed=0
                )

        return self._timed(train)

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
        train_plant(child, parent, split, recipe(3), by_model, teacher=logits, seed=0)
    train_round(parent, fast, split, recipe(3), by_logits, teacher=logits, seed=0)
    return max(
        abs(evaluate(slow[layer], validation).loss - evaluate(fast[layer], validation).loss)
        for layer in LAYERS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--literal-epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    difference = largest_difference()
    work = Round(random_split(given.images), given.device)
    flips = Augment(crop=4, flip=True)
    views = Augment(crop=4, flip=True, views=3)
    pool = training_images(work.split, recipe(EPOCHS, views))
    pool_logits = predict(work.teacher, pool)
    scale = EPOCHS / given.literal_epochs
    times: dict[str, list[float]] = {}
    work.planter(logits=work.logits)  # warm-up
    for _ in range(given.rounds):
        ways: dict[str, Callable[[], float]] = {
            "literal": lambda: scale * work.literal(given.literal_epochs),
            "cached": work.cached,
            "planter": lambda: work.planter(logits=work.logits),
            "keeping": lambda: work.keeping()[0],
            "literal, augmented": lambda: scale * work.literal(given.literal_epochs, flips),
            "planter, augmented": lambda: work.planter(flips),
            "planter, pool": lambda: work.planter(views, pool_logits),
        }
        for name, way in ways.items():
            times.setdefault(name, []).append(way())
    medians = {name: statistics.median(each) for name, each in times.items()}

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    claims = [
        claim("literal / planter", ratio("literal", "planter"), ">=", 50),
        claim("cached / planter", ratio("cached", "planter"), ">=", 8),
        claim(
            "augmented: literal / planter",
            ratio("literal, augmented", "planter, augmented"),
            ">=",
            4,
        ),
        {
            "name": "largest difference of validation losses, cached and planter, float64",
            "value": difference,
            "target": "<= 1e-6",
            "holds": difference <= 1e-6,
        },
    ]
    report = {
        "claims": claims,
        "medians_s": {name: round(seconds, 3) for name, seconds in medians.items()},
        "times_s": {name: [round(t, 3) for t in each] for name, each in times.items()},
        "augmented: literal / planter with a pool of 3 views": round(
            ratio("literal, augmented", "planter, pool"), 2
        ),
        "teacher_pass_s": round(work.teacher_seconds, 3),
        "kept_mb": round(work.keeping()[1] / 1e6, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "peak_gpu_memory_mb": (
            round(torch.cuda.max_memory_allocated() / 1e6, 1) if given.device == "cuda" else None
        ),
        "images": given.images,
        "batch": BATCH,
        "epochs": EPOCHS,
        "literal_epochs": given.literal_epochs,
        "threads": given.threads,
        "device": given.device,
        **surroundings(),
    }
    if given.json:
        print(json.dumps(report, indent=2))
        return
    for name, seconds in medians.items():
        print(f"{name:20} {seconds:9.2f} s")
    print_claims(claims)


if __name__ == "__main__":
    main()
