"""What is told of trainings, and to whom: the interface of trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from planter.backbones import import_object
from planter.study.places import TRACKERS
from planter.study.schema import Study

Status = Literal["done", "failed", "stopped"]


class Tracker(Protocol):
    """Who is told of every training. All calls come from one thread of the driver, also while
    others train; one that raises is warned of, and the tracker is told no more.

    A training is begun again, under the same id, where it is taken up after an interruption or
    tried once more: it is then told from its first epoch on, the same values again.
    """

    def begin(self, trial: str, facts: Mapping[str, Any]) -> None:
        """A training begins: what it is of and what was drawn for it, texts and numbers by name."""

    def log(self, trial: str, epoch: int, values: Mapping[str, float]) -> None:
        """What an epoch gave: "training/loss", "training/val_accuracy" where it was followed by a
        validation, and so on. A training of several parts has the name of the later ones in the
        place of "training", and their epochs count from 1."""

    def end(self, trial: str, status: Status, values: Mapping[str, float]) -> None:
        """A training has ended, or is interrupted ("stopped"): what came of each pipeline,
        "validation/base/accuracy" and so on; nothing of one that is not done."""

    def close(self) -> None:
        """The search has ended."""


def make_tracker(name: str, run: Path, study: Study) -> Tracker:
    """The tracker of that name, or what stands at a place: a function, called with the run folder
    and the study as a mapping. Raises ValueError where there is none, and what the function does.
    """
    place = TRACKERS.get(name, name)
    make = import_object(place) if isinstance(place, str) else place
    made: Tracker = make(run, study.model_dump())
    return made
