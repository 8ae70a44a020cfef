"""Planting as a proposer: rounds of candidates, each a row of the study `<name>/planting`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from planter.arch import Architecture
from planter.backbones import canonical
from planter.driver.proposers.planting_rows import planting_table, point_of, row_id
from planter.driver.proposers.proposer import Notice, Proposer, SearchContext
from planter.driver.storage.open_rows import write_attributes
from planter.driver.storage.points import open_study, read_result, write_result
from planter.driver.trials.bounds import LATENCY, Weighed, limits_of
from planter.driver.trials.jobs import Job, Outcome, SearchStoppedError
from planter.front.points import PLANTING_COLUMNS, Point, to_csv
from planter.planting.plants import accept, channels_to_plant
from planter.plots import Figure, growth_figure
from planter.study.schema import Plant

START = "p00-start"
GROWN, FINAL = "grown", "final"
"""In the place of a layer: all plants a round accepts in one network, and the end's fine-tuning."""


class Rounds(Proposer):
    """Round 0 is the initial network; each later round holds a candidate for every layer that may
    grow and, where several are accepted or all weights are trained, the network grown by them. A
    round's rows stay open with their results until the round is decided.
    """

    method = "plant"
    kinds = ("start", "plant", "grow")
    representative = ("plant", "grow")

    def __init__(self, context: SearchContext) -> None:
        study = context.study
        assert study.plant is not None
        self._name = study.name
        self._settings = study.plant
        self._limits = limits_of(study, study.plant)
        self._layers = list(context.prepared.layers)
        self._book = context.book
        self._workers = max(context.workers, 1)
        self._latencies = context.latencies
        self._start = context.prepared.networks["start"].architecture
        self._study = open_study(
            context.storage, f"{study.name}/planting", {"val_loss": "minimize"}
        )
        self._rows = {row.user_attrs["id"]: row for row in self._study.get_trials()}
        self._handed: set[str] = set()
        self._dealt: list[list[FrozenTrial]] = []
        self._current: list[str] = []
        self._parent: FrozenTrial | None = None
        self._verdicts: list[Notice] = []
        self._latencies.learn_points(filter(None, map(point_of, self._rows.values())))
        self._advance()

    @classmethod
    def of(cls, context: SearchContext) -> Self | None:
        """None for a study that does not plant."""
        return None if context.study.plant is None else cls(context)

    def next(self) -> Job | None:
        if not self._dealt:
            waiting = [
                row
                for row in self._open_rows()
                if row_id(row) not in self._handed and read_result(row) is None
            ]
            # A worker trains its share of a round in one go, on one pass over the images.
            shares = (waiting[first :: self._workers] for first in range(self._workers))
            self._dealt = [share for share in shares if share]
        if not self._dealt:
            return None
        share = self._dealt.pop(0)
        self._handed |= {row_id(row) for row in share}
        row = share[0]
        facts = {"round": row.params["round"], "parent": row.user_attrs["parent"]}
        if row_id(row) == START:
            return Job(START, "start")
        if row.params["layer"] in (GROWN, FINAL):
            plants, lineage = row.user_attrs["plants"], self.accepted()
            return Job(row_id(row), "grow", {**facts, "plants": plants, "lineage": lineage})
        plants = [
            {"id": row_id(one), "layer": one.params["layer"], "channels": one.params["channels"]}
            for one in share
        ]
        return Job(row_id(row), "plant", {**facts, "plants": plants})

    def finish(self, job: Job, outcome: Outcome) -> None:
        self._handed -= set(job.trials)
        if job.id == START and "error" in outcome:
            # Its row stays open: when the study is continued, it is tried again.
            raise SearchStoppedError(f"the initial network of planting failed: {outcome['error']}")
        for name, one in job.outcomes(outcome).items():
            row = self._rows[name]
            write_result(self._study, row, self._latencies.added(one, row.user_attrs.get(LATENCY)))
            self._reload(name)
        self._advance()

    def take_back(self, job: Job) -> None:
        self._handed -= set(job.trials)

    def left(self) -> int:
        """The round's open candidates and, at most, all of the rounds to come."""
        opened = self._open_rows()
        if not opened:
            return 0
        settings = self._settings
        waiting = sum(read_result(row) is None for row in opened)
        together = int(_has_grown(settings))
        if opened[0].params["layer"] == FINAL:
            return waiting
        rounds = settings.rounds - int(opened[0].params["round"])
        left = waiting + rounds * (len(self._layers) + together) + int(settings.final is not None)
        if together and opened[0].params["round"] and opened[-1].params["layer"] != GROWN:
            left += 1
        return left

    def done(self) -> int:
        weighed = [row for row in self._rows.values() if row.state != TrialState.PRUNED]
        return sum(row.state.is_finished() or read_result(row) is not None for row in weighed)

    def failed(self) -> int:
        return sum(row.state == TrialState.FAIL for row in self._rows.values())

    def failures(self) -> dict[str, str]:
        return {
            name: str(row.user_attrs.get("error", "its validation loss is no number"))
            for name, row in self._rows.items()
            if row.state == TrialState.FAIL
        }

    def accepted(self) -> list[str]:
        """Ids of the accepted networks, the initial one first."""
        rows = sorted(self._rows.values(), key=lambda row: int(row.params["round"]))
        return [row_id(row) for row in rows if row.user_attrs.get("accepted")]

    def needed(self) -> set[str]:
        """The open round's networks, the one they grow from, and the last accepted."""
        parent = set() if self._parent is None else {row_id(self._parent)}
        return {row_id(row) for row in self._open_rows()} | parent | set(self.accepted()[-1:])

    def notices(self) -> list[Notice]:
        told, self._verdicts = self._verdicts, []
        return told

    def results(self, points: Sequence[Point]) -> list[Point]:
        """All but the initial network, which is trained before anything is searched for."""
        return [point for point in super().results(points) if point.trial != START]

    def remedy(self) -> str:
        return "plants that failed are not tried again"

    def documents(self) -> dict[str, str]:
        return {"planting.csv": to_csv(self.table(), PLANTING_COLUMNS)}

    def figures(self) -> dict[str, Figure]:
        rows = self.table()
        return {"planting.html": growth_figure(self._name, rows)} if rows else {}

    def table(self) -> list[dict[str, Any]]:
        """A row for each finished candidate, as planting.csv shows it."""
        return planting_table(self._rows.values())

    def _advance(self) -> None:
        """Opens and decides rounds as far as results allow; safe to repeat after any kill."""
        self._current = [row_id(row) for row in self._walk()]

    def _walk(self) -> list[FrozenTrial]:
        """The rows that results are still missing of, those of the round that is open."""
        self._parent, number, idle = None, 0, 0
        while number <= self._settings.rounds and idle <= self._settings.patience:
            rows = self._round(number)
            if not rows:
                break  # every candidate is beyond a bound
            self._leave_final(number)
            opened = not any(row.state.is_finished() for row in rows)
            if any(read_result(row) is None for row in rows):
                return rows
            if number and (grown := self._grown(number, rows)) is not None:
                rows = [*rows, grown]
                if read_result(grown) is None:
                    return rows
            chosen = self._decide(rows)
            idle = idle + 1 if chosen is None else 0
            if number and opened:
                self._verdicts.append(Notice(self._verdict(number, chosen, idle)))
            self._parent = chosen or self._parent
            number += 1
        if self._settings.final is None:
            return []
        last = self._row(number, FINAL, 0, plants=[])
        if read_result(last) is None:
            return [last]
        self._decide([last])
        return []

    def _leave_final(self, number: int) -> None:
        """Closes the end's fine-tuning where more rounds were asked for before it was trained."""
        last = self._rows.get(f"p{number:02d}-{FINAL}")
        if last is None or last.state.is_finished():
            return
        if read_result(last) is not None:
            self._decide([last])
            return
        self._study.tell(last.number, state=TrialState.PRUNED)
        self._reload(row_id(last))

    def _round(self, number: int) -> list[FrozenTrial]:
        """The rows of a round's candidates, added where they are not there yet."""
        if self._parent is None:
            return [self._row(number, "start", 0)]
        point = point_of(self._parent)
        assert point is not None
        network = Architecture.from_dict(point.architecture)
        settings = self._settings
        rows = [
            self._row(
                number,
                layer,
                channels_to_plant(network.width(layer), settings.channels, settings.multiple),
            )
            for layer in self._layers
        ]
        return [row for row in rows if row.state != TrialState.PRUNED]

    def _grown(self, number: int, rows: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The row of the network with all the plants a round accepts, where it is one of its own:
        several plants, or all weights trained once more."""
        name = f"p{number:02d}-{GROWN}"
        if name in self._rows or any(row.state.is_finished() for row in rows):
            return self._rows.get(name)
        plants = self._improving(rows)
        if not plants and self._settings.finetune is not None:
            # What the trained network gives decides, not what the plant alone does.
            plants = self._improving(rows, bar=math.inf)[:1]
        if not plants or (len(plants) == 1 and self._settings.finetune is None):
            return None
        channels = sum(int(row.params["channels"]) for row in plants)
        return self._row(number, GROWN, channels, plants=[row_id(row) for row in plants])

    def _row(
        self, number: int, layer: str, channels: int, plants: list[str] | None = None
    ) -> FrozenTrial:
        name = f"p{number:02d}-{layer}"
        if name not in self._rows:
            beyond, timed, _ = self._weigh_row(layer, channels, plants or [])
            refused = any(value > 0 for value in beyond.values())
            template = optuna.trial.create_trial(
                state=TrialState.PRUNED if refused else TrialState.RUNNING,
                constraints=beyond,
                params={"round": number, "layer": layer, "channels": channels},
                distributions={
                    "round": IntDistribution(0, 10_000),
                    "layer": CategoricalDistribution(["start", *self._layers, GROWN, FINAL]),
                    "channels": IntDistribution(0, 1_000_000),
                },
                user_attrs={
                    "id": name,
                    "parent": None if self._parent is None else row_id(self._parent),
                    **({} if plants is None else {"plants": plants}),
                    **({LATENCY: timed} if timed else {}),
                },
            )
            self._study.add_trial(template)
            self._reload(name)
        return self._rows[name]

    def _weigh_row(self, layer: str, channels: int, plants: Sequence[str]) -> Weighed:
        """How a row's network stands to the bounds; others than candidates are only timed."""
        if self._parent is not None and layer in self._layers:
            return self._weigh({layer: channels})
        network = self._start
        if self._parent is not None:
            network = self._wider(_channels(self._rows[name] for name in plants))
        if LATENCY not in self._limits:
            return Weighed({}, {})
        return Weighed({}, self._latencies.of(network, ["base"]))

    def _weigh(self, channels: Mapping[str, int]) -> Weighed:
        """How the parent with more channels stands to the bounds, before any training."""
        return self._latencies.weigh(self._limits, self._wider(channels), ["base"])

    def _wider(self, channels: Mapping[str, int]) -> Architecture:
        """The parent with more channels."""
        assert self._parent is not None
        point = point_of(self._parent)
        assert point is not None
        wider = Architecture.from_dict(point.architecture)
        for layer, more in channels.items():
            wider = wider.widen(layer, more)
        return canonical(wider)

    def _improving(
        self, rows: Sequence[FrozenTrial], bar: float | None = None
    ) -> list[FrozenTrial]:
        """The candidates that are accepted, best first, as many as the bounds leave room for: those
        with a loss below `bar`, by default the parent's."""
        by_id = {row_id(row): row for row in rows}
        points = {name: point_of(row) for name, row in by_id.items()}
        losses = {name: point.loss for name, point in points.items() if point is not None}
        before = None if self._parent is None else point_of(self._parent)
        if bar is None:
            bar = math.inf if before is None else before.loss
        parent = None if before is None else Architecture.from_dict(before.architecture)
        added = None
        if before is not None and math.isfinite(bar) and self._settings.accept != "loss":
            what = "macs" if self._settings.accept == "loss_per_mac" else "params"
            added = {n: getattr(points[n], what) - getattr(before, what) for n in losses}
        chosen: list[FrozenTrial] = []
        for name in accept(losses, bar, added, most=len(losses)):
            if len(chosen) == self._settings.per_round:
                break
            layer = by_id[name].params["layer"]
            if parent is not None and any(
                parent.overlap(layer, other) for other in _channels(chosen)
            ):
                continue  # the plants would have channels in one place
            together = _channels([*chosen, by_id[name]])
            if before is None or max(self._weigh(together).beyond.values(), default=0.0) <= 0:
                chosen.append(by_id[name])
        return chosen

    def _decide(self, rows: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """Writes which network planting goes on with, then closes the rows; that row, if any."""
        if any(row.state.is_finished() for row in rows):
            # Decided before, perhaps under other settings, and at most not closed to the end.
            chosen = next((row for row in rows if row.user_attrs.get("accepted")), None)
        else:
            chosen = self._best(rows)
        for row in rows:
            if row.state.is_finished():
                continue
            told: dict[str, Any] = {}
            if (point := point_of(row)) is not None:
                told = {key: getattr(point, key) for key in ("accuracy", "macs", "params")}
            elif (reason := (read_result(row) or {}).get("error")) is not None:
                told = {"error": reason}
            write_attributes(self._study, row, {**told, "accepted": row is chosen})
        for row in rows:
            point = point_of(row)
            if not row.state.is_finished():
                state = TrialState.FAIL if point is None else TrialState.COMPLETE
                self._study.tell(row.number, None if point is None else point.loss, state=state)
                self._reload(row_id(row))
            if point is not None:
                # Names of their own beside those of a search space, which stand in the same study.
                self._book.add(
                    [point],
                    {f"plant_{key}": value for key, value in row.params.items()},
                    {f"plant_{key}": kind for key, kind in row.distributions.items()},
                )
        return None if chosen is None else self._rows[row_id(chosen)]

    def _best(self, rows: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The accepted candidate, or what was grown from the accepted ones if its loss is below
        that; of the end's fine-tuning, if it is below the last network's."""
        single = [row for row in rows if row.params["layer"] not in (GROWN, FINAL)]
        chosen = next(iter(self._improving(single)), None)
        for row in rows:
            if row not in single and (point := point_of(row)) is not None:
                rival = point_of(chosen or self._parent or row)
                assert rival is not None
                chosen = row if point.loss < rival.loss else chosen
        return chosen

    def _verdict(self, number: int, chosen: FrozenTrial | None, idle: int) -> str:
        if chosen is None:
            ends = ", planting ends" if idle > self._settings.patience else ""
            return f"planting round {number}: no candidate improves{ends}"
        layers = [
            str(self._rows[name].params["layer"]) for name in chosen.user_attrs.get("plants", [])
        ]
        plants = f" ({' + '.join(layers)})" if layers else ""
        return f"planting round {number}: accepted {row_id(chosen)}{plants}"

    def _open_rows(self) -> list[FrozenTrial]:
        """Those of the round at hand: rows that other settings had opened are left alone."""
        rows = [self._rows[name] for name in self._current]
        return [row for row in rows if not row.state.is_finished()]

    def _reload(self, name: str) -> None:
        number = self._rows[name].number if name in self._rows else len(self._rows)
        self._rows[name] = self._study.get_trials(deepcopy=True)[number]


def _has_grown(settings: Plant) -> bool:
    return settings.per_round > 1 or settings.finetune is not None


def _channels(rows: Iterable[FrozenTrial]) -> dict[str, int]:
    """What candidates plant, by layer."""
    return {row.params["layer"]: int(row.params["channels"]) for row in rows}
