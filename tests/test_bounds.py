"""Bounds before training: what is timed, what is refused, what the books say. Without Ray."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn

import planter
from planter import Architecture
from planter.driver.checking.check import prepare
from planter.driver.outcome import SearchFailedError
from planter.driver.tasks.run_job import TASKS
from planter.driver.trials import bounds
from planter.driver.trials.bounds import Latencies, excess
from planter.study.file import read_study
from planter.study.schema import Study, StudyError

STUDY = """
name: timed
data: {name: digits, subset: 120, validation: 0.25}
teacher: {builder: convnet, widths: 8}
baselines: [{widths: 2}]
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, schedule: constant}
objectives: {bounds: {latency_ms: 5}}
sample: {space: "SPACE:space", trials: 5, sampler: random}
resources: {workers: 0, max_failures: 0}
"""
SPACE = """
from planter import Architecture, Candidate

# Trial 3 repeats trial 0; of trial 2 the cut network alone keeps to 5 ms.
DRAWN = [(4, {}), (8, {}), (6, {"cut2": {}}), (4, {}), (7, {"cut2": {}, "cut3": {}})]


def space(trial):
    trial.suggest_float("idle", 0, 1)
    width, ways = DRAWN[trial.number % 5]
    names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    widths = {**dict.fromkeys(names, width), "fc1": 16}
    return Candidate(Architecture("convnet", widths, {}, ways))
