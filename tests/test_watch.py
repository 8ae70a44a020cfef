"""`planter watch`, and all three commands on a search in another process."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_runs import POINTS, made_run
from rich.console import Console
from test_steering import SPACE, STUDY, facts, rows

import planter
from planter.cli import steering as shown
from planter.driver.run_folder import watched as looked
from planter.driver.run_folder.watched import Training, Watched, watched

LONG = ["p03-group1_1.conv1", "b-width16-16-32-32-64", "s0012"]


def standing(**changes: Any) -> Watched:
    now: dict[str, Any] = {
        "name": "cifar10-mobile-long-name",
        "driver": {"pid": 123456, "host": "a-node-with-a-long-name.cluster.example.org"},
        "gone": False,
        "done": 123,
        "failed": 2,
        "left": 1077,
        "trainings": [Training(name, 12, 120, 0.123456, 4.0, 0.91234, 95.0) for name in LONG],
        "points": len(POINTS),
        "objectives": ("accuracy", "macs"),
        "front": [p for p in POINTS if p.searched],
        "hypervolume": 1.23456,
        "seconds_left": 12345.0,
        "age": 1.0,
    }
    return Watched(**{**now, **changes})


def drawn(now: Watched, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(shown._picture(now))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_ids_and_counts_are_whole_at_every_width(width: int) -> None:
    lines = drawn(standing(), width)
    assert max(map(len, lines)) <= width
    for trial in LONG:
        (line,) = [line for line in lines if trial in line]
        assert "epoch 12/120  loss 0.1235" in line
        after = line + lines[lines.index(line) + 1]
        assert "  val 91.23 %  1 min 35 s left" in after
    assert sum("123/1200 done, 2 failed" in line for line in lines) == 1
    assert "(s0002/base)" in " ".join(lines)
    assert "hypervolume 1.235" in lines[-1]


def test_what_nobody_knows_is_not_told() -> None:
    trainings = [Training("e0001", 3, 0, None, 1.0), Training("s0002", 0, 9, None, None)]
    now = standing(
        trainings=trainings, front=[], hypervolume=None, seconds_left=None, failed=0, age=None
    )
    assert drawn(now, 100)[1:] == [
        f"{'━' * 20} 123/1200 done",
        "  e0001  epoch 3",
        "  s0002  starting",
        "nothing on the front yet",
    ]
    assert "silent for 5 min" in drawn(standing(age=300.0), 120)[0]
    assert "its search was killed" in drawn(standing(gone=True), 120)[0]
    assert "no search runs; 7 points" in drawn(standing(driver=None), 120)[0]


def test_a_finished_run_is_shown_once_and_nothing_is_written(
    tmp_path: Path, command_in: Callable[[Path], Any]
) -> None:
    run = made_run(tmp_path / "runs" / "made")
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.suffix != ".db-shm"}
    code, out, _ = command_in(tmp_path)("watch", "made")
    assert code == 0
    assert "no search runs; 7 points" in out
    assert "front 4, best 87.50 % (s0002/base)" in out
    after = {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.suffix != ".db-shm"}
    assert {f for f in after if before.get(f) != after[f] and "study.db-" not in f.name} == set()


def test_a_log_that_is_being_written_tells_its_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "trials" / "s0001" / "plant" / "metrics.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.5}\n{"epoch": 3, "lo')
    found = looked.training_of(tmp_path, "s0001", 9)
    assert found[:4] == ("s0001", 2, 9, 1.5)
    assert found.age is not None
    assert looked.training_of(tmp_path, "s0002", 9)[1:5] == (0, 9, None, None)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "space.py").write_text(SPACE)
    file = tmp_path / "steered.yaml"
    file.write_text(STUDY.replace("SPACE", str(tmp_path / "space.py")))
    return file


def test_a_search_is_seen_as_it_goes(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planter.driver import run as driver

    monkeypatch.setattr(driver, "_SHOWN_EVERY_S", 0.0)
    run, seen = study.parent / "run", list[tuple[Any, Watched]]()
    last: list[Any] = []

    def observe(now: Any) -> None:
        if last and last[-1].kind in ("start", "done"):
            seen.append((last[-1], watched(run)))  # what was told before this event
        last.append(now)

    planter.search(study, out=run, observe=observe)
    assert len(seen) >= 8
    for told, found in seen:
        assert found.searching
        assert (found.done, found.left, found.failed) == (told.done, told.left, told.failed)
        assert tuple(t.trial for t in found.trainings) == told.running
        assert all(t.epochs == 1 for t in found.trainings)
        assert found.hypervolume == pytest.approx(told.hypervolume)
    assert not watched(run).searching
    assert watched(run).left == 0


def test_lines_are_printed_where_something_changes_and_ctrl_c_ends_the_watching(
    study: Path, command_in: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    course = [
        standing(done=1, left=2),
        standing(done=1, left=2, hypervolume=1.3),
        standing(done=2, left=1, trainings=[]),
        standing(done=3, left=0, trainings=[], driver=None),
    ]
    monkeypatch.setattr(looked, "watched", lambda run: course.pop(0))
    made_run(study.parent / "runs" / "made")
    call = command_in(study.parent)
    code, out, _ = call("watch", "made", "--every", "0.1")
    assert code == 0
    lines = out.splitlines()
    assert [line.partition(" done")[0] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all(trial in lines[0] for trial in LONG)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    course += [standing()]
    monkeypatch.setattr(shown.time, "sleep", interrupted)
    code, _, err = call("watch", "made")
    assert code == 0
    assert "the search goes on" in err


def begun(study: Path, *overrides: str, log: str = "log.txt") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "planter", "search", str(study)]
    command += ["--out", str(study.parent / "run")]
    for override in overrides:
        command += ["--set", override]
    with (study.parent / log).open("ab") as out:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )


def until(what: Callable[[], Any], search: subprocess.Popen[bytes], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert search.poll() is None, "the search has ended"
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
    return found


def training(run: Path, many: int = 1) -> list[str]:
    """The trials that are seen to train, where so many are and one of them at least is sampled."""
    try:
        now = watched(run)
    except ValueError:  # only beginning
        return []
    found = [t.trial for t in now.trainings if t.epoch]
    return found if len(found) >= many and any(t.startswith("s") for t in found) else []


@pytest.mark.parametrize("url", [None, "journal"])
def test_a_search_in_another_process_is_watched_given_points_and_stopped(
    study: Path, command_in: Callable[[Path], Any], url: str | None
) -> None:
    run, call = study.parent / "run", command_in(study.parent)
    more = ["recipe.epochs=300", "sample.trials=30"]
    if url is not None:
        more.append(f"storage=journal:///{study.parent}/book.log")
    search = begun(study, *more)
    try:
        until(lambda: training(run), search)
        assert call("watch", str(run), "--once")[0] == 0
        code, out, err = call("enqueue", str(run), "width=4", "--point", "width=6 kind=plain")
        assert code == 0, err
        assert "enqueued: width=4\nenqueued: width=6 kind=plain" in out
        assert "of 30 trials are left; tried at the next draws" in out
        code, _, err = call("enqueue", str(run), "widht=4")
        assert code == 2
        assert "the space draws no 'widht'; expected some of width (2 to 9)" in err
        if url is None:
            until(lambda: [row for row in rows(run) if "enqueued" in row.user_attrs], search)
        code, out, _ = call("stop", str(run))
        assert code == 0
        assert f"process {search.pid}" in out
        assert search.wait(timeout=300) == 0
    finally:
        search.kill()
    found = json.loads((run / "pareto.json").read_text())
    assert [note["about"] for note in found["notes"]] == ["stop"]
    code, _, err = call("stop", str(run))
    assert code == 0
    assert "no search runs" in err
    code, out, _ = call("watch", str(run))
    assert "no search runs" in out
    if url is None:
        given = [r.user_attrs["enqueued"]["point"] for r in rows(run) if "enqueued" in r.user_attrs]
        assert given == [{"width": 4}, {"width": 6, "kind": "plain"}][: len(given)]


@pytest.mark.long
def test_workers_end_at_their_next_checkpoints_and_the_search_goes_on(
    study: Path, command_in: Callable[[Path], Any]
) -> None:
    whole, run = study.parent / "whole", study.parent / "run"
    # Trainings of five seconds or more: a worker may begin some seconds after the other.
    more = ["recipe.epochs=1000", "sample.trials=3"]
    planter.search(study, out=whole, overrides=more)
    call = command_in(study.parent)
    search = begun(study, *more, "resources.workers=2")
    try:
        until(lambda: training(run, 2), search)
        code, out, _ = call("stop", str(run), "--now")
        assert code == 0
        assert "next checkpoints" in out
        assert search.wait(timeout=300) == 130
    finally:
        search.kill()
    assert "the same command goes on" in (study.parent / "log.txt").read_text()
    open_ = [f"s{row.number:04d}" for row in rows(run) if row.state.name == "RUNNING"]
    assert open_
    for trial in open_:
        assert (run / "trials" / trial / "checkpoint.pt").is_file()
        log = (run / "trials" / trial / "log.txt").read_text()
        assert re.search(r"paused after epoch \d+ of 1000", log)
    assert begun(study, *more, "resources.workers=2").wait(timeout=600) == 0
    assert sorted(facts(run)[3:]) == sorted(facts(whole)[3:])
    assert [row.params for row in rows(run)] == [row.params for row in rows(whole)]


@pytest.mark.long
def test_points_reach_a_killed_search_of_workers_each_once(study: Path) -> None:
    from planter.driver.steering import enqueue

    run = study.parent / "run"
    more = ["recipe.epochs=300", "sample.trials=8", "resources.workers=2"]
    search = begun(study, *more)
    try:
        until(lambda: training(run), search)
        enqueue(run, [{"width": 4, "lr": 0.01}, {"width": 5, "lr": 0.02}])
        until(lambda: len(rows(run)) > 2, search)
    finally:
        search.kill()
        search.wait()
    enqueue(run, [{"width": 6, "lr": 0.03}])
    assert begun(study, *more).wait(timeout=600) == 0
    given = [r.user_attrs["enqueued"]["point"] for r in rows(run) if "enqueued" in r.user_attrs]
    expected = [{"width": 4, "lr": 0.01}, {"width": 5, "lr": 0.02}, {"width": 6, "lr": 0.03}]
    assert sorted(given, key=repr) == sorted(expected, key=repr)
    assert sum(row.state.name == "COMPLETE" for row in rows(run)) == 8


def test_a_book_that_is_only_begun_is_told(
    tmp_path: Path, command_in: Callable[[Path], Any]
) -> None:
    run = made_run(tmp_path / "runs" / "made", points=[], sample={"space": "convnet_cuts"})
    call = command_in(tmp_path)
    for words in (("enqueue", "made", "width=3"),):
        code, _, err = call(*words)
        assert code == 2
        assert "the search is only beginning" in err
    (run / "study.db").unlink()
    for words in (("watch", "made"), ("stop", "made"), ("enqueue", "made", "width=3")):
        code, _, err = call(*words)
        assert code == 2
        assert "has no study.db" in err
    made_run(tmp_path / "runs" / "plain")
    code, _, err = call("enqueue", "plain", "width=3")
    assert code == 2
    assert "samples nothing" in err
    assert call("enqueue", "plain")[0] == 2


def test_points_come_from_a_file_and_those_without_a_trial_are_told(
    study: Path, command_in: Callable[[Path], Any]
) -> None:
    run, call = study.parent / "run", command_in(study.parent)
    planter.search(study, out=run, overrides=["sample.trials=2"])
    (study.parent / "points.json").write_text('[{"width": 4, "pair": [3, 4]}, {"width": 5}]')
    code, out, err = call("enqueue", str(run), "--file", "points.json", "--set")
    assert code == 2
    code, out, err = call("enqueue", str(run), "--file", "points.json")
    assert code == 0
    assert out.splitlines() == ["enqueued: width=4 pair=(3, 4)", "enqueued: width=5"]
    assert "no trial is left for them: a search with --set sample.trials=4 has enough" in err
    (study.parent / "bad.yaml").write_text("- 3\n")
    for words in (["--file", "bad.yaml"], ["--point", ""], ["width"]):
        assert call("enqueue", str(run), *words)[0] == 2
    planter.search(study, out=run, overrides=["sample.trials=4"])
    assert [row.params["width"] for row in rows(run)[2:]] == [4, 5]
