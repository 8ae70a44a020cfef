"""The books of planting's rounds, without any training: losses are drawn, networks are counted."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from planter import Architecture, cost
from planter.costs.macs import Cost
from planter.driver.proposers.planting import Rounds
from planter.driver.proposers.proposer import SearchContext
from planter.driver.storage.points import PointBook
from planter.driver.trials.bounds import Latencies
from planter.driver.trials.jobs import Job
from planter.driver.trials.networks import Planned
from planter.study.schema import Bounds, Plant, Study
from planter.training.recipe import Recipe

LAYERS = ("conv1", "conv2", "conv3")
START = Architecture(
    "convnet",
    {**dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5"), 3), "fc1": 6},
    {"image": [1, 8, 8], "classes": 4},
)
RECIPE = Recipe(epochs=1)


_costs: dict[str, Cost] = {}


def counted(architecture: Architecture) -> Cost:
    """`cost`, which runs a network, once for each."""
    key = architecture.key()
    if key not in _costs:
        _costs[key] = cost(architecture)
    return _costs[key]


@pytest.fixture(autouse=True, scope="module")
def _counted_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planter.driver.trials.bounds.cost", counted)
        yield


def study(**plant: Any) -> Study:
    return Study(name="sim", plant=Plant(**{"channels": 2, **plant}))


class Losses:
    """A loss for each trial's id: few values, so that ties are frequent; now and then a failure."""

    def __init__(self, seed: int, failures: float = 0.0, fall: float = 0.4) -> None:
        self._seed, self._failures, self._fall = seed, failures, fall

    def __call__(self, name: str) -> float | None:
        draw = random.Random(f"{self._seed}/{name}")
        if name != "p00-start" and draw.random() < self._failures:
            return None
        number = int(name[1:3])
        return 8 - self._fall * number - draw.randrange(4) / 4


class Networks:
    """What is trained: each trial's widths, as the worker would make them from its job."""

    def __init__(self) -> None:
        self.of: dict[str, Architecture] = {}

    def outcome(self, job: Job, loss: Callable[[str], float | None]) -> dict[str, Any]:
        if job.kind == "start":
            self.of[job.id] = START
            return outcome(START, loss(job.id))
        before = self.of[job.params["parent"]]
        if job.kind == "grow":
            wider = before
            for name in job.params["plants"]:
                for layer, width in self.of[name].widths.items():
                    if width > before.widths[layer]:
                        wider = wider.widen(layer, width - before.widths[layer])
            self.of[job.id] = wider
            return outcome(wider, loss(job.id))
        found = {}
        for one in job.params["plants"]:
            self.of[one["id"]] = before.widen(one["layer"], one["channels"])
            found[one["id"]] = outcome(self.of[one["id"]], loss(one["id"]))
        return {"trials": found}


def outcome(architecture: Architecture, loss: float | None) -> dict[str, Any]:
    if loss is None:
        return {"error": "FloatingPointError: nan"}
    found = counted(architecture)
    point = {
        "pipeline": "base",
        "accuracy": 0.5,
        "loss": loss,
        "macs": found.macs,
        "params": found.params,
        "architecture": architecture.to_dict(),
    }
    return {"points": [point], "train_macs": 1, "seconds": 0.0}


class Books:
    """A storage and the books in it, which are opened anew after a kill. In memory: what SQLite
    makes of the same writes, tests/test_driver_planting.py shows."""

    def __init__(self) -> None:
        self.storage: Any = InMemoryStorage()
        self.networks = Networks()
        self.trained: list[str] = []

    def open(self, settings: Study, workers: int = 1) -> Rounds:
        book, latencies = PointBook(self.storage, settings.name), Latencies(settings)
        networks = {"start": Planned(START, RECIPE)}
        prepared: Any = SimpleNamespace(layers=LAYERS, networks=networks)
        return Rounds(
            SearchContext(
                settings,
                self.storage,
                prepared,
                book,
                [0.0, 1.0],
                latencies,
                workers,
                Path("nowhere"),
                lambda: math.inf,
            )
        )

    def finish(
        self, rounds: Rounds, losses: Callable[[str], float | None], *, jobs: int = 10_000
    ) -> None:
        """Trains up to so many jobs, in the order they are handed out."""
        for _ in range(jobs):
            job = rounds.next()
            if job is None:
                assert rounds.left() == 0, "nothing to train, and yet not done"
                return
            self.trained += job.trials
            rounds.finish(job, self.networks.outcome(job, losses))

    def rows(self) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name="sim/planting", storage=self.storage).get_trials()


