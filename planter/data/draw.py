"""Which images go where: stratified draws that leave no class without an image, and label noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def count_of(what: str, part: Any, total: int) -> int:
    """A count given as a number of images or as a fraction below 1. Raises ValueError for anything
    else, named `what`."""
    kinds = int | float | np.integer | np.floating
    if isinstance(part, bool) or not isinstance(part, kinds) or not math.isfinite(part):
        raise ValueError(f"{what} is a count of images, or a share below 1; got {part!r}")
    count = round(float(part) * total) if part < 1 else int(part)
    if not 0 < count <= total or (part >= 1 and not isinstance(part, int | np.integer)):
        raise ValueError(f"{what} {part} asks for {count} of {total} images")
    return count


def stratified(
    labels: Tensor,
    among: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    least: int = 0,
    leave: int = 0,
) -> tuple[Tensor, Tensor]:
    """`count` of the indices `among`, each class in proportion, and the rest; both in order.

    Each class gives at least `least` of its images and keeps at least `leave`, or all it has where
    that is less; other classes make up for it. `labels` `[n]`. Raises ImpossibleDrawError where
    that cannot be.
    """
    shuffled = among[torch.randperm(len(among), generator=generator)]
    classes = torch.unique(labels[among])
    by_class = [shuffled[labels[shuffled] == c] for c in classes]
    sizes = [len(members) for members in by_class]
    takes = _shares(sizes, count)
    bounds = [(min(least, size), max(size - leave, 0)) for size in sizes]
    if any(not low <= take <= high for take, (low, high) in zip(takes, bounds, strict=True)):
        if not sum(low for low, _ in bounds) <= count <= sum(high for _, high in bounds):
            wrong = [
                int(c)
                for c, take, (low, high) in zip(classes, takes, bounds, strict=True)
                if not low <= take <= high
            ]
            raise ImpossibleDrawError(wrong)
        takes = _bounded(takes, [count * size / len(among) for size in sizes], bounds)
    chosen = torch.cat([m[:take] for m, take in zip(by_class, takes, strict=True)])
    rest = torch.cat([m[take:] for m, take in zip(by_class, takes, strict=True)])
    return chosen.sort().values, rest.sort().values


class ImpossibleDrawError(ValueError):
    """A draw that would leave the `classes` without an image."""

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = list(classes)
        super().__init__(f"classes {self.classes} would have no image")


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    shares = [count * size / sum(sizes) for size in sizes]
    takes = [math.floor(share) for share in shares]
    # The largest remainders get what rounding down left over.
    order = sorted(range(len(shares)), key=lambda i: takes[i] - shares[i])
    for i in order[: count - sum(takes)]:
        takes[i] += 1
    return takes


def _bounded(
    takes: Sequence[int], shares: Sequence[float], bounds: Sequence[tuple[int, int]]
) -> list[int]:
    """The takes brought within the bounds, their sum kept: what a class cannot give is given by
    those furthest below their share."""
    made = [min(max(take, low), high) for take, (low, high) in zip(takes, bounds, strict=True)]
    while (missing := sum(takes) - sum(made)) != 0:
        step = 1 if missing > 0 else -1
        free = [i for i, (low, high) in enumerate(bounds) if low <= made[i] + step <= high]
        made[max(free, key=lambda i: step * (shares[i] - made[i]))] += step
    return made


def noisy(labels: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Labels `[n]` of which `share` are replaced by another class, drawn uniformly."""
    made = labels.clone()
    hit = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    shift = torch.randint(1, classes, (len(hit),), generator=generator)
    made[hit] = (labels[hit] + shift) % classes
    return made
