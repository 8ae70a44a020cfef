"""What a search tells of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from planter.front.objectives import OBJECTIVES, SEARCHED
from planter.front.points import Point

Event = Literal["start", "compared", "done", "failed", "paused", "told"]


@dataclass(frozen=True)
class Progress:
    """Where a search stands after an `event`, in words, for whoever shows it.

    Its `kind`: trainings "start", are "compared" with others on their way, are "done", "failed"
    (perhaps to be tried again) or "paused"; anything else is "told". `epochs` are those of each
    running training, by trial, 0 where nobody knows.
    """

    kind: Event
    event: str
    done: int
    failed: int
    running: tuple[str, ...]
    left: int
    front: tuple[Point, ...]
    hypervolume: float
    seconds_left: float | None
    objectives: Sequence[str] = SEARCHED
    epochs: Mapping[str, int] = field(default_factory=dict)


Observer = Callable[[Progress], None]


def points_in_words(points: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> str:
    """What points are like, by their fields."""
    told = []
    for fields in points:
        known = {**fields, **fields.get("more", {})}
        metric, *costs = [OBJECTIVES[n].text(known[n]) for n in objectives if n in known]
        told.append(f"{fields['pipeline']} {metric} at {', '.join(costs)}")
    return ", ".join(told)