class Row(NamedTuple):
    round: int
    layer: str
    channels: int
    accepted: bool
    widths: str
    loss: float


def table(rounds: Rounds) -> list[Row]:
    return [
        Row(r["round"], r["layer"], r["channels"], r["accepted"], r["widths"], r["val_loss"])
        for r in rounds.table()
    ]


@dataclass
class Oracle:
    """The rule of the rounds, written down once more: what planting.csv must say."""

    plant: Plant
    loss: Callable[[str], float | None]

    def table(self) -> list[Row]:
        parent, parent_loss = dict(START.widths), self.loss("p00-start")
        assert parent_loss is not None
        found = [self._row(0, "start", 0, True, parent, parent_loss)]
        idle, number = 0, 1
        while number <= self.plant.rounds and idle <= self.plant.patience:
            candidates = [x for x in LAYERS if self._allowed({**parent, x: parent[x] + 2})]
            if not candidates:
                break
            rows, winner = self._round(number, candidates, parent, parent_loss)
            found += rows
            if winner is None:
                idle += 1
            else:
                idle, (parent, parent_loss) = 0, winner
            number += 1
        if self.plant.final is not None:
            loss = self.loss(f"p{number:02d}-final")
            if loss is not None:
                found.append(self._row(number, "final", 0, loss < parent_loss, parent, loss))
        return found

    def _round(
        self, number: int, candidates: list[str], parent: dict[str, int], bar: float
    ) -> tuple[list[Row], tuple[dict[str, int], float] | None]:
        losses = {x: self.loss(f"p{number:02d}-{x}") for x in candidates}
        scored = {x: loss for x, loss in losses.items() if loss is not None}
        widths = {x: {**parent, x: parent[x] + 2} for x in scored}

        def worth(layer: str) -> float:
            if self.plant.accept == "loss":
                return -scored[layer]
            which = "macs" if self.plant.accept == "loss_per_mac" else "params"
            more = measure(widths[layer], which) - measure(parent, which)
            return (bar - scored[layer]) / more

        # Best first; of equal ones the one whose layer is named first.
        better = [x for x in LAYERS if x in scored and scored[x] < bar]
        ranked: list[str] = []
        while better:
            best = max(better, key=lambda x: (worth(x), -LAYERS.index(x)))
            ranked.append(best)
            better.remove(best)
        plants = self._fitting(ranked, parent)
        winner = (widths[plants[0]], scored[plants[0]]) if plants else None
        accepted = plants[0] if plants else None
        if not plants and self.plant.finetune is not None and scored:
            plants = [min(scored, key=lambda x: (scored[x], LAYERS.index(x)))]
        grown = None
        if len(plants) > 1 or (plants and self.plant.finetune is not None):
            loss = self.loss(f"p{number:02d}-grown")
            if loss is not None:
                merged = {x: w + 2 * (x in plants) for x, w in parent.items()}
                wins = loss < (bar if winner is None else winner[1])
                if wins:
                    winner, accepted = (merged, loss), "grown"
                grown = self._row(number, "grown", 2 * len(plants), wins, merged, loss)
        rows = [
            self._row(number, x, 2, x == accepted, widths[x], scored[x])
            for x in LAYERS
            if x in scored
        ]
        return [*rows, *([grown] if grown else [])], winner

    def _fitting(self, ranked: list[str], parent: dict[str, int]) -> list[str]:
        chosen: list[str] = []
        for layer in ranked:
            merged = {x: w + 2 * (x in [*chosen, layer]) for x, w in parent.items()}
            if len(chosen) < self.plant.per_round and self._allowed(merged):
                chosen.append(layer)  # else the next best may have room
        return chosen

    def _allowed(self, widths: Mapping[str, int]) -> bool:
        limits = self.plant.bounds
        return not any(
            most is not None and measure(widths, which) > most
            for which, most in (("macs", limits.macs), ("params", limits.params))
        )

    @staticmethod
    def _row(
        number: int,
        layer: str,
        channels: int,
        accepted: bool,
        widths: Mapping[str, int],
        loss: float,
    ) -> Row:
        shown = " ".join(f"{name}={width}" for name, width in widths.items())
        return Row(number, layer, channels, accepted, shown, loss)


