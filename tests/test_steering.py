"""Points given to a sampler, and a search that is asked to stop: while it runs, and before it goes
on. Without Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from interrupted import interrupted_at
from optuna.distributions import FloatDistribution, IntDistribution

import planter
from planter.driver import steering
from planter.driver.checking.check import prepare
from planter.driver.run_folder.read import read_points, run_standing
from planter.driver.storage.retrying import RetryingStorage
from planter.driver.trials import budget
from planter.driver.trials.given import given_point, in_ranges
from planter.driver.trials.jobs import seed_of
from planter.study.file import read_study
from planter.study.schema import StudyError

STUDY = """
name: steered
data: {name: digits, subset: 120, validation: 0.25}
baselines: [{builder: convnet, widths: 2}]
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, schedule: constant}
sample: {space: "SPACE:space", trials: 4, sampler: random}
resources: {workers: 0}
"""
SPACE = """
import optuna
from planter import Architecture, Candidate

NAMES = ["conv1", "conv2", "conv3", "conv4", "conv5"]

def space(trial):
    width = trial.suggest_int("width", 2, 9)
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    pair = trial.suggest_categorical("pair", [(1, 2), (3, 4)])
    if trial.suggest_categorical("kind", ["plain", "deep"]) == "deep":
        trial.suggest_int("depth", 2, 6, step=2)
    if width == 9:
        raise optuna.TrialPruned("too wide")
    network = Architecture("convnet", dict.fromkeys(NAMES, width), {}, {})
    return Candidate(network, recipe={"lr": lr})
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "space.py").write_text(SPACE)
    file = tmp_path / "steered.yaml"
    file.write_text(STUDY.replace("SPACE", str(tmp_path / "space.py")))
    return file


