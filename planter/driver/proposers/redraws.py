"""Draws that give nothing to train: why, how often in a row, and what is known to be trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import FixedTrial, FrozenTrial, TrialState

from planter.driver.proposers.unfinished import PARTIAL
from planter.driver.trials.jobs import ANOTHER_NAME
from planter.driver.trials.networks import recipes_of
from planter.networks import checkpoint
from planter.study.schema import Study
from planter.study.space import Candidate, Space

IN_A_ROW = 100
"""Draws in a row that give nothing to train, after which a search draws no more."""
REFUSED, REDRAWN = "refused", "redrawn"
"""Attributes of a row: by how much its networks miss the bounds; why else it was not trained."""

RECIPES = "trained_under"
"""Attribute of a row: the key of what its trial is trained under; rows of before have none."""

BOUNDS, PRUNED, REPEATED = "beyond the bounds", "pruned by the space", "trained before"
_KINDS = (BOUNDS, PRUNED, REPEATED)


def trained_under(candidate: object, study: Study) -> str:
    """The key of what a candidate is trained under; empty of anything else."""
    if not isinstance(candidate, Candidate):
        return ""
    every = recipes_of(candidate, study)
    plants = every.plants if candidate.plants else None
    each = [every.network, plants, every.again]
    return checkpoint.content_key([r.model_dump() if r is not None else None for r in each])


def is_redrawn(row: FrozenTrial) -> bool:
    """Whether another was drawn in place of a row's trial, which so does not count."""
    attributes = row.user_attrs
    return row.state == TrialState.PRUNED and (REFUSED in attributes or REDRAWN in attributes)


class Streak:
    """The draws in a row that gave nothing to train: the ids and why."""

    def __init__(self) -> None:
        self._draws: list[tuple[str, str, str]] = []

    def add(self, trial: str, kind: str, reason: str) -> None:
        self._draws.append((trial, kind, reason))

    @property
    def over(self) -> bool:
        """Whether enough was drawn in vain."""
        return len(self._draws) >= IN_A_ROW

    def end(self) -> list[str]:
        """What was drawn in vain, in words, a line for each kind; the streak begins anew."""
        lines = []
        for kind in _KINDS:
            found = [(trial, reason) for trial, of, reason in self._draws if of == kind]
            if found:
                (first, reason), (last, _) = found[0], found[-1]
                many = f"{first} to {last} ({len(found)} draws)" if len(found) > 1 else first
                such = reason if len({reason for _, reason in found}) == 1 else f"{reason}, ..."
                lines.append(f"{many} refused before training: {such}")
        self._draws.clear()
        return lines

    def kinds(self) -> frozenset[str]:
        """What draws were refused for."""
        return frozenset(kind for _, kind, _ in self._draws)

    def advice(self) -> str:
        """What helps, by the kinds of refusals."""
        kinds = self.kinds()
        return "; ".join(told for kind, told in _ADVICE.items() if kind in kinds)

    def why(self) -> str:
        """The kinds of refusals and their numbers, in words."""
        kinds = [kind for _, kind, _ in self._draws]
        counts = {kind: kinds.count(kind) for kind in _KINDS}
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


_ADVICE = {
    BOUNDS: f"wider bounds let more through (with --accept-changes, or {ANOTHER_NAME})",
    PRUNED: "the same command draws on when the space lets more through",
    REPEATED: "a space with more in it gives more: the same command draws on where ranges of "
    f"numbers have grown, choices that have changed need {ANOTHER_NAME}",
}


class Trained:
    """The trials that were, or are being, trained, by their parameters."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._rows: dict[str, list[FrozenTrial]] = {}

    def add(self, row: FrozenTrial) -> None:
        self.drop(row)  # as it was read before it was taken up again
        self._rows.setdefault(_key(row.params), []).append(row)

    def read(self, row: FrozenTrial) -> None:
        """Takes over what the books say of a trial: those that failed may be drawn again."""
        if row.state in (TrialState.COMPLETE, TrialState.RUNNING) or PARTIAL in row.user_attrs:
            self.add(row)

    def drop(self, row: FrozenTrial) -> None:
        """Forgets a trial, as one that failed."""
        rows = self._rows.get(_key(row.params), [])
        rows[:] = [other for other in rows if other.number != row.number]

    def before(
        self, number: int, params: Mapping[str, Any], drawn: object, recipes: str
    ) -> FrozenTrial | None:
        """An earlier trial of the same parameters for which the space gives the same, and that is
        trained under the same `recipes`, if there is one: a space may look at a trial's number, and
        a study may have changed."""
        for row in self._rows.get(_key(params), []):
            same = row.user_attrs.get(RECIPES, recipes) == recipes
            if row.number < number and same and self._gave(row) == drawn:
                return row
        return None

    def _gave(self, row: FrozenTrial) -> object:
        try:
            return self._space(FixedTrial(dict(row.params), number=row.number))
        except Exception:  # the user's code, edited since
            return None


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), sort_keys=True, default=repr)
