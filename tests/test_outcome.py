"""How a search ends of which little or nothing came; budgets of time. Without Ray."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock
from typer.testing import CliRunner

import planter
from planter.cli import app
from planter.driver.dashboard.storage_view import DashboardView
from planter.driver.outcome import SearchFailedError
from planter.driver.storage.reading import opened, run_study
from planter.driver.tasks import context as context_module
from planter.driver.trials import budget
from planter.driver.trials.jobs import SearchStoppedError

STUDY = """
name: ends
data: {name: digits, subset: 120, validation: 0.25}
baselines:
  - {builder: convnet, widths: 3}
  - {builder: convnet, widths: 4}
recipe: {epochs: 4, batch: 30, optimizer: adam, lr: 0.01, schedule: cosine}
resources: {workers: 0, max_failures: 20}
"""
SAMPLE = """
sample: {space: "SPACE:space", trials: 2, sampler: random}
"""
SPACE = """
from planter import Architecture, Candidate

def space(trial):
    names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    width = trial.suggest_int("width", 4, 400) % 4 + 3
    return Candidate(Architecture("convnet", dict.fromkeys(names, width)))
"""
PLANT = (
    "plant={builder: convnet, start: 3, channels: 2, rounds: 1, layers: [conv1, conv5], "
    "kd_weight: 0, ce_weight: 1, recipe: {epochs: 3, batch: 30, lr: 0.01, optimizer: adam}}"
)


def write(folder: Path, text: str = STUDY) -> Path:
    (folder / "space.py").write_text(SPACE)
    file = folder / "ends.yaml"
    file.write_text(text.replace("SPACE", str(folder / "space.py")))
    return file


def failing(monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
    """Lets the trainings of these ids, or that begin so, fail."""
    fit = context_module.fit

    def broken(*args: Any, **kwargs: Any) -> Any:
        if kwargs["checkpoint"].parent.name.startswith(ids):
            raise RuntimeError("broken on purpose")
        return fit(*args, **kwargs)

    monkeypatch.setattr(context_module, "fit", broken)


def test_a_study_of_baselines_that_all_fail_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = write(tmp_path), tmp_path / "run"
    failing(monkeypatch, "b-")
    with pytest.raises(SearchFailedError, match=r"every baseline failed \(b-width3") as caught:
        planter.search(file, out=run)
    assert caught.value.front["points"] == []
    assert [one["trial"] for one in caught.value.front["failed"]] == ["b-width3", "b-width4"]
    # What it advises: the same command tries them again.
    assert "the same command tries them again" in str(caught.value)
    monkeypatch.undo()
    found = planter.search(file, out=run)
    assert len(found["points"]) == 2
    assert found["failed"] == []


def test_one_success_makes_one_and_what_failed_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "b-width4")
    found = planter.search(write(tmp_path), out=tmp_path / "run")
    assert [point["trial"] for point in found["points"]] == ["b-width3"]
    (one,) = found["failed"]
    assert one == {"trial": "b-width4", "reason": "RuntimeError: broken on purpose"}
    assert json.loads((tmp_path / "run" / "pareto.json").read_text())["failed"] == [one]


def test_sampled_trials_that_all_fail_are_listed_beside_plants_that_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = write(tmp_path, STUDY + SAMPLE), tmp_path / "run"
    failing(monkeypatch, "s")
    found = planter.search(file, out=run, overrides=[PLANT])
    assert {point["method"] for point in found["points"]} == {"plant", "baseline"}
    assert [one["trial"] for one in found["failed"]] == ["s0000", "s0001"]
    assert found["outcome"]["exit_code"] == 0


def test_sampled_trials_that_all_fail_are_no_success_whatever_baselines_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = write(tmp_path, STUDY + SAMPLE), tmp_path / "run"
    failing(monkeypatch, "s")
    with pytest.raises(SearchFailedError, match="every sampled trial failed") as caught:
        planter.search(file, out=run)
    assert {point["method"] for point in caught.value.front["points"]} == {"baseline"}
    # What it advises, followed.
    assert "--set sample.trials=4" in str(caught.value)
    monkeypatch.undo()
    found = planter.search(file, out=run, overrides=["sample.trials=4"])
    assert sum(point["method"] == "sample" for point in found["points"]) == 2
    assert len(found["failed"]) == 2


def test_plants_that_all_fail_are_no_success_though_the_start_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planter.driver.tasks import planting_step

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(planting_step, "train_round", broken)
    with pytest.raises(SearchFailedError, match=r"every plant failed \(p01-conv1"):
        planter.search(write(tmp_path), out=tmp_path / "run", overrides=[PLANT])


def test_a_failed_teacher_gives_one_error_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, ".teachers")
    told: list[str] = []
    with pytest.raises(SearchStoppedError, match="the teacher failed"):
        planter.search(
            write(tmp_path, STUDY + SAMPLE),
            out=tmp_path / "run",
            overrides=["teacher={builder: convnet, widths: 4}", PLANT],
            observe=lambda progress: told.append(progress.event),
        )
    assert len([event for event in told if "failed" in event]) == 1


def test_a_failed_teacher_that_has_changed_is_told_to_need_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_in: Any
) -> None:
    write(tmp_path, STUDY + SAMPLE)
    call = command_in(tmp_path)
    failing(monkeypatch, ".teachers")
    begin = ["search", "ends.yaml", "--out", "here", "--set", "baselines=[]", "--set"]
    code, _, err = call(*begin, "teacher={builder: convnet, widths: 4}")
    assert code == 4
    name = "another name (--set name=..., and another --out where one is given)"
    assert f"a study that has changed needs {name} where `teacher` did" in err
    code, _, err = call(*begin, "teacher={builder: convnet, widths: 5}", "--accept-changes")
    assert code == 2
    assert f"the study as it was, or {name}" in err


@pytest.mark.parametrize("trials", ["b-", "s0000"])
def test_exit_codes_of_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_in: Any, trials: str
) -> None:
    write(tmp_path, STUDY + (SAMPLE if trials != "b-" else ""))
    failing(monkeypatch, trials)
    code, out, err = command_in(tmp_path)("search", "ends.yaml")
    assert code == (4 if trials == "b-" else 0)
    assert "RuntimeError: broken on purpose" in err
    assert ("next: planter show" in out) == (trials != "b-")


def test_a_command_whose_budget_is_over_at_once_trains_nothing_and_says_so(
    tmp_path: Path, command_in: Any
) -> None:
    write(tmp_path)
    code, out, err = command_in(tmp_path)("search", "ends.yaml", "--set", "budget.hours=1e-9")
    assert code == 4
    assert "next:" not in out
    assert "budget.hours 1e-09 are over: with more of it the same command goes on" in err
    code, *_ = command_in(tmp_path)("search", "ends.yaml", "--set", "budget.hours=1")
    assert code == 0


def edited(folder: Path, text: str, body: str) -> Path:
    """A study whose space prunes, or gives, what `body` says after the first draws."""
    file = write(folder, text)
    (folder / "space.py").write_text(SPACE + body)
    return file


PRUNING = """
import optuna
from pathlib import Path
inner = space