def measure(widths: Mapping[str, int], which: str) -> int:
    """Multiply-adds or parameters of the five-convolution network on 8 x 8 images, by hand."""
    macs = params = 0
    inputs, pixels = 1, 64
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        macs += 9 * inputs * widths[name] * pixels
        params += 9 * inputs * widths[name] + widths[name]
        if name in ("conv1", "conv2", "conv5"):
            pixels //= 4
        inputs = widths[name]
    for outputs in (widths["fc1"], 4):
        macs += inputs * outputs
        params += inputs * outputs + outputs
        inputs = outputs
    return macs if which == "macs" else params


@st.composite
def plants(draw: st.DrawFn) -> Plant:
    bound = draw(st.sampled_from([None, 1.05, 1.4, 2.0]))
    which = draw(st.sampled_from(["macs", "params"]))
    bounds = {} if bound is None else {which: int(bound * measure(START.widths, which))}
    return Plant(
        channels=2,
        rounds=draw(st.integers(0, 4)),
        accept=draw(st.sampled_from(["loss", "loss_per_mac", "loss_per_param"])),
        per_round=draw(st.integers(1, 3)),
        patience=draw(st.integers(0, 2)),
        finetune=draw(st.sampled_from([None, RECIPE])),
        final=draw(st.sampled_from([None, RECIPE])),
        bounds=Bounds(**bounds),
    )


LOSSES = st.builds(
    Losses, st.integers(0, 2**16), st.sampled_from([0.0, 0.2]), st.sampled_from([0.1, 0.4])
)


def test_the_hand_count_of_the_oracle_is_the_networks_cost() -> None:
    for widths in (START.widths, {**START.widths, "conv2": 7}):
        found = cost(Architecture("convnet", widths, START.options))
        assert found.macs == measure(widths, "macs")
        assert found.params == measure(widths, "params")


@settings(max_examples=40)
@given(plants(), LOSSES, st.integers(1, 4))
def test_rounds_decide_what_the_written_rule_decides(
    plant: Plant, losses: Losses, workers: int
) -> None:
    books, asked = Books(), Study(name="sim", plant=plant)
    rounds = books.open(asked, workers)
    books.finish(rounds, losses)
    assert table(rounds) == Oracle(plant, losses).table()
    # Nothing is trained twice, and nothing that was trained is left open.
    assert len(books.trained) == len(set(books.trained))
    assert all(row.state.is_finished() for row in books.rows())
    told = {row.user_attrs["id"] for row in books.rows() if row.state.name != "PRUNED"}
    assert told == set(books.trained)


@settings(max_examples=20)
@given(plants(), LOSSES, st.data())
def test_books_opened_anew_after_any_job_go_on_as_if_nothing_had_happened(
    plant: Plant, losses: Losses, data: st.DataObject
) -> None:
    books, asked = Books(), Study(name="sim", plant=plant)
    for _ in range(40):
        rounds = books.open(asked, data.draw(st.integers(1, 4)))
        if rounds.left() == 0:
            break
        books.finish(rounds, losses, jobs=data.draw(st.integers(1, 3)))
        rounds.next()  # handed to a worker that is killed with its driver
    assert table(rounds) == Oracle(plant, losses).table()
    assert len(books.trained) == len(set(books.trained))


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 5])
def test_a_round_is_dealt_out_in_shares_of_equal_size(workers: int) -> None:
    books = Books()
    rounds = books.open(study(rounds=1), workers)
    books.finish(rounds, Losses(0), jobs=1)
    shares = []
    while (job := rounds.next()) is not None:
        assert job.kind == "plant"
        assert job.id == job.trials[0]
        shares.append(job.trials)
    assert len(shares) == min(max(workers, 1), 3)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted(itertools.chain(*shares)) == ["p01-conv1", "p01-conv2", "p01-conv3"]