def rows(run: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{run / 'study.db'}"
    return optuna.load_study(study_name="steered/sampling", storage=storage).get_trials()


def facts(run: Path) -> list[tuple[Any, ...]]:
    """The rows, and the points but for their seconds."""
    points = [(p.id, p.accuracy, p.loss, p.macs) for p in read_points(run)]
    return [*((r.number, r.params, r.state.name, r.values) for r in rows(run)), *points]


def refusals(study: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(StudyError) as caught:
        prepare(read_study(study, list(overrides)))
    return {problem.place: problem.expected for problem in caught.value.problems}


def plain_optuna(number: int, point: dict[str, Any]) -> dict[str, Any]:
    """What Optuna alone draws around a point, from the trial's own seed."""
    seed = seed_of(0, f"s{number:04d}")
    book = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    book.enqueue_trial(point)
    trial = book.ask()
    trial.suggest_int("width", 2, 9)
    trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    trial.suggest_categorical("pair", ["(1, 2)", "(3, 4)"])
    if trial.suggest_categorical("kind", ["plain", "deep"]) == "deep":
        trial.suggest_int("depth", 2, 6, step=2)
    return dict(trial.params)


ENQUEUE = "sample.enqueue=[{width: 8, lr: 1e-2, kind: plain}, {depth: 4, kind: deep}, {width: 3}]"
POINTS: list[dict[str, Any]] = [
    {"width": 8, "lr": 0.01, "kind": "plain"},
    {"depth": 4, "kind": "deep"},
    {"width": 3},
    {},
]


def test_points_of_the_study_are_tried_first_in_their_order_and_the_rest_is_drawn(
    study: Path,
) -> None:
    run = study.parent / "run"
    planter.search(study, out=run, overrides=[ENQUEUE])
    made = rows(run)
    assert [row.params for row in made] == [plain_optuna(n, p) for n, p in enumerate(POINTS)]
    assert {row.state.name for row in made} == {"COMPLETE"}
    trained = {p.trial for p in read_points(run) if p.method == "sample"}
    assert trained == {f"s000{n}" for n in range(4)}
    # More of them on the run: those that are new alone.
    more = [ENQUEUE.replace("[{width: 8", "[{width: 7}, {width: 8"), "sample.trials=6"]
    planter.search(study, out=run, overrides=more)
    assert [row.params["width"] for row in rows(run)[:4]] == [row.params["width"] for row in made]
    assert rows(run)[4].params["width"] == 7
    assert "enqueued" not in rows(run)[5].user_attrs


def test_a_point_is_given_once_wherever_the_search_is_cut_off(study: Path) -> None:
    whole, few = study.parent / "whole", [ENQUEUE, "sample.trials=2"]  # of three points
    planter.search(study, out=whole, overrides=few)
    methods = [(RetryingStorage, n) for n in ("create_new_trial", "set_trial_state_values")]
    for write in range(1, 7):
        run = study.parent / f"cut{write}"
        with pytest.raises(KeyboardInterrupt), interrupted_at(write, *methods):
            planter.search(study, out=run, overrides=few)
        planter.search(study, out=run, overrides=few)
        assert facts(run) == facts(whole), write


def test_what_the_space_does_not_draw_is_refused_with_what_it_draws(study: Path) -> None:
    points = (
        "[{widht: 3}, {width: 99}, {kind: other}, {width: wide}, {depth: 3}, "
        "{depth: 4, kind: plain}, {width: true}]"
    )
    found = refusals(study, f"sample.enqueue={points}")
    assert found["sample.enqueue.0"].startswith("the space draws no 'widht'; expected some of ")
    assert "width (2 to 9)" in found["sample.enqueue.0"]
    assert "depth (2 to 6 in steps of 2)" in found["sample.enqueue.0"]
    assert found["sample.enqueue.1"] == "width: 99; expected 2 to 9"
    assert found["sample.enqueue.2"] == "kind: 'other'; expected plain or deep"
    assert found["sample.enqueue.3"] == "width: 'wide'; expected 2 to 9"
    assert found["sample.enqueue.4"] == "depth: 3; expected 2 to 6 in steps of 2"
    assert "different cases" in found["sample.enqueue.5"]
    assert found["sample.enqueue.6"] == "width: True; expected 2 to 9"
    bounds = ["sample.enqueue=[{width: 9}, {width: 8}]", "objectives.bounds.params=3000"]
    told = prepare(read_study(study, bounds)).warnings
    assert any("sample.enqueue.0 (width=9)" in one and "too wide" in one for one in told)
    assert any("sample.enqueue.1 (width=8)" in one and "bounds.params by" in one for one in told)


def test_values_are_accepted_where_the_distribution_draws_them_and_nowhere_else() -> None:
    for low, high, step in ((2, 9, 1), (2, 6, 2), (-3, 4, 3)):
        ranges = {"n": [IntDistribution(low, high - (high - low) % step, step=step)]}
        taken = set()
        for value in range(low - 5, high + 6):
            try:
                taken.add(in_ranges({"n": value}, ranges)["n"])
            except ValueError:
                continue
        assert taken == set(range(low, high + 1, step))
    one = {"x": [FloatDistribution(1e-3, 1e-1, log=True)]}
    assert in_ranges({"x": "1e-2"}, one) == {"x": 0.01}
    assert in_ranges({"x": 0.1}, one) == {"x": 0.1}
    with pytest.raises(ValueError, match=r"0\.2; expected 0\.001 to 0\.1"):
        in_ranges({"x": 0.2}, one)


def test_every_draw_of_a_space_is_a_point_of_it(study: Path) -> None:
    prepared = prepare(read_study(study))
    assert prepared.drawn is not None
    for draw in prepared.drawn.draws:
        given = given_point(draw.params, prepared.drawn.space, prepared.ranges)
        assert given.params == draw.params
        assert given.draw == draw
    # Lists stand for tuples, which neither YAML nor JSON knows.
    listed = given_point({"pair": [3, 4]}, prepared.drawn.space, prepared.ranges)
    assert listed.params == {"pair": "(3, 4)"}


def once(*events: tuple[str, Callable[[], object]]) -> Callable[[Any], None]:
    """An observer that does something at the first event that begins so."""
    left = list(events)

    def observe(now: Any) -> None:
        for one in [one for one in left if now.event.startswith(one[0])]:
            left.remove(one)
            one[1]()

    return observe


def test_points_are_enqueued_while_a_search_runs(study: Path) -> None:
    run = study.parent / "run"
    asked: list[steering.Asked] = []

    def ask() -> None:
        asked.append(steering.enqueue(run, [{"width": 5, "lr": "2e-2"}, {"pair": [3, 4]}]))

    planter.search(study, out=run, observe=once(("s0000 done", ask)))
    assert asked[0].points == [{"width": 5, "lr": 0.02}, {"pair": "(3, 4)"}]
    assert (asked[0].before, asked[0].left, asked[0].trials) == (0, 3, 4)
    assert asked[0].driver is not None
    made = rows(run)
    points = [{}, {"width": 5, "lr": 0.02}, {"pair": "(3, 4)"}, {}]
    assert [row.params for row in made] == [plain_optuna(n, p) for n, p in enumerate(points)]


def test_points_enqueued_at_once_wait_each_once_for_a_search_that_goes_on(study: Path) -> None:
    run = study.parent / "run"
    planter.search(study, out=run, overrides=["sample.trials=1"])
    threads = [
        threading.Thread(target=steering.enqueue, args=(run, [{"width": n}, {"width": n}]))
        for n in (2, 4, 6, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = steering.enqueue(run, [{"width": 3}])
    assert (last.before, last.left, last.driver) == (8, 0, None)
    methods = [(RetryingStorage, n) for n in ("create_new_trial", "set_trial_state_values")]
    more = ["sample.trials=10"]
    for write in (2, 4, 9):
        with pytest.raises(KeyboardInterrupt), interrupted_at(write, *methods):
            planter.search(study, out=run, overrides=more)
    planter.search(study, out=run, overrides=more)
    widths = [row.params["width"] for row in rows(run)[1:]]
    pairs = {tuple(widths[n : n + 2]) for n in range(0, 8, 2)}
    assert pairs == {(2, 2), (4, 4), (6, 6), (8, 8)}
    assert widths[8] == 3


def test_a_point_that_only_the_driver_can_refuse_is_told_and_not_tried_again(study: Path) -> None:
    run = study.parent / "run"
    planter.search(study, out=run, overrides=["sample.trials=1"])
    steering.enqueue(run, [{"kind": "plain", "depth": 4}, {"width": 3}])
    events: list[str] = []
    planter.search(
        study,
        out=run,
        overrides=["sample.trials=3"],
        observe=lambda now: events.append(now.event),
    )
    assert sum("an enqueued point is refused" in event for event in events) == 1
    assert rows(run)[1].params["width"] == 3
    assert "enqueued" not in rows(run)[2].user_attrs


def test_a_search_that_is_asked_to_stop_ends_as_a_budget_does_and_goes_on(study: Path) -> None:
    whole, run = study.parent / "whole", study.parent / "run"
    planter.search(study, out=whole)
    asked: list[Any] = []
    found = planter.search(
        study,
        out=run,
        observe=once(("s0001 starts", lambda: asked.append(steering.stop(run, "finish")))),
    )
    assert asked[0]["pid"]
    assert [p["trial"] for p in found["points"] if p["method"] == "sample"] == ["s0000", "s0001"]
    assert found["outcome"]["exit_code"] == 0
    (note,) = found["notes"]
    assert note["about"] == "stop"
    assert "asked to stop" in note["text"]
    assert run_standing(run) is None
    assert steering.stop(run, "finish") is None  # nobody is there any more
    planter.search(study, out=run)
    assert facts(run) == facts(whole)


def test_a_search_stopped_before_anything_is_trained_says_so(study: Path) -> None:
    run = study.parent / "run"
    found = planter.search(
        study, out=run, observe=once(("b-width2 starts", lambda: steering.stop(run, "finish")))
    )
    assert found["outcome"]["exit_code"] == 4
    assert "asked to stop" in found["outcome"]["reason"]


def test_a_request_to_an_earlier_driver_is_none_to_the_next(study: Path) -> None:
    run = study.parent / "run"

    def ask_and_fall() -> None:
        steering.stop(run, "now")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planter.search(study, out=run, observe=once(("s0001 starts", ask_and_fall)))
    (run / ".stop").touch()  # as its driver may have left it
    assert planter.search(study, out=run)["notes"] == []
    assert len(rows(run)) == 4


def test_now_ends_a_training_at_its_next_checkpoint_from_where_it_goes_on(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "_WRITTEN_EVERY_S", 0.0)  # looked at after every epoch
    longer = ["recipe.epochs=4"]
    whole, run = study.parent / "whole", study.parent / "run"
    planter.search(study, out=whole, overrides=longer)
    with pytest.raises(KeyboardInterrupt):
        planter.search(
            study,
            out=run,
            overrides=longer,
            observe=once(("s0001 starts", lambda: steering.stop(run, "now"))),
        )
    assert [row.state.name for row in rows(run)] == ["COMPLETE", "RUNNING"]
    assert (run / "trials" / "s0001" / "checkpoint.pt").is_file()
    assert len((run / "trials" / "s0001" / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (run / ".stop").exists()
    planter.search(study, out=run, overrides=longer)
    assert "taken up after epoch 1 of 4" in (run / "trials" / "s0001" / "log.txt").read_text()
    assert facts(run) == facts(whole)
