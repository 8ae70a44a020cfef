"""Who is told of trainings as they go: a tracker of a user's, TensorBoard, MLflow, W&B."""

from __future__ import annotations

import json
import logging
import math
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from test_driver import write_study

import planter
from planter.driver.trackers.tracking import tracked
from planter.driver.trials.jobs import Job, Outcome, Queue, SearchStoppedError
from planter.study.places import TRACKERS

FEW = ["sample.trials=1", "plant.rounds=1", "recipe.epochs=2", "plant.recipe.epochs=1"]


class Toy:
    """Keeps what it is told, and in which thread; raises where it is told to."""

    def __init__(self, raises: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()
        self.raises = raises

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)
        if call[0] == self.raises:
            raise OSError("the server is gone")

    def begin(self, trial: str, facts: Any) -> None:
        self._note("begin", trial, dict(facts))

    def log(self, trial: str, epoch: int, values: Any) -> None:
        self._note("log", trial, epoch, dict(values))

    def end(self, trial: str, status: str, values: Any) -> None:
        self._note("end", trial, status, dict(values))

    def close(self) -> None:
        self._note("close")


class Jobs(Queue):
    """Jobs in a row, that are done as `do` says."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)
        self.outcomes: list[tuple[str, Outcome]] = []

    def next(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def finish(self, job: Job, outcome: Outcome) -> object:
        self.outcomes.append((job.id, outcome))
        return "booked"

    def complete(self) -> bool:
        return not self.jobs


def study_of(*trackers: str) -> planter.Study:
    return planter.Study(name="told", trackers=list(trackers))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> dict[str, Toy]:
    """Trackers by name: toy, another."""
    made = {"toy": Toy(), "another": Toy()}
    for name, toy in made.items():
        monkeypatch.setitem(TRACKERS, name, lambda run, study, toy=toy: toy)
    return made


def write_lines(run: Path, trial: str, *lines: dict[str, Any], part: str = "") -> None:
    file = run / "trials" / trial / part / "metrics.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)


POINT = {"pipeline": "cut1", "accuracy": 0.75, "loss": 0.5, "macs": 3, "more": {"f1_macro": 0.7}}
JOB = Job("s0001", "sample", {"params": {"width": 4, "kind": "cut"}, "rungs": [2, 4]}, epochs=9)


def test_a_training_is_told_from_its_log_and_its_outcome(tmp_path: Path, toys) -> None:
    jobs = Jobs(JOB)
    with tracked(jobs, tmp_path, study_of("toy")) as queue:
        job = queue.next()
        assert job == JOB
        lines = [{"epoch": n, "loss": 1 / n, "lr": 0.5, "seconds": 1.5} for n in (1, 2)]
        lines[1] |= {"val_accuracy": 0.25, "val_loss": math.inf}
        write_lines(tmp_path, "s0001", *lines)
        write_lines(tmp_path, "s0001", {"epoch": 1, "loss": 7.0}, part="plant")
        assert queue.finish(job, {"points": [POINT]}) == "booked"
        assert queue.next() is None
        assert queue.complete()
    facts = {"params.width": 4, "params.kind": "cut", "rungs": "[2, 4]"}
    assert toys["toy"].calls == [
        ("begin", "s0001", {"kind": "sample", "epochs": 9, **facts}),
        ("log", "s0001", 1, {"training/loss": 1.0, "training/lr": 0.5, "training/seconds": 1.5}),
        (
            "log", "s0001", 2,
            {
                "training/loss": 0.5, "training/lr": 0.5, "training/seconds": 1.5,
                "training/val_accuracy": 0.25,
            },
        ),
        ("log", "s0001", 1, {"plant/loss": 7.0}),
        (
            "end", "s0001", "done",
            {f"validation/cut1/{k}": POINT[k] for k in ("accuracy", "loss", "macs")}
            | {"validation/cut1/f1_macro": 0.7},
        ),
        ("close",),
    ]  # fmt: skip
    assert toys["toy"].threads == {"planter-trackers"}
    assert toys["another"].calls == []


def test_epochs_are_told_while_a_training_runs(tmp_path: Path, toys, monkeypatch) -> None:
    monkeypatch.setattr("planter.driver.trackers.tracking._LOOKS_EVERY_S", 0.01)
    with tracked(Jobs(JOB), tmp_path, study_of("toy")) as queue:
        job = queue.next()
        for epoch in (1, 2, 3):
            write_lines(tmp_path, "s0001", {"epoch": epoch, "loss": 1.0})
            end = time.monotonic() + 60
            while ("log", "s0001", epoch, {"training/loss": 1.0}) not in toys["toy"].calls:
                assert time.monotonic() < end
                time.sleep(0.005)
        with (tmp_path / "trials" / "s0001" / "metrics.jsonl").open("a") as out:
            out.write('{"epoch": 4, "lo')
        queue.finish(job, {"error": "no", "retry": True})
    assert [call[2] for call in toys["toy"].calls if call[0] == "log"] == [1, 2, 3]
    assert toys["toy"].calls[-2] == ("end", "s0001", "failed", {})


def test_what_is_interrupted_or_waits_is_told_as_stopped(tmp_path: Path, toys) -> None:
    jobs = Jobs(JOB, Job("s0002", "sample"), Job("s0003", "sample"))
    with tracked(jobs, tmp_path, study_of("toy")) as queue:
        queue.finish(queue.next(), {"paused": "after epoch 2"})
        queue.finish(queue.next(), {"partial": {"epochs": 2, "points": []}})
        queue.next()  # and nothing more, as where Ctrl-C ends it
    ends = {call[1]: call[2] for call in toys["toy"].calls if call[0] == "end"}
    assert ends == dict.fromkeys(["s0001", "s0002", "s0003"], "stopped")
    assert toys["toy"].calls[-1] == ("close",)


def test_each_plant_of_a_round_is_a_training(tmp_path: Path, toys) -> None:
    plants = [{"id": f"p01-conv{n}", "layer": f"conv{n}", "channels": 4} for n in (1, 2)]
    job = Job("p01-conv1", "plant", {"round": 1, "plants": plants})
    with tracked(Jobs(job), tmp_path, study_of("toy")) as queue:
        queue.finish(queue.next(), {"trials": {"p01-conv1": {"points": []}, "p01-conv2": {
            "error": "no"}}})  # fmt: skip
    begun = {call[1]: call[2]["layer"] for call in toys["toy"].calls if call[0] == "begin"}
    assert begun == {"p01-conv1": "conv1", "p01-conv2": "conv2"}
    ends = {call[1]: call[2] for call in toys["toy"].calls if call[0] == "end"}
    assert ends == {"p01-conv1": "done", "p01-conv2": "failed"}


def test_one_that_raises_is_warned_of_once_and_told_no_more(tmp_path: Path, toys, caplog) -> None:
    toys["toy"].raises = "log"
    with (
        caplog.at_level(logging.WARNING, "planter"),
        tracked(Jobs(JOB), tmp_path, study_of("toy", "another")) as queue,
    ):
        job = queue.next()
        write_lines(tmp_path, "s0001", *({"epoch": n, "loss": 1.0} for n in (1, 2)))
        queue.finish(job, {"points": [POINT]})
    (told,) = caplog.messages
    assert told == (
        "toy is told no more of this search, which goes on: OSError: the server is gone"
    )
    assert [call[0] for call in toys["toy"].calls] == ["begin", "log"]
    assert [call[0] for call in toys["another"].calls] == ["begin", "log", "log", "end", "close"]


def test_one_that_cannot_begin_stops_the_search_before_anything_is_trained(tmp_path: Path) -> None:
    def broken(run: Path, study: Any) -> Any:
        raise ConnectionError("no such host")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRACKERS, "broken", broken)
        with (
            pytest.raises(SearchStoppedError, match="broken cannot begin: ConnectionError: no"),
            tracked(Jobs(JOB), tmp_path, study_of("broken")),
        ):
            pytest.fail("it began")


def test_what_is_not_there_is_told_before_training(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_trackers.py").write_text("import planter_tests_missing\n")
    (tmp_path / "my_other.py").write_text("make = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TRACKERS, "lacking", "my_trackers:make")
    cases = {
        "lacking": "it needs the package 'planter_tests_missing', which is not installed: "
        "pip install 'planter\\[lacking\\]'",
        "my_trackers:make": "cannot import 'my_trackers'",
        "my_other:make": "it is a int: expected a function of",
        "my_other:none": "has no 'none'",
    }
    for name, told in cases.items():
        with pytest.raises(planter.StudyError, match=rf"trackers\.0: got {name}: .*{told}"):
            planter.search(
                write_study(tmp_path), out=tmp_path / "run", overrides=[f'trackers=["{name}"]']
            )
    assert not (tmp_path / "run").exists()
    with pytest.raises(planter.StudyError, match=r"'wandb'.*or a place such as my_pkg:make"):
        planter.search(write_study(tmp_path), overrides=["trackers=[mlfow]"])


def test_a_tracker_of_a_users_hears_of_every_training(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_toys.py").write_text(
        "from test_trackers import Toy\ntoy = Toy()\n"
        "def make(run, study):\n    toy.run, toy.study = run, study\n    return toy\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    study, run = write_study(tmp_path), tmp_path / "run"
    planter.search(study, out=run, overrides=[*FEW, "trackers=['my_toys:make']"])
    import my_toys

    toy = my_toys.toy
    assert (toy.run, toy.study["name"]) == (run, "small")
    points = {row["trial"]: row for row in planter.open_run(run).points}
    ends = {call[1]: call[3] for call in toy.calls if call[0] == "end"}
    assert set(points) <= set(ends)
    for trial, row in points.items():
        place = f"validation/{row['pipeline']}/accuracy"
        assert ends[trial][place] == pytest.approx(row["accuracy"])
    for trial in ("teacher", "b-width4", "s0000"):
        text = (run / "trials" / trial / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        told = [call for call in toy.calls if call[:2] == ("log", trial)]
        assert [call[2] for call in told] == [line["epoch"] for line in lines]
        assert [call[3]["training/loss"] for call in told] == [line["loss"] for line in lines]


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value. A record is its length, a checksum, an event and a checksum."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, at, found = file.read_bytes(), 0, {}
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        at += 12 + length + 4
    return found


def test_tensorboard_has_the_scalars_once_also_of_a_training_that_is_taken_up(
    tmp_path: Path,
) -> None:
    lines = [{"epoch": n, "loss": 2.0 / n, "lr": 0.125, "seconds": 1.5} for n in (1, 2)]
    lines[1] |= {"val_accuracy": 0.25, "val_loss": 3.0}
    expected = {
        **{("training/loss", n): 2.0 / n for n in (1, 2)},
        **{("training/lr", n): 0.125 for n in (1, 2)},
        **{("training/seconds", n): 1.5 for n in (1, 2)},
        ("training/val_accuracy", 2): 0.25,
        ("training/val_loss", 2): 3.0,
        ("validation/cut1/accuracy", 2): 0.75,
        ("validation/cut1/loss", 2): 0.5,
        ("validation/cut1/macs", 2): 3,
        ("validation/cut1/f1_macro", 2): 0.7,
    }
    write_lines(tmp_path, "s0001", *lines)
    for _ in range(2):
        with tracked(Jobs(JOB), tmp_path, study_of("tensorboard")) as queue:
            queue.finish(queue.next(), {"points": [POINT]})
        found = scalars(tmp_path / "trials" / "s0001" / "tensorboard")
        assert found == pytest.approx(expected)


def test_a_run_may_be_told_of_from_its_middle_on(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    planter.search(study, out=tmp_path / "run", overrides=FEW)
    assert not list((tmp_path / "run" / "trials").glob("*/tensorboard"))
    few = ["sample.trials=2", *FEW[1:], "tensorboard=true"]  # no other study than the one begun
    planter.search(study, out=tmp_path / "run", overrides=few)
    found = scalars(tmp_path / "run" / "trials" / "s0001" / "tensorboard")
    point = planter.open_run(tmp_path / "run").point("s0001/base")
    assert found["validation/base/accuracy", 2] == pytest.approx(point["accuracy"])


# Of the packages' own, in threads of theirs as well.
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_a_run_for_each_training(tmp_path: Path, monkeypatch, caplog) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write_lines(tmp_path, "s0001", *({"epoch": n, "loss": 2.0 / n} for n in (1, 2)))
    for _ in range(2):  # again, as after a kill
        with tracked(Jobs(JOB), tmp_path, study_of("mlflow")) as queue:
            queue.finish(queue.next(), {"points": [POINT]})
    assert not [one for one in caplog.records if one.name.startswith("planter")]
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("told")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"told", "s0001"}
    one = runs["s0001"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert one.data.tags["mlflow.parentRunId"] == runs["told"].info.run_id
    assert one.data.params["params.width"] == "4"
    history = client.get_metric_history(one.info.run_id, "training/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert one.data.metrics["validation/cut1/accuracy"] == 0.75


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_a_run_for_each_training_also_offline(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_lines(tmp_path, "s0001", *({"epoch": n, "loss": 2.0 / n} for n in (1, 2)))
    jobs = Jobs(JOB, Job("s0002", "sample"))
    with tracked(jobs, tmp_path, study_of("wandb")) as queue:
        both = queue.next(), queue.next()  # at a time
        for job in both:
            queue.finish(job, {"points": [POINT]})
    assert not [one for one in caplog.records if one.name.startswith("planter")]
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.stem.rpartition("-")[2] for file in files] == ["s0001", "s0002"]
    content = files[0].read_bytes()
    assert b"training/loss" in content
    assert b"params.width" in content
    assert b"validation/cut1/accuracy" in content


def test_no_thread_is_made_where_nobody_is_to_be_told(toys) -> None:
    jobs = Jobs(JOB)
    with tracked(jobs, Path("nowhere"), study_of()) as queue:
        assert queue is jobs
    assert "planter-trackers" not in {thread.name for thread in threading.enumerate()}
