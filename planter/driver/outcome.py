"""Whether a search that has ended was one: what of that which was asked for is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from planter.driver.proposers.planting import START
from planter.driver.proposers.proposer import Proposer
from planter.driver.trials.jobs import ANOTHER_NAME, SearchStoppedError
from planter.front.methods import METHODS, is_searched
from planter.front.points import Point, front_of
from planter.study.schema import Study

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


def worse_teacher(points: Sequence[Point], images: int) -> str | None:
    """That the teacher is worse than a network beside it on so many validation images, by more than
    they can be told apart by, in words; None where it is not."""
    teacher = next((p.accuracy for p in points if p.method == "teacher"), None)
    others = [point for point in points if point.method != "teacher"]
    if teacher is None or not others:
        return None
    best = max(others, key=lambda point: point.accuracy)
    variance = sum(share * (1 - share) for share in (teacher, best.accuracy)) / images
    if best.accuracy - teacher <= 2 * math.sqrt(variance):
        return None
    return (
        f"the teacher has {teacher:.2%} on the validation images, {best.id} {best.accuracy:.2%}: "
        "what learns from it may do worse than without; a better teacher, or its own normalise "
        "and resize, if it learned other images"
    )


def ending(
    study: Study,
    points: Sequence[Point],
    proposers: Sequence[Proposer],
    *,
    spent: str | None = None,
) -> Ending:
    """How a search ended that has these points.

    Asked for is what is searched for, or baselines where nothing is. `spent` says what of the
    budget is used up while something is left to train.
    """
    searching = [p for p in proposers if is_searched(p.method)]
    asked_of = searching or [p for p in proposers if p.method == "baseline"]
    exhausted = next(filter(None, (p.exhausted() for p in asked_of)), None)
    failures = list(filter(None, (_failure(p, points) for p in asked_of)))
    # The start of planting is trained, and networks are taken in, before anything is searched for.
    given = [p.id for p in points if p.trial == START or (p.method == "evolve" and not p.parent)]
    if failures and not any(point.searched and point.id not in given for point in points):
        why = "; ".join(failures)
        told = f"every searched trial failed: {why}" if searching else why
        return Ending("failed", 4, f"{told}\n{_CHANGED}")
    limits = study.objectives.bounds.limits()
    asked = [point for point in points if point.searched or not searching]
    if asked if not (searching and limits) else front_of(asked, limits, study.objectives.names):
        return Ending("trained", 0)
    if spent is not None and not asked:
        return Ending("budget", 4, f"nothing that was asked for is trained: {spent}")
    if searching and limits:
        why = f": {exhausted.why}" if exhausted is not None else ""
        return Ending("beyond_bounds", 3, f"nothing within the bounds{why}")
    return Ending("trained", 0)  # nothing was asked for, as with no trials


def _failure(proposer: Proposer, points: Sequence[Point]) -> str | None:
    """How a proposer tried and has nothing, and what helps; None otherwise."""
    if proposer.results(points):
        return None
    trial = METHODS[proposer.method].trial
    if reasons := proposer.failures():
        shown = "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:_SHOWN])
        more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        return f"every {trial} failed ({shown}{more}). When it is mended: {proposer.remedy()}"
    exhausted = proposer.exhausted()
    if exhausted is not None and not exhausted.by_bounds:
        return f"no {trial} is trained: {exhausted.why}"
    return None
