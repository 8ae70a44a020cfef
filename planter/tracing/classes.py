"""Entries of a network's tensors that come and go together: a union of sets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_HALF = 31
"""Bits of a number in a pair of them: one sort of single numbers finds equal pairs."""


class Place(NamedTuple):
    """An axis of a tensor of the network's state, by the tensor's name."""

    tensor: str
    axis: int


class Classes:
    """Sets of entries of axes. Every entry has a number; 0 stands for values of no layer."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._parent = [0]
        self._starts: list[int] = []
        self._places: list[Place] = []
        self.fixed: dict[int, str] = {}
        """The operation that fixed a set, by what stands for it (`find`)."""
        self._mixed: dict[int, str] = {}
        self.reads: set[Place] = set()
        """Axes that sums run over: of weights that read channels."""
        self.ids: dict[Place, Tensor] = {}
        """The numbers of an axis's entries."""
        known: dict[int, str] = {}
        for name, tensor in state.items():
            first = known.setdefault(id(tensor), name)  # tied tensors are one
            for axis, size in enumerate(tensor.shape):
                if first == name:
                    self.ids[Place(name, axis)] = self._new(Place(name, axis), size)
                else:
                    self.ids[Place(name, axis)] = self.ids[Place(first, axis)]

    def _new(self, place: Place, size: int) -> Tensor:
        start = len(self._parent)
        self._starts.append(start)
        self._places.append(place)
        self._parent.extend(range(start, start + size))
        return torch.arange(start, start + size)

    def find(self, entry: int) -> int:
        """The entry that stands for all of its set."""
        parent = self._parent
        while parent[entry] != entry:
            parent[entry] = parent[parent[entry]]
            entry = parent[entry]
        return entry

    def roots(self, place: Place) -> list[int]:
        """What stands for the set of each entry of an axis."""
        return [self.find(entry) for entry in self.ids[place].tolist()]

    def join(self, one: Tensor, other: Tensor) -> None:
        """One set of the entries that stand at the same place in two tensors of one shape."""
        for dim in range(one.dim()):
            if one.stride(dim) == 0 == other.stride(dim):  # expanded: the same all along
                one, other = one.narrow(dim, 0, 1), other.narrow(dim, 0, 1)
        pairs = (one.reshape(-1) << _HALF) + other.reshape(-1)
        for pair in _unlike(pairs):
            self._union(pair >> _HALF, pair & ((1 << _HALF) - 1))

    def join_all(self, entries: Tensor) -> None:
        """One set of all these entries."""
        first, *rest = _unlike(entries)
        for entry in rest:
            self._union(first, entry)

    def fix(self, entries: Tensor, why: str) -> None:
        """They cannot change, for an operation's sake."""
        for entry in _unlike(entries):
            self.fixed.setdefault(self.find(entry), why)

    def mix(self, entries: Tensor, why: str) -> None:
        """An operation computes one number of them all: one more changes what it says of others."""
        for entry in _unlike(entries):
            self._mixed.setdefault(entry, why)

    def read(self, entries: Tensor) -> None:
        """A sum runs over them; those of the network's own tensors are axes that read channels."""
        for entry in {int(entries.reshape(-1)[0]), int(entries.reshape(-1)[-1])} - {0}:
            place = self._places[bisect_right(self._starts, entry) - 1]
            self.reads.add(place)

    def mixed_roots(self) -> set[int]:
        """What stands for sets of which a member was mixed."""
        return {self.find(entry) for entry in self._mixed}

    def _union(self, a: int, b: int) -> None:
        first, other = sorted((self.find(a), self.find(b)))
        if first == other:
            return
        if not first:
            self.fixed.setdefault(other, "values that are no layer's")
            return
        self._parent[other] = first  # the earlier tensor's stands for both
        if other in self.fixed:
            self.fixed.setdefault(first, self.fixed[other])


def _unlike(entries: Tensor) -> list[int]:
    """Each number once."""
    numbers: list[int] = entries.unique().tolist()  # type: ignore[no-untyped-call]
    return numbers