@settings(max_examples=20)
@given(plants(), LOSSES, st.integers(1, 3))
def test_what_is_left_falls_to_nothing_and_never_below_what_is_to_come(
    plant: Plant, losses: Losses, workers: int
) -> None:
    """`left` is an upper bound of the trials to come."""
    books = Books()
    rounds = books.open(Study(name="sim", plant=plant), workers)
    told, before = [], []
    while (job := rounds.next()) is not None:
        told.append(rounds.left())
        before.append(len(books.trained))
        books.trained += job.trials
        rounds.finish(job, books.networks.outcome(job, losses))
    assert rounds.left() == 0
    for left, trained in zip(told, before, strict=True):
        assert left >= len(books.trained) - trained


@settings(max_examples=20)
@given(plants(), LOSSES)
def test_networks_that_are_read_later_are_needed_until_then(plant: Plant, losses: Losses) -> None:
    books = Books()
    rounds = books.open(Study(name="sim", plant=plant), 2)
    while (job := rounds.next()) is not None:
        read = {name for name in [job.params.get("parent")] if name}
        if job.kind == "grow":
            read |= set(job.params["plants"])
        assert read <= rounds.needed()
        assert read <= set(books.trained)
        books.trained += job.trials
        rounds.finish(job, books.networks.outcome(job, losses))
    accepted = [row for row in table(rounds) if row.accepted]
    last = accepted[-1]
    grown = [row for row in accepted if row.layer != "final"][-1]
    assert rounds.needed() == {f"p{r.round:02d}-{r.layer}" for r in (last, grown)}


def test_of_equal_candidates_the_first_layer_is_accepted_and_equal_to_the_parent_none() -> None:
    books = Books()
    asked = study(rounds=2)
    losses = {"p00-start": 2.0, **{f"p01-{x}": 1.0 for x in LAYERS}}
    losses |= {f"p02-{x}": 1.0 for x in LAYERS}
    rounds = books.open(asked)
    books.finish(rounds, losses.get)
    accepted = [(row.round, row.layer) for row in table(rounds) if row.accepted]
    assert accepted == [(0, "start"), (1, "conv1")]
    assert any("no candidate improves, planting ends" in notice.text for notice in rounds.notices())


def test_a_failed_candidate_leaves_the_round_to_the_others_and_is_counted() -> None:
    losses = {"p00-start": 2.0, "p01-conv1": 1.5, "p01-conv3": 1.0}
    books = Books()
    rounds = books.open(study(rounds=1), 1)
    books.finish(rounds, losses.get)
    assert [(row.layer, row.accepted) for row in table(rounds)] == [
        ("start", True), ("conv1", False), ("conv3", True)
    ]  # fmt: skip
    assert rounds.failed() == 1
    states = {row.user_attrs["id"]: row.state.name for row in books.rows()}
    assert states["p01-conv2"] == "FAIL"


def test_a_loss_that_is_no_number_is_a_failure_whoever_reports_it() -> None:
    losses = {"p00-start": 2.0, "p01-conv1": math.nan, "p01-conv2": 1.0, "p01-conv3": math.inf}
    books = Books()
    rounds = books.open(study(rounds=1), 1)
    books.finish(rounds, losses.get)
    assert [(row.layer, row.accepted) for row in table(rounds)] == [
        ("start", True), ("conv2", True)
    ]  # fmt: skip
    assert rounds.failed() == 2
