"""A teacher whose training is divided among processes: `teacher.processes`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import planter
from planter.driver.backends.divided import run_divided
from planter.driver.checking import estimate
from planter.driver.checking.check import prepare
from planter.driver.tasks.context import Context
from planter.driver.tasks.teacher import _key, _tell_of_others
from planter.driver.trials.jobs import Job, Queue
from planter.driver.trials.stacks import shape_of_job
from planter.study.file import study_of
from planter.study.schema import StudyError

LONG = 2000
"""Epochs, some seconds more than it takes to a checkpoint."""
SMALL: dict[str, Any] = {
    "name": "divided",
    "data": {"name": "digits", "subset": 240, "validation": 0.25},
    "teacher": {"builder": "convnet", "widths": 8},
    "baselines": [{"widths": 4}],
    "recipe": {"epochs": 3, "batch": 30, "optimizer": "adam", "lr": 0.01, "validate_every": 1},
    "resources": {"workers": 0},
}


def small(teacher: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    """The small study, whose teacher two processes train."""
    return {**SMALL, "teacher": {**SMALL["teacher"], "processes": 2, **(teacher or {})}, **other}


def metrics(run: Path) -> list[dict[str, Any]]:
    text = (run / "trials" / "teacher" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def weights(run: Path) -> torch.Tensor:
    network = planter.load(run / "models" / "teacher" / "base")
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def files(run: Path) -> set[str]:
    kept = (run / part for part in ("models", "trials"))
    return {str(f.relative_to(run)) for part in kept for f in part.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    planter.search(SMALL, out=run)
    return run


@pytest.fixture
def paused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings are told to end after the first epoch of the first of them."""
    asked: list[bool] = []
    monkeypatch.setattr(Context, "pause", lambda context: len(asked.append(True) or asked) == 2)


def assert_alike(alone: Path, run: Path) -> None:
    """What must hold of a run beside that of a teacher that one process has trained; weights of a
    network without norms differ by sums of float32, which Adam's three epochs make no larger."""
    torch.testing.assert_close(weights(run), weights(alone), rtol=1e-3, atol=1e-4)
    for mine, other in zip(metrics(run), metrics(alone), strict=True):
        assert list(mine) == list(other)
        assert (mine["train_macs"], mine["lr"]) == (other["train_macs"], other["lr"])
        for key in ("loss", "val_loss"):
            assert mine[key] == pytest.approx(other[key], rel=1e-4)
    assert files(run) == files(alone)
    rows = [json.loads((r / "pareto.json").read_text())["points"] for r in (run, alone)]
    known = [[(row["id"], row["macs"], row["train_macs"]) for row in each] for each in rows]
    assert known[0] == known[1]


def test_two_processes_give_the_teacher_of_one(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    planter.search(small(), out=run)
    assert_alike(alone, run)
    assert "processes: 2" in (run / "resolved.yaml").read_text()
    assert "processes" not in (alone / "resolved.yaml").read_text()
    # On a machine of fewer GPUs the run goes on with what is trained.
    planter.search(small({"processes": 1}), out=run)
    assert len(metrics(run)) == 3
    # Another study takes the one for the other's in neither direction: they are kept apart.
    key = next(path.name for path in (tmp_path / ".teachers").iterdir() if path.is_dir())
    assert not (alone.parent / ".teachers" / key).exists()


@pytest.mark.long
def test_a_paused_teacher_goes_on_with_two_processes(
    alone: Path, tmp_path: Path, paused_once: None
) -> None:
    run = tmp_path / "run"
    planter.search(small(), out=run)
    log = (run / "trials" / "teacher" / "log.txt").read_text()
    assert "teacher paused after epoch 1 of 3" in log
    assert "taken up after epoch 1 of 3" in log
    assert_alike(alone, run)


@pytest.mark.long
def test_with_workers_the_driver_trains_the_teacher_first(alone: Path, tmp_path: Path) -> None:
    told: list[str] = []
    run = tmp_path / "run"
    study = small(resources={"workers": 2})
    planter.search(study, out=run, observe=lambda progress: told.append(progress.event))
    assert_alike(alone, run)
    order = ["teacher starts", "teacher done", "2 workers start", "b-width4 done"]
    at = [next(i for i, text in enumerate(told) if text.startswith(one)) for one in order]
    assert at == sorted(at)


def begun(folder: Path, told: Any = None) -> tuple[dict[str, Any], subprocess.Popen[bytes]]:
    """A long study in a process of its own, whose teacher has a checkpoint, into `folder/run`."""
    study = small(recipe={**SMALL["recipe"], "epochs": LONG, "validate_every": 0})
    (folder / "study.yaml").write_text(json.dumps(study))
    command = [sys.executable, "-m", "planter", "search", "study.yaml", "--out", "run"]
    driver = subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=told)
    wait_for(lambda: any((folder / ".teachers").glob("*.part")))
    return study, driver


