"""Whether a search that has ended was one: what of that which was asked for is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from planter.driver.jobs import ANOTHER_NAME, SearchStoppedError
from planter.driver.redraws import BOUNDS
from planter.driver.rounds import START
from planter.front import Point, front_of
from planter.study import Study

_SHOWN = 3
_CHANGED = f"A study that has changed needs --accept-changes, or {ANOTHER_NAME}."


class SearchFailedError(SearchStoppedError):
    """The search has ended and is reported, but nothing of what was asked for is trained: all of it
    failed, or no draw gave a network to train. `front` is what `search` would have returned."""

    def __init__(self, message: str, front: dict[str, Any]) -> None:
        super().__init__(message)
        self.front = front


@dataclass(frozen=True)
class Ending:
    """How a search ended; `outcome` of pareto.json.

    `trained`: something of what was asked for is, whatever else is left; `beyond_bounds`: nothing
    keeps to the bounds; `budget`: it was used up before anything that was asked for was trained;
    `failed`: nothing of what was asked for is trained, for another reason than these. The
    `exit_code` is that of the command, `reason` why it is not 0.
    """

    kind: Literal["trained", "beyond_bounds", "budget", "failed"]
    exit_code: int
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        return asdict(self)


def ending(
    study: Study,
    points: Sequence[Point],
    failed: Mapping[str, str],
    *,
    in_vain: str | None = None,
    refused: Collection[str] = (),
    spent: str | None = None,
) -> Ending:
    """How a search ended that has these points.

    Asked for are planting and sampled trials, or baselines where these are all there is. `failed`
    are the reasons by trial; `in_vain` says why no more was drawn, `refused` for what (see
    `redraws`); `spent` what of the budget is used up while something is left to train.
    """
    searching = study.plant is not None or study.sample is not None
    # The start of planting is trained before anything is searched for.
    searched = any(point.searched and point.trial != START for point in points)
    failures = _failures(study, points, failed) if not searched else []
    drawn_in_vain = in_vain is not None and not searched and BOUNDS not in refused
    if drawn_in_vain and not any(name.startswith("s") for name in failed):
        failures.append(f"no sampled trial is trained: {in_vain}")
    if failures:
        why = "; ".join(failures)
        told = f"every searched trial failed: {why}" if searching else why
        return Ending("failed", 4, f"{told}\n{_CHANGED}")
    limits = study.objectives.bounds.limits()
    asked = [point for point in points if point.searched or not searching]
    if asked if not (searching and limits) else front_of(asked, limits):
        return Ending("trained", 0)
    if spent is not None and not asked:
        return Ending("budget", 4, f"nothing that was asked for is trained: {spent}")
    if searching and limits:
        why = f": {in_vain}" if in_vain is not None else ""
        return Ending("beyond_bounds", 3, f"nothing within the bounds{why}")
    return Ending("trained", 0)  # nothing was asked for, as with no trials


def _failures(study: Study, points: Sequence[Point], failed: Mapping[str, str]) -> list[str]:
    """The kinds of which something was tried and all of it failed, and what helps."""
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
    return told


def _more_trials(study: Study) -> str:
    if study.sample is None:
        return ""
    return f"more of them are trained with --set sample.trials={2 * max(study.sample.trials, 1)}"
