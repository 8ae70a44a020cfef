"""The arena's task, once for everybody: images, teacher, recipes, budget and one way to train.

Ways differ in how they make children, in nothing else: each hands its networks to `Arena.child`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from counting import flop_counter_macs, training_macs
from filelock import FileLock
from torch import Tensor, nn

from planter import Architecture, Recipe, build, cost, evaluate, fit, load, load_data, save
from planter.data import Data
from planter.networks.checkpoint import content_key
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.losses import classification_loss

OPTIONS = {"depth": 8, "shortcut": "conv"}
"""ResNet-8 with 1x1 convolutions where channels or size change."""


@dataclass(frozen=True)
class Task:
    """What every way is given. `shares` of the teacher's multiply-adds are what peers prune to,
    `scratch` the numerators over the teacher's widths of the networks trained from nothing;
    `budget` and `less` are training multiply-adds in all, the teacher's among them."""

    name: str
    data: Mapping[str, Any]
    widths: Mapping[str, int]
    teacher_recipe: Recipe
    child_recipe: Recipe
    scratch_lr: float
    budget: float
    less: float
    score_images: int
    """Validation images that a search of a peer's own may score a network on."""
    shares: tuple[float, ...] = (0.5, 0.25, 0.12, 0.06, 0.03)
    scratch: tuple[int, ...] = (11, 8, 6, 4, 3)
    denominator: int = 16
    temperature: float = 2.0
    views: int = 16
    """Of each image, in planter's pools."""

    @property
    def scratch_recipe(self) -> Recipe:
        return self.child_recipe.model_copy(update={"lr": self.scratch_lr})

    def load(self, root: Path | None) -> Data:
        """The images: one split for all seeds."""
        return load_data(**self.data, root=root, seed=0)

    def architecture(self, data: Data, numerator: int | None = None) -> Architecture:
        """The teacher's network, or that with `numerator / denominator` of every width."""
        part = 1.0 if numerator is None else numerator / self.denominator
        widths = {name: round(width * part) for name, width in self.widths.items()}
        return Architecture(
            "resnet", widths, {**OPTIONS, "classes": data.classes, "image": data.image}
        )


def _recipe(epochs: int, lr: float, crop: int = 4, *, flip: bool = True) -> Recipe:
    return Recipe(
        epochs=epochs,
        batch=64,
        lr=lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="cosine",
        warmup=1.0,
        augment=Augment(crop=crop, flip=flip),
    )


TASKS = {
    "cifar10": Task(
        "cifar10",
        {"name": "cifar10", "subset": 10_000, "validation": 0.2},
        {"stem": 16, "group1": 16, "group2": 32, "group3": 64},
        _recipe(40, 0.1),
        _recipe(15, 0.05),
        scratch_lr=0.1,
        budget=24e12,
        less=18e12,
        score_images=500,
    ),
    # The same code in two minutes: digits are 8 x 8 pixels and must not be mirrored.
    "digits": Task(
        "digits",
        {"name": "digits", "validation": 0.2},
        {"stem": 8, "group1": 8, "group2": 16, "group3": 32},
        _recipe(6, 0.1, crop=1, flip=False),
        _recipe(3, 0.05, crop=1, flip=False),
        scratch_lr=0.1,
        # What the chain takes (6.6e9, of which the teacher 4.0e9), and a tenth.
        budget=7.2e9,
        less=6.4e9,
        score_images=100,
        shares=(0.5, 0.12),
        scratch=(5, 2),
        denominator=8,
        views=2,
    ),
}


