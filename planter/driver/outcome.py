"""Whether a search that has ended was one: what of that which was asked for is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from planter.driver.jobs import SearchStoppedError
from planter.driver.rounds import START
from planter.front import Point
from planter.study import Study

_SHOWN = 3


class SearchFailedError(SearchStoppedError):
    """The search has ended and is reported, but all trainings of a kind that was asked for failed.
    `front` is what `search` would have returned."""

    def __init__(self, message: str, front: dict[str, Any]) -> None:
        super().__init__(message)
        self.front = front


def failure(study: Study, points: Iterable[Point], failed: Mapping[str, str]) -> str | None:
    """Why a search was none, and what helps; None for one that was.

    Asked for are planting and sampled trials, or baselines where these are all there is: each kind
    of which something was tried is to have one network. `failed` are the reasons by trial.
    """
    trained = {point.trial for point in points} - {START}
    kinds = [
        ("s", "sampled trial", study.sample is not None, _more_trials(study)),
        ("p", "plant", study.plant is not None, "plants that failed are not tried again"),
        (
            "b-",
            "baseline",
            study.sample is None and study.plant is None,
            "the same command tries them again",
        ),
    ]
    told = []
    for letter, kind, asked, then in kinds:
        reasons = {name: why for name, why in failed.items() if name.startswith(letter)}
        if asked and reasons and not any(name.startswith(letter) for name in trained):
            shown = "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:_SHOWN])
            more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
            told.append(f"every {kind} failed ({shown}{more}). When it is mended: {then}")
    if not told:
        return None
    return "\n".join([*told, _CHANGED])


_CHANGED = "A study that has changed needs another name (--set name=...), or --accept-changes."


def _more_trials(study: Study) -> str:
    if study.sample is None:
        return ""
    return f"more of them are trained with --set sample.trials={2 * max(study.sample.trials, 1)}"
