"""Labels of a tensor: tensors of its shape, each of which names entries along one of its axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

Labels = list[Tensor]
"""Of one tensor; each has its shape and the numbers of `Classes`."""


def expanded(entries: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """Entries along one axis as labels of a shape."""
    size = [1] * len(shape)
    size[dim] = len(entries)
    return entries.view(size).expand(*shape)


def varying(labels: Tensor) -> tuple[int, ...]:
    """The axes along which labels differ."""
    # What was expanded has no step, and is the same all along: nothing of it need be compared.
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return tuple(
        dim
        for dim in range(labels.dim())
        if labels.shape[dim] > 1 and bool((labels != labels.narrow(dim, 0, 1)).any())
    )


def along(every: Iterable[Tensor], dim: int) -> list[Tensor]:
    """The entries of those labels that differ along this axis alone; of an axis of one entry those
    that differ nowhere."""
    found = []
    for labels in every:
        dims = varying(labels)
        if dims == (dim,) or (not dims and labels.shape[dim] == 1):
            first = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)[:, 0]
            found.append(first)
    return found
