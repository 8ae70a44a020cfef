"""What people ask of a search through its storage: points to try. Each request is one attribute of
the sampler's study, of a name of its own: written whole or not at all, and by nobody else."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from planter.driver.trials.given import Params, Ranges, add_ranges, given_point
from planter.study.space import Space

ENQUEUED = "enqueued"
"""Attribute of a row: the point that it was given, and the request it is of, if of one."""
_POINTS, _REFUSED, _RANGES = "enqueue/", "refused/", "ranges"


def ask_for_points(storage: BaseStorage, study: int, points: Sequence[Params]) -> None:
    """Writes points to try, in this order, behind those that were asked for before."""
    # No two processes write the same attribute: neither can overwrite what the other asks for.
    name = f"{_POINTS}{time.time_ns():020d}-{secrets.token_hex(4)}"
    storage.set_study_user_attr(study, name, list(points))


def asked_points(attributes: Mapping[str, Any]) -> dict[str, Params]:
    """The points that were asked for and that the search has not refused, in their order, each by
    its name."""
    asked = {
        f"{name.removeprefix(_POINTS)}/{number}": point
        for name in sorted(attributes)
        if name.startswith(_POINTS)
        for number, point in enumerate(attributes[name])
    }
    return {name: point for name, point in asked.items() if f"{_REFUSED}{name}" not in attributes}


def points_waiting(attributes: Mapping[str, Any], rows: Sequence[FrozenTrial]) -> int:
    """How many points were asked for and are no row yet."""
    taken = {row.user_attrs.get(ENQUEUED, {}).get("request") for row in rows}
    return sum(name not in taken for name in asked_points(attributes))


def read_ranges(attributes: Mapping[str, Any], rows: Sequence[FrozenTrial]) -> Ranges:
    """The parameters of a search's space, by the draws of its check and by its rows."""
    ranges: Ranges = {}
    for name, each in attributes.get(_RANGES, {}).items():
        for text in each:
            add_ranges(ranges, {name: json_to_distribution(text)})
    for row in rows:
        add_ranges(ranges, row.distributions)
    return ranges


class Enqueued:
    """The points that a search's sampler is given rather than draws: the study's own, then those
    asked for, each once."""

    def __init__(
        self,
        study: optuna.Study,
        own: Sequence[Params],
        space: Space,
        ranges: Ranges,
    ) -> None:
        """`own` are in the words of the space, of whose parameters draws have shown `ranges`."""
        self._study = study
        self._space = space
        self._ranges = ranges
        rows = study.get_trials(deepcopy=False)
        marks = [row.user_attrs[ENQUEUED] for row in rows if ENQUEUED in row.user_attrs]
        self._taken = {mark["request"] for mark in marks if "request" in mark}
        used = Counter(_key(mark["point"]) for mark in marks if "request" not in mark)
        self._own = []
        for point in own:
            if used[_key(point)]:
                used[_key(point)] -= 1
            else:
                self._own.append(point)
        # One that a kill left between being given and being asked for.
        self._given = any(row.state == TrialState.WAITING for row in rows)
        shown = {name: [distribution_to_json(one) for one in each] for name, each in ranges.items()}
        if study.user_attrs.get(_RANGES) != shown:
            study.set_user_attr(_RANGES, shown)

    def give(self) -> list[str]:
        """Lets the next trial that is asked for have the next point, if there is one. What was
        refused on the way, in words."""
        refused: list[str] = []
        if self._given:
            self._given = False
            return refused
        if self._own:
            point = self._own.pop(0)
            self._study.enqueue_trial(point, user_attrs={ENQUEUED: {"point": point}})
            return refused
        for name, point in asked_points(self._study.user_attrs).items():
            if name in self._taken:
                continue
            self._taken.add(name)
            try:
                point = given_point(point, self._space, self._ranges).params
            except ValueError as error:
                self._study.set_user_attr(f"{_REFUSED}{name}", str(error))
                refused.append(f"an enqueued point is refused: {error}")
                continue
            mark = {"point": point, "request": name}
            self._study.enqueue_trial(point, user_attrs={ENQUEUED: mark})
            return refused
        return refused


def _key(point: Params) -> str:
    return json.dumps(point, sort_keys=True, default=repr)
