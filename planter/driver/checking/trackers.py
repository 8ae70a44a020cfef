"""Whether the trackers that a study names are there, before anything is trained."""

from __future__ import annotations

from functools import partial

from planter.backbones import import_object
from planter.study.findings import Findings
from planter.study.places import TRACKERS
from planter.study.schema import Study


def check_trackers(study: Study, found: Findings) -> None:
    for index, name in enumerate(study.trackers):
        found.attempt(f"trackers.{index}", name, partial(_imported, name))


def _imported(name: str) -> bool:
    place = TRACKERS.get(name, name)
    try:
        make = import_object(place) if isinstance(place, str) else place
    except ValueError as error:
        cause = error.__cause__
        if name not in TRACKERS or not isinstance(cause, ImportError) or not cause.name:
            raise
        raise ValueError(
            f"it needs the package {cause.name.partition('.')[0]!r}, which is not installed: "
            f"pip install 'planter[{name}]'"
        ) from error
    if not callable(make):
        raise ValueError(f"it is a {type(make).__name__}: expected a function of (run, study)")
    return True