def space(trial):
    found = inner(trial)
    if (Path(__file__).parent / "pruning").exists():
        raise optuna.TrialPruned("none today")
    return found
"""


def prune_from_now(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets the space raise TrialPruned from when the study is checked."""
    from planter.driver import run

    prepare = run.prepare

    def prepared(*args: Any, **kwargs: Any) -> Any:
        found = prepare(*args, **kwargs)
        (folder / "pruning").touch()
        return found

    monkeypatch.setattr(run, "prepare", prepared)


def test_draws_in_vain_are_no_success_whatever_else_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_in: Any
) -> None:
    edited(tmp_path, STUDY + SAMPLE, PRUNING)
    prune_from_now(monkeypatch, tmp_path)
    with pytest.raises(SearchFailedError, match=r"no sampled .*100 pruned") as e:
        planter.search(tmp_path / "ends.yaml", out=tmp_path / "run")
    assert [point["method"] for point in e.value.front["points"]] == ["baseline"] * 2
    outcome = e.value.front["outcome"]
    assert (outcome["kind"], outcome["exit_code"]) == ("failed", 4)
    assert outcome["reason"] == str(e.value)
    assert json.loads((tmp_path / "run" / "pareto.json").read_text())["outcome"] == outcome
    (tmp_path / "pruning").unlink()
    assert command_in(tmp_path)("search", "ends.yaml")[0] == 4


def test_bounds_that_nothing_keeps_to_are_told_in_what_is_returned(
    tmp_path: Path, command_in: Any
) -> None:
    file = write(tmp_path, STUDY + SAMPLE)
    bound = "objectives.bounds.macs=10"
    outcome = planter.search(file, out=tmp_path / "run", overrides=[bound])["outcome"]
    assert (outcome["kind"], outcome["exit_code"]) == ("beyond_bounds", 3)
    assert "100 beyond the bounds" in outcome["reason"]
    assert command_in(tmp_path)("search", "ends.yaml", "--set", bound)[0] == 3