def assert_went_on(run: Path) -> None:
    log = (run / "trials" / "teacher" / "log.txt").read_text()
    assert "taken up after epoch " in log
    assert [line["epoch"] for line in metrics(run)] == list(range(1, LONG + 1))


@pytest.mark.long
def test_a_search_killed_while_two_processes_train_goes_on(tmp_path: Path) -> None:
    study, driver = begun(tmp_path)
    driver.kill()  # it alone: the processes it has started are to notice
    driver.wait()
    wait_for(lambda: not in_session(driver.pid))
    planter.search(study, out=tmp_path / "run")
    assert_went_on(tmp_path / "run")


@pytest.mark.long
def test_a_teacher_whose_process_is_killed_is_tried_again(tmp_path: Path) -> None:
    with (tmp_path / "told.txt").open("w") as file:
        _, driver = begun(tmp_path, file)
    one = max(pid for pid in in_session(driver.pid) if b"spawn_main" in command_of(pid))
    os.kill(one, signal.SIGKILL)
    assert driver.wait(timeout=300) == 0
    told = (tmp_path / "told.txt").read_text()
    assert "teacher failed: a process of the training was killed" in told
    assert "it is tried again" in told
    assert_went_on(tmp_path / "run")


def test_a_training_that_other_processes_have_begun_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [{"widths": 8}, "images"]
    (tmp_path / f"{_key(settings, 2)}.part").write_bytes(b"")
    _tell_of_others(tmp_path, settings, 2)
    assert caplog.text == ""  # its own
    _tell_of_others(tmp_path, settings, 1)
    assert "teacher.processes: 2 goes on with it, this one begins anew" in caplog.text


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.2)


