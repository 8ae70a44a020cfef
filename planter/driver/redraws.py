"""Draws that give nothing to train: why, how often in a row, and what is known to be trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from planter.driver.jobs import trial_id
from planter.driver.stopping import PARTIAL

IN_A_ROW = 100
"""Draws in a row that give nothing to train, after which a search draws no more."""
REFUSED, REDRAWN = "refused", "redrawn"
"""Attributes of a row: by how much its networks miss the bounds; why else it was not trained."""

BOUNDS, PRUNED, REPEATED = "beyond the bounds", "pruned by the space", "trained before"


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
        for kind in (BOUNDS, PRUNED, REPEATED):
            found = [(trial, reason) for trial, of, reason in self._draws if of == kind]
            if found:
                (first, reason), (last, _) = found[0], found[-1]
                many = f"{first} to {last} ({len(found)} draws)" if len(found) > 1 else first
                such = reason if len({reason for _, reason in found}) == 1 else f"{reason}, ..."
                lines.append(f"{many} refused before training: {such}")
        self._draws.clear()
        return lines

    def why(self) -> str:
        """The kinds of refusals and their numbers, in words."""
        kinds = [kind for _, kind, _ in self._draws]
        counts = {kind: kinds.count(kind) for kind in (BOUNDS, PRUNED, REPEATED)}
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


class Trained:
    """The parameters that trials were, or are being, trained with. The same parameters are the same
    network and recipe: a space depends on nothing else."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def add(self, row: FrozenTrial) -> None:
        self._first.setdefault(_key(row.params), row.number)

    def read(self, row: FrozenTrial) -> None:
        """Takes over what the books say of a trial: those that failed may be drawn again."""
        finished = row.state in (TrialState.COMPLETE, TrialState.RUNNING)
        if finished or PARTIAL in row.user_attrs:
            self.add(row)

    def drop(self, row: FrozenTrial) -> None:
        """The trial failed."""
        key = _key(row.params)
        if self._first.get(key) == row.number:
            del self._first[key]

    def before(self, number: int, params: Mapping[str, Any]) -> str | None:
        """The id of an earlier trial with these parameters, if there is one."""
        first = self._first.get(_key(params))
        return trial_id(first) if first is not None and first < number else None


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), sort_keys=True, default=repr)