def test_a_budget_used_up_by_the_teacher_is_told_in_what_is_returned(tmp_path: Path) -> None:
    file = write(tmp_path, STUDY + SAMPLE)
    only = ["baselines=[]", "teacher={builder: convnet, widths: 4}", "budget.train_macs=1"]
    found = planter.search(file, out=tmp_path / "run", overrides=only)
    assert [point["method"] for point in found["points"]] == ["teacher"]
    assert (found["outcome"]["kind"], found["outcome"]["exit_code"]) == ("budget", 4)
    found = planter.search(file, out=tmp_path / "run", overrides=[*only[:2], "budget={}"])
    assert found["outcome"] == {"kind": "trained", "exit_code": 0, "reason": None}


def test_the_study_that_was_read_at_the_start_decides_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_in: Any
) -> None:
    file = write(tmp_path)
    fit = context_module.fit

    def editing(*args: Any, **kwargs: Any) -> Any:
        file.write_text("no study any more")
        return fit(*args, **kwargs)

    monkeypatch.setattr(context_module, "fit", editing)
    assert command_in(tmp_path)("search", "ends.yaml")[0] == 0


def test_a_run_without_a_point_says_so_to_whoever_looks_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_in: Any
) -> None:
    write(tmp_path)
    failing(monkeypatch, "b-")
    call = command_in(tmp_path)
    assert call("search", "ends.yaml")[0] == 4
    run = tmp_path / "runs" / "ends"
    document = json.loads((run / "pareto.json").read_text())
    assert document["points"] == []
    assert [one["trial"] for one in document["failed"]] == ["b-width3", "b-width4"]
    assert document["data"] is not None
    assert (run / "pareto.csv").read_text().startswith("id,trial")
    for words in (["show"], ["pareto"], ["report"]):
        code, out, err = call(*words, "ends")
        assert code == (2 if words == ["report"] else 0)
        assert "no training of ends has finished" in out + err
        assert "b-width3: RuntimeError: broken on purpose" in out + err
    with opened(run, run_study(run)) as storage:
        view = DashboardView(storage, run, "ends")
        number = storage.get_study_id_from_name("ends")
        note = view.get_study_system_attrs(number)["dashboard:note_str:0"]
    assert "no training of ends has finished" in note
    assert "b-width3: RuntimeError: broken on purpose" in note


# Time


