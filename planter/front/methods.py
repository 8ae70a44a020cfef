"""How points come to be, in one table: their names, their looks, and which are searched for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """`label` is what its points are called, `trial` one training of it; `searched` says whether
    the search proposes them: others are there to compare with."""

    label: str
    trial: str
    color: str
    symbol: str
    searched: bool


METHODS = {
    "plant": Method("planted", "plant", "#1b9e4b", "circle", searched=True),
    "sample": Method("sampled", "sampled trial", "#2b6cd4", "square", searched=True),
    "evolve": Method("evolved", "evolved child", "#00838f", "triangle-up", searched=True),
    "teacher": Method("teacher", "teacher", "#d1495b", "star", searched=False),
    "baseline": Method("baseline", "baseline", "#8a8f98", "cross", searched=False),
}
"""By the `method` of a point; the order is that of legends."""


def is_searched(method: str) -> bool:
    """Whether the search proposes points of a method; not those of one that is not known here, as
    in a run of another version."""
    return method in METHODS and METHODS[method].searched