def in_session(session: int) -> list[int]:
    """Processes of a session that live."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            of, state = os.getsid(int(name)), Path(f"/proc/{name}/stat").read_text()
        except OSError:
            continue
        if of == session and state.rpartition(")")[2].split()[0] != "Z":
            found.append(int(name))
    return found


class Jobs(Queue):
    """A queue of jobs, to see what becomes of them."""

    def __init__(self, *jobs: Job) -> None:
        self.left, self.ended = list(jobs), []

    def next(self) -> Job | None:
        return self.left.pop(0) if self.left else None

    def finish(self, job: Job, outcome: Any) -> None:
        self.ended.append((job.id, outcome))

    def complete(self) -> bool:
        return not self.left


def test_workers_get_what_follows_the_divided_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planter.driver.backends.local.run_job", lambda context, job: {"done": 1})
    again = Job("r", "repeat", {"points": ["teacher/base"], "steps": [{"kind": "teacher"}]})
    jobs = [Job("teacher", "teacher"), again, Job("b-a", "baseline"), Job("b-b", "baseline")]
    for processes, here in ((2, ["teacher", "r"]), (1, [])):
        study = study_of(small({"processes": processes}))
        data = planter.load_data(**SMALL["data"], seed=0)
        queue = Jobs(*jobs)
        rest = run_divided(Context(study, tmp_path, data, "", tmp_path), queue)
        assert [name for name, _ in queue.ended] == here
        assert not rest.complete()
        left = iter(rest.next, None)
        assert [job.id for job in left] == [job.id for job in jobs if job.id not in here]
        assert (shape_of_job(again, study) is None) == (processes == 2)


CONNECTED = small(
    {"builder": "connected", "widths": None}, baselines=[{"builder": "convnet", "widths": 4}]
)


@pytest.mark.parametrize(
    ("study", "place", "told"),
    [
        (small({"processes": 0}), "teacher.processes", "greater than or equal to 1"),
        (small({"processes": 1.5}), "teacher.processes", "integer"),
        (small(resources={"workers": 0, "gpu": 1}), "teacher.processes", "has 1 GPU"),
        (small({"processes": 31}), "teacher.processes", "batches of 30 images for 31 processes"),
        (small({"recipe": {"accumulate": 2}}), "teacher.processes", "accumulate 2"),
        (small({"recipe": {"precision": "bfloat16"}}), "teacher.processes", "precision bfloat16"),
        (small({"recipe": {"compile": True}}), "teacher.processes", "compile True"),
        (
            CONNECTED,
            "teacher.processes",
            "cannot be sent to another process",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused_before_training(
    study: dict[str, Any],
    place: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "gpu" in study["resources"]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StudyError) as caught:
        planter.search(study, out=tmp_path / "run", networks={"connected": Connected})
    (problem,) = caught.value.problems
    assert problem.place == place
    assert told in str(problem)
    assert not (tmp_path / "run").exists()


class Connection:
    """What a process has for itself: copies of a network share it."""

    def __deepcopy__(self, memo: Any) -> Connection:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a connection stays where it is")


class Connected(torch.nn.Module):
    """A network that no other process can be given."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc, self.connection = torch.nn.Linear(64, classes), Connection()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.flatten(1))


def test_a_teacher_that_is_given_is_trained_by_nobody(alone: Path, tmp_path: Path) -> None:
    folder = str(alone / "models" / "teacher" / "base")
    for teacher in (
        {"model": folder},
        {"builder": "convnet", "weights": f"{folder}/weights.safetensors", "recipe": None}
        | {"widths": 8},
    ):
        study = study_of({**SMALL, "teacher": {**teacher, "processes": 2}})
        with pytest.raises(StudyError, match=r"teacher\.processes: got 2, .* no training to share"):
            prepare(study)


def test_more_processes_than_cores_are_told_and_divide_the_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = prepare(study_of(small({"processes": 15}, resources={"workers": 0, "cpu": 100})))
    assert "15 processes of 100 threads (resources.cpu) share" in " ".join(many.warnings)
    monkeypatch.setattr(estimate._Pace, "of_training", lambda pace, planned: 100.0)
    for processes, seconds in ((1, 75.0), (2, 50.0), (4, 25.0)):
        # One process of four workers has a baseline trained beside it, which takes a quarter.
        study = study_of(small({"processes": processes}, resources={"workers": 4}))
        assert estimate.estimated(study, prepare(study)).parts["teacher"].seconds == seconds


@pytest.mark.long
def test_ctrl_c_reaches_the_processes(tmp_path: Path) -> None:
    study = small(recipe={**SMALL["recipe"], "epochs": 100_000})
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    command = [sys.executable, "-m", "planter", "search", "study.yaml"]
    driver = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    line = tmp_path / "runs" / "divided" / "trials" / "teacher" / "metrics.jsonl"
    wait_for(line.is_file)
    os.killpg(driver.pid, signal.SIGINT)
    _, told = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "Traceback" not in told
    wait_for(lambda: not in_session(driver.pid))  # Python's own, which clears up behind it