class Clock:
    """Stands for `time` in the driver: an hour passes with each epoch."""

    def __init__(self) -> None:
        self.now = 1e6

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trainings whose epochs were trained; an hour passes with each of them."""
    clock, done = Clock(), []
    metrics = context_module.Context.metrics

    def counted(self: Any, trial: str, macs_after: Any) -> Any:
        write_epoch = metrics(self, trial, macs_after)

        def on_epoch(epoch: Any) -> None:
            clock.now += 3600
            done.append(trial)
            write_epoch(epoch)

        return on_epoch

    monkeypatch.setattr(context_module.Context, "metrics", counted)
    monkeypatch.setattr(budget, "time", clock)

    class Times:
        monotonic = staticmethod(time.monotonic)
        time = staticmethod(clock.time)

    monkeypatch.setattr(context_module, "time", Times)
    return done


def test_hours_are_one_budget_of_all_commands_and_end_a_training_at_its_checkpoint(
    tmp_path: Path, epochs: list[str]
) -> None:
    file, run = write(tmp_path), tmp_path / "run"
    whole = planter.search(file, out=tmp_path / "whole")
    assert epochs == ["b-width3"] * 4 + ["b-width4"] * 4
    del epochs[:]
    first = planter.search(file, out=run, overrides=["budget.hours=6"])
    assert epochs == ["b-width3"] * 4 + ["b-width4"] * 2
    assert [point["trial"] for point in first["points"]] == ["b-width3"]
    assert first["notes"][0]["about"] == "budget"
    # No hour is left of six, one of seven.
    planter.search(file, out=run, overrides=["budget.hours=6"])
    assert len(epochs) == 6
    planter.search(file, out=run, overrides=["budget.hours=7"])
    assert epochs[6:] == ["b-width4"]
    assert (run / "trials" / "b-width4" / "checkpoint.pt").is_file()
    last = planter.search(file, out=run, overrides=["budget.hours=50"])
    assert epochs[7:] == ["b-width4"]
    # As if it had not stopped, and paid for once.
    assert last["points"] == whole["points"]
    assert last["cost"]["train_macs"] == whole["cost"]["train_macs"]
    assert not (run / "trials" / "b-width4" / "checkpoint.pt").exists()


def test_sampled_trials_are_paused_and_taken_up_under_their_own_id(
    tmp_path: Path, epochs: list[str]
) -> None:
    file = write(tmp_path, STUDY + SAMPLE)
    only = ["baselines=[]", "objectives.macs_reference=1M"]
    whole = planter.search(file, out=tmp_path / "whole", overrides=only)
    del epochs[:]
    run = tmp_path / "run"
    planter.search(file, out=run, overrides=[*only, "budget.hours=1"])
    assert epochs == ["s0000"]
    found = planter.search(file, out=run, overrides=only)
    assert epochs == ["s0000"] * 4 + ["s0001"] * 4
    assert found["points"] == whole["points"]


def test_a_round_of_planting_is_paused_and_goes_on(
    tmp_path: Path, epochs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path)
    only = ["baselines=[]", "objectives.macs_reference=1M", PLANT]
    whole = planter.search(file, out=tmp_path / "whole", overrides=only)
    run = tmp_path / "run"
    # The initial network takes four hours. A round's epochs have no clock here: its workers' is an
    # hour ahead, so that it ends after its first.
    earlier = context_module.time.time
    monkeypatch.setattr(context_module.time, "time", staticmethod(lambda: earlier() + 3600))
    first = planter.search(file, out=run, overrides=[*only, "budget.hours=4.5"])
    assert [point["trial"] for point in first["points"]] == ["p00-start"]
    assert (run / "trials" / "p01-conv1" / "checkpoint.pt").is_file()
    assert planter.search(file, out=run, overrides=only)["points"] == whole["points"]


def seconds_in_the_books(run: Path) -> float:
    book = optuna.load_study(study_name="ends", storage=f"sqlite:///{run / 'study.db'}")
    return float(book.user_attrs.get("seconds_searched", 0.0))


def test_the_hours_of_a_driver_that_dies_in_a_training_are_in_the_books(
    tmp_path: Path, epochs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    metrics = context_module.Context.metrics

    def looked_at(self: Any, trial: str, macs_after: Any) -> Any:
        on_epoch = metrics(self, trial, macs_after)

        def look(epoch: Any) -> None:
            told.append(seconds_in_the_books(tmp_path / "run"))  # what a kill would leave
            on_epoch(epoch)

        return look

    def fails(progress: Any) -> None:
        if progress.event.startswith("b-width3 done"):
            raise RuntimeError("the observer broke")

    monkeypatch.setattr(context_module.Context, "metrics", looked_at)
    with pytest.raises(RuntimeError, match="the observer broke"):
        planter.search(write(tmp_path), out=tmp_path / "run", observe=fails)
    assert told == [0, 3600, 7200, 10800]
    assert seconds_in_the_books(tmp_path / "run") == 4 * 3600


TEACHER = ["baselines=[]", "teacher={builder: convnet, widths: 4}"]


def test_a_teacher_does_not_begin_when_the_time_is_over_nor_wait_for_another_study_s(
    tmp_path: Path, epochs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, STUDY + SAMPLE)
    earlier = context_module.time.time
    monkeypatch.setattr(context_module.time, "time", staticmethod(lambda: earlier() + 36000))
    monkeypatch.setattr(context_module, "_WAITED_S", 0.05)
    late = [*TEACHER, "budget.hours=5"]
    found = planter.search(file, out=tmp_path / "run", overrides=late)
    assert (epochs, found["outcome"]["kind"]) == ([], "budget")
    (lock,) = (tmp_path / ".teachers").glob("*.lock")
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(lock):
            held.set()
            end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        held.wait(60)
        found = planter.search(file, out=tmp_path / "waits", overrides=late)
    finally:
        end.set()
        thread.join()
    assert (epochs, found["outcome"]["kind"]) == ([], "budget")


def test_a_study_file_is_read_once_whoever_edits_it_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folder holds the text of the study that was run, by command as from Python."""
    from planter.driver import run as run_module

    prepare = run_module.prepare
    file = write(tmp_path)
    before = file.read_text()

    def edited(*args: Any, **kwargs: Any) -> Any:
        file.write_text(before.replace("seed", "sead").replace("widths: 3", "widths: 300"))
        return prepare(*args, **kwargs)

    monkeypatch.setattr(run_module, "prepare", edited)
    planter.search(file, out=tmp_path / "run")
    file.write_text(before)
    call = ["search", str(file), "--out", str(tmp_path / "told")]
    answer = CliRunner().invoke(app, call)
    assert answer.exit_code == 0, answer.output
    for run in ("run", "told"):
        assert (tmp_path / run / "study.yaml").read_text() == before