"""
PLANT = (
    "plant={start: 3, channels: 2, rounds: 2, layers: [conv1, conv5],"
    " recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, weight_decay: 0.0}}"
)
NO_SAMPLE = "sample=null"


def told_ms(architecture: Architecture, pipeline: str) -> float:
    """The latency that `Stopwatch` tells of a network: a sum of widths that fits no other one."""
    width = architecture.widths["conv1"] + 0.01 * architecture.widths["conv5"]
    return width if pipeline == "base" else width / 2


class Stopwatch:
    """Stands for the machine: tells known times, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.factor = 1.0

    def measure(
        self, architecture: Architecture, pipelines: Sequence[str], *, threads: int, device: str
    ) -> dict[str, float]:
        self.asked += [(architecture.key(), name) for name in pipelines]
        assert (threads, device) == (1, "cpu")
        return {name: self.factor * told_ms(architecture, name) for name in pipelines}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    made = Stopwatch()
    monkeypatch.setattr(bounds, "measure", made.measure)
    return made


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    (tmp_path / "space.py").write_text(SPACE)
    file = tmp_path / "timed.yaml"
    file.write_text(STUDY.replace("SPACE", str(tmp_path / "space.py")))
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def rows(run: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{run / 'study.db'}"
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def miss(ms: float, most: float = 5) -> float:
    return pytest.approx(ms / most - 1)


# Sampling


def test_a_slow_network_is_refused_before_training_with_its_constraint(
    study_file: Path, run: Path, watch: Stopwatch
) -> None:
    front = planter.search(study_file, out=run)
    sampled = rows(run, "timed/sampling")
    states = [row.state.name for row in sampled]
    # Five are trained: another was drawn in the place of the second.
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE", "COMPLETE", "COMPLETE"]
    # Optuna's samplers read `constraints`; of several networks the one that comes nearest is told.
    told = [row.constraints for row in sampled]
    expected = [4.04, 8.08, 6.06 / 2, 4.04, 7.07 / 2, 4.04]
    assert told == [{"latency_ms": miss(ms)} for ms in expected]
    assert sampled[1].user_attrs["latency_ms"] == {"base": 8.08}
    assert not (run / "trials" / "s0001").exists()
    assert not [p for p in front["points"] if p["trial"] == "s0001"]


def test_equal_networks_are_timed_once(study_file: Path, run: Path, watch: Stopwatch) -> None:
    planter.search(study_file, out=run)
    assert len(watch.asked) == len(set(watch.asked))
    # Teacher, baseline, widths 4 and 8, and of width 6 two, of 7 three pipelines.
    assert len(watch.asked) == 9


def test_points_carry_what_was_measured_and_those_beyond_stay_off_the_front(
    study_file: Path, run: Path, watch: Stopwatch
) -> None:
    front = planter.search(study_file, out=run)
    points = {row.user_attrs["id"]: row for row in rows(run, "timed")}
    found = {p["id"]: p for p in front["points"]}
    assert set(points) == set(found)
    for name, row in points.items():
        architecture = Architecture.from_dict(row.user_attrs["architecture"])
        ms = told_ms(architecture, row.user_attrs["pipeline"])
        assert found[name]["latency_ms"] == row.user_attrs["latency_ms"] == ms
        assert row.constraints == {"latency_ms": miss(ms)}
        if ms > 5:
            assert not found[name]["on_front"]
    beyond = {name for name, p in found.items() if p["latency_ms"] > 5}
    assert beyond == {"teacher/base"}
    # Of trials 2 and 4 only what keeps to the bound is trained.
    sampled = {name for name in found if name.startswith("s")}
    assert sampled == {
        "s0000/base", "s0002/cut2", "s0003/base", "s0004/cut2", "s0004/cut3", "s0005/base",
    }  # fmt: skip
    assert {name for name, p in found.items() if not p["within_bounds"]} == beyond
    with (run / "pareto.csv").open(newline="") as file:
        told = {row["id"]: float(row["latency_ms"]) for row in csv.DictReader(file)}
    assert told == {name: p["latency_ms"] for name, p in found.items()}


def test_without_a_bound_nothing_is_timed(study_file: Path, run: Path, watch: Stopwatch) -> None:
    front = planter.search(study_file, out=run, overrides=["objectives={}", PLANT])
    assert watch.asked == []
    assert {p["latency_ms"] for p in front["points"]} == {None}


def test_what_is_beyond_another_bound_is_not_timed(
    study_file: Path, run: Path, watch: Stopwatch
) -> None:
    lean = ["teacher=null", "baselines=[]", "objectives.macs_reference=1.0e+6"]
    planter.search(study_file, out=run, overrides=[*lean, "objectives.bounds.params=10"])
    assert watch.asked == []
    assert all(list(row.constraints) == ["params"] for row in rows(run, "timed/sampling"))


def test_a_trial_taken_up_again_is_judged_by_what_was_measured_first(
    study_file: Path, run: Path, watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = TASKS["sample"]

    def killed(self: Any, job: Any) -> Any:
        if job.id == "s0002":
            raise KeyboardInterrupt
        return sample(self, job)

    monkeypatch.setitem(TASKS, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        planter.search(study_file, out=run)
    monkeypatch.setitem(TASKS, "sample", sample)
    asked = len(watch.asked)
    watch.factor = 10.0  # the machine has become slow: everything new is refused
    planter.search(study_file, out=run)
    sampled = rows(run, "timed/sampling")
    # Trial 3 has the network of trial 0, which is known.
    states = [row.state.name for row in sampled]
    # Trials 5 to 7 draw what 0 to 2 did.
    again = ["COMPLETE", "PRUNED", "COMPLETE"]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE", "PRUNED", *again]
    assert sampled[2].constraints == {"latency_ms": miss(3.03)}
    times = {r.user_attrs["id"]: r.user_attrs["latency_ms"] for r in rows(run, "timed")}
    assert times["s0002/cut2"] == 3.03
    # Trial 4 has three pipelines; that of trial 1 was refused, and so is no point that is known.
    assert len(watch.asked) == asked + 4


def test_a_kill_between_judging_and_telling_changes_nothing(
    study_file: Path, run: Path, watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = optuna.Study.tell

    def killed(self: Any, trial: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("state") == optuna.trial.TrialState.PRUNED:
            raise KeyboardInterrupt
        return tell(self, trial, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "tell", killed)
    with pytest.raises(KeyboardInterrupt):
        planter.search(study_file, out=run)
    monkeypatch.setattr(optuna.Study, "tell", tell)
    watch.factor = 0.1
    planter.search(study_file, out=run)
    assert rows(run, "timed/sampling")[1].state.name == "PRUNED"
    assert rows(run, "timed/sampling")[1].constraints == {"latency_ms": miss(8.08)}


def test_a_network_that_cannot_be_timed_fails_its_trial(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(bounds, "measure", broken)
    lean = ["teacher=null", "baselines=[]", "objectives.macs_reference=1.0e+6"]
    more = ["resources.max_failures=9", "sample.trials=2"]
    with pytest.raises(SearchFailedError, match="every sampled trial failed"):
        planter.search(study_file, out=run, overrides=[*lean, *more])
    for row in rows(run, "timed/sampling"):
        assert row.state.name == "FAIL"
        assert "no such operator" in row.user_attrs["error"]


# Planting


@pytest.mark.parametrize("key", ["objectives.bounds", "plant.bounds"])
def test_growth_stops_at_a_latency(study_file: Path, run: Path, watch: Stopwatch, key: str) -> None:
    # conv1 adds 2 ms a plant, conv5 0.02: of conv1 none fits, of conv5 all do.
    only = ["objectives={}", PLANT, f"{key}={{latency_ms: 4}}", NO_SAMPLE]
    front = planter.search(study_file, out=run, overrides=only)
    planted = {row.user_attrs["id"]: row for row in rows(run, "timed/planting")}
    first = planted["p01-conv1"]
    assert first.state.name == "PRUNED"
    assert first.constraints == {"latency_ms": miss(5.03, 4)}
    assert first.user_attrs["latency_ms"] == {"base": 5.03}
    assert planted["p01-conv5"].constraints == {"latency_ms": miss(3.05, 4)}
    times = {p["id"]: p["latency_ms"] for p in front["points"] if p["method"] == "plant"}
    assert times["p00-start/base"] == 3.03
    assert times["p01-conv5/base"] == 3.05
    assert len(watch.asked) == len(set(watch.asked))
    compared = {p["latency_ms"] for p in front["points"] if p["method"] != "plant"}
    assert (compared == {None}) == (key == "plant.bounds")


def test_plants_that_are_too_slow_together_are_not_accepted_together(
    study_file: Path, run: Path, watch: Stopwatch
) -> None:
    # Both of either layer keep to 5.04 ms, both together (5.05) do not.
    several = ["plant.per_round=2", "plant.rounds=1", "objectives.bounds.latency_ms=5.04"]
    planter.search(study_file, out=run, overrides=[PLANT, NO_SAMPLE, *several])
    planted = {row.user_attrs["id"]: row for row in rows(run, "timed/planting")}
    assert {"p01-conv1", "p01-conv5"} <= set(planted)
    assert {row.state.name for row in planted.values()} == {"COMPLETE"}
    assert "p01-grown" not in planted


def test_a_round_taken_up_again_keeps_its_times(
    study_file: Path, run: Path, watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [PLANT, NO_SAMPLE, "objectives.bounds.latency_ms=100"]
    tuned = [f"plant.{key}={{epochs: 1, batch: 30}}" for key in ("finetune", "final")]
    for kind in ("start", "plant", "grow"):
        train = TASKS[kind]

        def killed(self: Any, job: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setitem(TASKS, kind, killed)
        with pytest.raises(KeyboardInterrupt):
            planter.search(study_file, out=run, overrides=[*more, *tuned])
        monkeypatch.setitem(TASKS, kind, train)
    planter.search(study_file, out=run, overrides=[*more, *tuned])
    for row in rows(run, "timed"):
        architecture = Architecture.from_dict(row.user_attrs["architecture"])
        assert row.user_attrs["latency_ms"] == told_ms(architecture, "base")
    names = {row.user_attrs["id"] for row in rows(run, "timed/planting")}
    assert {"p00-start", "p01-conv1", "p01-grown"} <= names
    assert any(name.endswith("-final") for name in names)
    # Where all trained networks are known, nothing is timed again.
    assert len(watch.asked) == len(set(watch.asked))


def test_a_start_beyond_the_bound_is_refused_at_its_place_and_only_before_the_run(
    study_file: Path, run: Path, watch: Stopwatch
) -> None:
    given = [PLANT, NO_SAMPLE, "plant.rounds=1"]
    with pytest.raises(StudyError) as caught:
        planter.search(study_file, out=run, overrides=[*given, "plant.start=6"])
    (problem,) = caught.value.problems
    assert problem.place == "plant.start"
    assert problem.got == "21% beyond bounds.latency_ms"
    assert not (run / "resolved.yaml").exists()
    planter.search(study_file, out=run, overrides=given)
    watch.factor = 10.0
    planter.search(study_file, out=run, overrides=[*given, "plant.rounds=2"])
    with pytest.raises(StudyError, match=r"beyond bounds\.latency_ms"):
        prepare(read_study(study_file, given))


# Going on with a run


@pytest.mark.parametrize(
    ("begun", "then", "accepted"),
    [
        (["objectives={}"], [], False),
        ([], ["resources.cpu=2"], False),
        ([], ["objectives.bounds.latency_ms=6"], True),
        ([], ["objectives={}"], True),
        (["objectives={}"], ["objectives={}", "resources.cpu=2"], True),
    ],
)
def test_networks_timed_otherwise_do_not_share_a_run(
    study_file: Path,
    run: Path,
    watch: Stopwatch,
    begun: list[str],
    then: list[str],
    accepted: bool,
) -> None:
    lean = [NO_SAMPLE]
    planter.search(study_file, out=run, overrides=[*lean, *begun])
    if accepted:
        planter.search(study_file, out=run, overrides=[*lean, *then], accept_changes=True)
        return
    with pytest.raises(StudyError) as caught:
        planter.search(study_file, out=run, overrides=[*lean, *then], accept_changes=True)
    assert [p.place for p in caught.value.problems] == ["objectives.bounds.latency_ms"]


# The parts


def test_bounds_are_kept_by_one_network_not_by_several_together() -> None:
    few, cheap = {"macs": 50, "params": 500}, {"macs": 500, "params": 50}
    assert max(excess({"macs": 100, "params": 100}, [few, cheap]).values()) == 4.0
    assert excess({}, [few]) == {}


def test_every_pipeline_is_timed_as_it_is_shipped() -> None:
    made = Architecture(
        "convnet", {}, {"image": [1, 16, 16]}, {"cut2": {}, "out": {"after": "cut2"}}
    )
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    found = bounds.measure(made, ["base", "cut2", "out"], threads=1, device="cpu")
    assert list(found) == ["base", "cut2", "out"]
    assert all(0 < ms < 60_000 for ms in found.values())
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)


class Sleeper(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.02)
        return images


def test_waiting_counts_unless_one_thread_is_timed_by_its_own_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "build_network", lambda architecture, pipeline: Sleeper())
    made = Architecture("convnet", {}, {"image": [1, 8, 8]})
    assert bounds.measure(made, ["base"], threads=2, device="cpu")["base"] >= 20
    assert bounds.measure(made, ["base"], threads=1, device="cpu")["base"] < 20


def test_known_latencies_are_kept_through_json(study_file: Path, watch: Stopwatch) -> None:
    study: Study = read_study(study_file, [])
    made = Architecture("convnet", {"conv1": 3, "conv5": 1}, {}, {"cut2": {}})
    first = Latencies(study)
    told = json.loads(json.dumps(first.of(made, ["base", "cut2"])))
    second = Latencies(study)
    second.learn(made, told)
    watch.factor = 3.0
    assert second.of(made, ["cut2", "base"]) == first.of(made, ["cut2", "base"]) == told
