"""Planting as a proposer: rounds of candidates, each a row of the study `<name>/planting`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from planter.arch import Architecture
from planter.driver.jobs import Job, Outcome, SearchStoppedError, points_of
from planter.driver.sampling import excess
from planter.driver.storage import PointBook, open_study, read_result, write_result
from planter.macs import cost
from planter.planting import accept
from planter.study import Study

START = "p00-start"


class Rounds:
    """Round 0 is the initial network; each later round holds a candidate for every layer that may
    grow. A round's rows stay open with their results until the round is decided. See `Proposer`.
    """

    def __init__(
        self, study: Study, storage: RDBStorage, layers: Sequence[str], book: PointBook
    ) -> None:
        assert study.plant is not None
        self._settings = study.plant
        self._limits = study.objectives.bounds.limits()
        self._layers = list(layers)
        self._book = book
        self._study = open_study(storage, f"{study.name}/planting", {"val_loss": "minimize"})
        self._rows = {row.user_attrs["id"]: row for row in self._study.get_trials()}
        self._handed: set[str] = set()
        self._advance()

    def next(self) -> Job | None:
        for row in self._open_rows():
            name = row.user_attrs["id"]
            if name in self._handed or read_result(row) is not None:
                continue
            self._handed.add(name)
            if name == START:
                return Job(START, "start")
            parent = row.user_attrs["parent"]
            params = {key: row.params[key] for key in ("round", "layer", "channels")}
            return Job(name, "plant", {**params, "parent": parent})
        return None

    def finish(self, job: Job, outcome: Outcome) -> None:
        self._handed.discard(job.id)
        if job.id == START and "error" in outcome:
            # Its row stays open: when the study is continued, it is tried again.
            raise SearchStoppedError(f"the initial network of planting failed: {outcome['error']}")
        write_result(self._study, self._rows[job.id], outcome)
        self._reload(job.id)
        self._advance()

    def left(self) -> int:
        """The round's open candidates and, at most, all of the rounds to come."""
        opened = self._open_rows()
        if not opened:
            return 0
        waiting = sum(read_result(row) is None for row in opened)
        rounds = self._settings.rounds - int(opened[0].params["round"])
        return waiting + rounds * len(self._layers)

    def failed(self) -> int:
        return sum(row.state == TrialState.FAIL for row in self._rows.values())

    def accepted(self) -> list[str]:
        """Ids of the accepted networks, the initial one first."""
        rows = sorted(self._rows.values(), key=lambda row: int(row.params["round"]))
        return [row.user_attrs["id"] for row in rows if row.user_attrs.get("accepted")]

    def needed(self) -> set[str]:
        """Ids of the networks that planting still reads: the last accepted and the open round's."""
        names = {row.user_attrs["id"] for row in self._open_rows()}
        return names | set(self.accepted()[-1:])

    def verdict(self, number: int) -> str | None:
        """What was decided of a round, in words; None while it is open."""
        rows = [row for row in self._rows.values() if row.params["round"] == number]
        if any(not row.state.is_finished() for row in rows):
            return None
        chosen = [row.user_attrs["id"] for row in rows if row.user_attrs.get("accepted")]
        if chosen:
            return f"planting round {number}: accepted {chosen[0]}"
        return f"planting round {number}: no candidate improves, planting ends"

    def table(self) -> list[dict[str, Any]]:
        """A row for each finished candidate, as planting.csv shows it."""
        rows = []
        for row in sorted(self._rows.values(), key=lambda row: row.number):
            outcome = read_result(row)
            if outcome is None or "error" in outcome or not row.state.is_finished():
                continue
            (point,) = points_of(row.user_attrs["id"], "plant", outcome)
            rows.append(
                {
                    "round": row.params["round"],
                    "layer": row.params["layer"],
                    "channels": row.params["channels"],
                    "accepted": row.user_attrs["accepted"],
                    "widths": " ".join(
                        f"{name}={width}" for name, width in point.architecture["widths"].items()
                    ),
                    "params": point.params,
                    "macs": point.macs,
                    "val_loss": point.loss,
                    "val_accuracy": point.accuracy,
                    "seconds": point.seconds,
                }
            )
        return rows

    def _advance(self) -> None:
        """Opens and decides rounds as far as results allow; safe to repeat after any kill."""
        number = 0
        parent: FrozenTrial | None = None
        while number <= self._settings.rounds:
            rows = self._round(number, parent)
            results = {row.user_attrs["id"]: read_result(row) for row in rows}
            if any(result is None for result in results.values()):
                return
            parent = self._decide(rows, results, parent)
            if parent is None:
                return
            number += 1

    def _round(self, number: int, parent: FrozenTrial | None) -> list[FrozenTrial]:
        """The rows of a round, added where they are not there yet."""
        layers = ["start"] if parent is None else self._layers
        rows = []
        for layer in layers:
            name = f"p{number:02d}-{layer}"
            if name not in self._rows:
                beyond = {} if parent is None else self._beyond(parent, layer)
                refused = any(value > 0 for value in beyond.values())
                template = optuna.trial.create_trial(
                    state=TrialState.PRUNED if refused else TrialState.RUNNING,
                    constraints=beyond,
                    params={
                        "round": number,
                        "layer": layer,
                        "channels": 0 if parent is None else self._settings.channels,
                    },
                    distributions={
                        "round": IntDistribution(0, 10_000),
                        "layer": CategoricalDistribution(["start", *self._layers]),
                        "channels": IntDistribution(0, 10_000),
                    },
                    user_attrs={
                        "id": name,
                        "parent": None if parent is None else parent.user_attrs["id"],
                    },
                )
                self._study.add_trial(template)
                self._reload(name)
            if self._rows[name].state != TrialState.PRUNED:
                rows.append(self._rows[name])
        return rows

    def _beyond(self, parent: FrozenTrial, layer: str) -> dict[str, float]:
        """How a candidate stands to the study's bounds, before any training."""
        outcome = read_result(parent)
        assert outcome is not None
        architecture = Architecture.from_dict(outcome["points"][0]["architecture"])
        return excess(self._limits, [cost(architecture.widen(layer, self._settings.channels))])

    def _decide(
        self,
        rows: Sequence[FrozenTrial],
        results: Mapping[str, Any],
        parent: FrozenTrial | None,
    ) -> FrozenTrial | None:
        """Writes which candidate is accepted, then closes the round; the accepted row, if any."""
        losses = {
            name: result["points"][0]["loss"]
            for name, result in results.items()
            if "error" not in result and math.isfinite(result["points"][0]["loss"])
        }
        before = float("inf") if parent is None else _loss(parent)
        chosen = accept(losses, before)
        for row in rows:
            if row.state.is_finished():
                continue
            name = row.user_attrs["id"]
            storage = self._study._storage
            storage.set_trial_user_attr(row._trial_id, "accepted", name == chosen)
        for row in rows:
            name = row.user_attrs["id"]
            if not row.state.is_finished():
                failed = name not in losses
                state = TrialState.FAIL if failed else TrialState.COMPLETE
                self._study.tell(row.number, losses.get(name), state=state)
                self._reload(name)
            if name in losses:
                points = points_of(name, "plant", results[name])
                # Names of their own beside those of a search space, which stand in the same study.
                self._book.add(
                    points,
                    {f"plant_{key}": value for key, value in row.params.items()},
                    {f"plant_{key}": kind for key, kind in row.distributions.items()},
                )
        return self._rows[chosen] if chosen is not None else None

    def _open_rows(self) -> list[FrozenTrial]:
        return [row for row in self._rows.values() if not row.state.is_finished()]

    def _reload(self, name: str) -> None:
        number = self._rows[name].number if name in self._rows else len(self._rows)
        self._rows[name] = self._study.get_trials(deepcopy=True)[number]


def _loss(row: FrozenTrial) -> float:
    outcome = read_result(row)
    assert outcome is not None
    return float(outcome["points"][0]["loss"])