@dataclass
class Arena:
    """One way at work under one seed: it spends multiply-adds and hands in children."""

    task: Task
    seed: int
    data: Data
    teacher: nn.Module
    teacher_folder: Path
    out: Path
    """A folder that this way and seed has for itself."""
    points: list[dict[str, Any]] = field(default_factory=list)
    search_macs: int = 0
    """What making children took beside training them."""
    told: dict[str, Any] = field(default_factory=dict)
    """What else the line of results says."""

    @property
    def images(self) -> int:
        return len(self.data.train)

    @property
    def teacher_macs(self) -> int:
        macs: int = cost(self.teacher, self.data.image).macs
        return macs

    @property
    def teacher_train_macs(self) -> int:
        return training_macs(self.teacher_macs, self.images, self.task.teacher_recipe.epochs)

    @property
    def train_macs(self) -> int:
        """Everything: the teacher, every child, what making children took."""
        children = sum(point["train_macs"] for point in self.points)
        return self.teacher_train_macs + children + self.search_macs

    def targets(self) -> list[int]:
        """Multiply-adds that a child may have at most, the largest first."""
        return [int(share * self.teacher_macs) for share in self.task.shares]

    def child(self, network: nn.Module, *, scratch: bool = False, **told: Any) -> nn.Module:
        """Trains all of a network in place, guided by the teacher, measures it, notes the point
        (and what is `told` of it), and returns it."""
        recipe = self.task.scratch_recipe if scratch else self.task.child_recipe
        network.requires_grad_(True)
        guided = partial(guided_loss, temperature=self.task.temperature)
        # Each child sees the images in an order of its own, the same for every way.
        seed = 100 * self.seed + len(self.points) + 1
        fit(network, guided, self.data.train, recipe, seed=seed, teacher=self.teacher)
        assert self.data.test is not None
        counted = cost(network, self.data.image)
        self.points.append(
            {
                "macs": counted.macs,
                "flop_counter_macs": flop_counter_macs(network, self.data.image),
                "params": counted.params,
                "validation": evaluate(network, self.data.validation).accuracy,
                "test": evaluate(network, self.data.test).accuracy,
                "train_macs": training_macs(
                    counted.macs, self.images, recipe.epochs, guide=self.teacher_macs
                ),
                **told,
            }
        )
        return network


def guided_loss(model: nn.Module, batch: Batch, *, temperature: float) -> Tensor:
    """Cross-entropy and `T^2 KL` to the teacher's logits of the very same augmented images."""
    logits = model(batch.images)
    return classification_loss(
        logits, batch.labels, batch.teacher, kd_weight=1.0, temperature=temperature
    )


def _plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    return classification_loss(model(batch.images), batch.labels)


def teacher_of(task: Task, seed: int, data: Data, cache: Path) -> tuple[nn.Module, Path]:
    """The teacher of a seed and its folder: from the cache, or trained into it. Of several
    processes that need it one trains, the others wait."""
    architecture = task.architecture(data)
    settings = [architecture.to_dict(), task.teacher_recipe.model_dump(), seed, data.fingerprint()]
    folder = cache / f"{task.name}-{seed}-{content_key(settings)}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            network = build(architecture, seed)
            part = Path(f"{folder}.part")
            fit(
                network,
                _plain_loss,
                data.train,
                task.teacher_recipe,
                seed=seed,
                checkpoint=part,
            )
            save(folder, network, architecture, "base", _facts(network, architecture, data))
            part.unlink(missing_ok=True)
    return load(folder).requires_grad_(False), folder


def _facts(network: nn.Module, architecture: Architecture, data: Data) -> dict[str, Any]:
    """What `arch.json` says of a teacher: what its inputs and outputs mean, how well it does."""
    counted = cost(architecture)
    assert data.test is not None
    return {
        "macs": counted.macs,
        "params": counted.params,
        "accuracy": evaluate(network, data.validation).accuracy,
        "test_accuracy": evaluate(network, data.test).accuracy,
        "class_names": list(data.class_names),
        "pixels": str(data.train.dtype).removeprefix("torch."),
        "mean": data.train.mean.flatten().tolist(),
        "std": data.train.std.flatten().tolist(),
        "data": data.fingerprint(),
        "torch": torch.__version__,
    }


def teacher_facts(folder: Path) -> dict[str, float]:
    """Accuracies and multiply-adds of a teacher that was kept."""
    spec = json.loads((folder / "arch.json").read_text())
    keys = {"macs": "macs", "validation": "accuracy", "test": "test_accuracy"}
    return {name: spec[key] for name, key in keys.items()}
