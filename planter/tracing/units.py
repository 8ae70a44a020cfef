"""From followed entries to groups of channels, each with a name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from planter.tracing.axes import Axis, Group
from planter.tracing.classes import Classes, Place

Signature = tuple[tuple[Place, int], ...]
"""The axes that entries of one set stand on, and how many on each."""


class Found(NamedTuple):
    """The groups of a network, and why other layers cannot change, by the layer's name."""

    groups: tuple[Group, ...]
    fixed: dict[str, str]


def groups_of(classes: Classes, state: Mapping[str, Tensor]) -> Found:
    """The groups of channels that were followed through a network of that state."""
    roots = {place: classes.roots(place) for place in classes.ids}
    members: dict[int, dict[Place, list[int]]] = defaultdict(dict)
    for place, found in roots.items():
        for i, root in enumerate(found):
            if root not in classes.fixed:
                members[root].setdefault(place, []).append(i)
    alike: dict[Signature, list[int]] = defaultdict(list)
    for root, places in members.items():
        if len(places) > 1:  # an axis alone is no channel: kernels have such
            alike[tuple((place, len(at)) for place, at in places.items())].append(root)
    mixed = classes.mixed_roots()
    fixed: dict[str, str] = {}
    whole: list[tuple[Place, list[int], list[Axis]]] = []
    scattered: dict[Place, str] = {}
    for signature, units in alike.items():
        stands = [place for place, _ in signature]
        first = _first(stands, state, classes.reads)
        units.sort(key=lambda root: members[root][first][0])
        axes: list[Axis] = []
        for place in stands:
            parts = _parts([members[root][place] for root in units])
            if parts is None:
                scattered |= dict.fromkeys(set(stands) - classes.reads, place.tensor)
                break
            axes += [
                Axis(*place, repeat, offset, place in classes.reads) for offset, repeat in parts
            ]
        else:
            whole.append((first, units, axes))
    for place, reader in scattered.items():
        if place.axis == 0 and state[place.tensor].dim() > 1:
            fixed[_layer(place)] = f"its channels stand between others' in {reader}"
    groups, names = [], set[str]()
    for first, units, axes in whole:
        # A layer of which some channels are scattered changes in none.
        if not scattered.keys() & {
            Place(axis.tensor, axis.axis) for axis in axes if not axis.reads
        }:
            names.add(name := _name(first, names))
            groups.append(Group((name,), len(units), tuple(axes), keeps=not mixed & set(units)))
    for name, tensor in state.items():
        rows = roots[Place(name, 0)] if tensor.dim() > 1 else []
        if rows and all(root in classes.fixed for root in rows):
            fixed.setdefault(_layer(Place(name, 0)), classes.fixed[rows[0]])
    return Found(tuple(groups), fixed)


def _parts(units: Sequence[Sequence[int]]) -> list[tuple[int, int]] | None:
    """Where the entries of units stand on one axis, as (offset, repeat) of parts in which they
    follow one another; None where others stand between them."""
    owner = {at: unit for unit, entries in enumerate(units) for at in entries}
    rest = sorted(owner)
    parts = []
    while rest:
        offset = rest[0]
        repeat = 0
        while owner.get(offset + repeat) == 0:
            repeat += 1
        if not repeat:
            return None
        # One unit's entries in a row may belong to several parts, where it is the only unit.
        if len(units) == 1:
            repeat = 1
        whole = range(offset, offset + repeat * len(units))
        if any(owner.get(at) != (at - offset) // repeat for at in whole):
            return None
        parts.append((offset, repeat))
        rest = rest[len(whole) :]
    return parts


def _first(places: Iterable[Place], state: Mapping[str, Tensor], reads: set[Place]) -> Place:
    """The axis that names a group: of the first layer that makes its channels."""
    every = list(places)
    made = [place for place in every if place not in reads]
    layers = [place for place in made if state[place.tensor].dim() > 1]
    return (layers or made or every)[0]


def _layer(place: Place) -> str:
    return place.tensor.rpartition(".")[0] or place.tensor


def _name(place: Place, taken: Iterable[str]) -> str:
    layer = name = _layer(place)
    number = 2
    while name in taken:
        name, number = f"{layer}-{number}", number + 1
    return name
