"""Kills in the middle of a search on Ray: nothing is lost, doubled or left running."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_driver import assert_complete, write_study

TRIALS = 6
DEADLINE_S = 240


def start(folder: Path) -> subprocess.Popen:
    """A search whose trainings are long enough to be hit."""
    overrides = [
        "resources.workers=2", f"sample.trials={TRIALS}", "recipe.epochs=12",
        "plant.recipe.epochs=12",
    ]  # fmt: skip
    command = [sys.executable, "-c", "from planter.cli import main; main()"]
    command += ["search", str(folder / "small.yaml"), "--out", str(folder / "run")]
    for override in overrides:
        command += ["--set", override]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, from the parent each names in /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(after_name[1])
    found, frontier = [], [pid]
    while frontier:
        parent = frontier.pop()
        children = [child for child, its_parent in parents.items() if its_parent == parent]
        found += children
        frontier += children
    return found


def workers(pid: int) -> list[int]:
    """The processes below `pid` that train: Ray renames them to their actor."""
    found = []
    for child in descendants(pid):
        try:
            name = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and b"TrainingActor" in name:
            found.append(child)
    return found


def wait_for_trial(folder: Path, known: set[str], process: subprocess.Popen) -> None:
    """Until a trial has begun that is not known yet."""
    end = time.monotonic() + DEADLINE_S
    while process.poll() is None:
        assert time.monotonic() < end, (folder / "log.txt").read_text()
        trials = folder / "run" / "trials"
        if trials.is_dir() and {path.name for path in trials.iterdir()} - known:
            return
        time.sleep(0.02)


def trials(folder: Path) -> set[str]:
    found = folder / "run" / "trials"
    return {path.name for path in found.iterdir()} if found.is_dir() else set()


def kill_driver(folder: Path, generator: random.Random) -> None:
    """Starts the search and kills it with all it has started, some time after a new trial began."""
    process = start(folder)
    wait_for_trial(folder, trials(folder), process)
    time.sleep(generator.uniform(0, 2.5))
    everyone = [*descendants(process.pid), process.pid]
    for pid in reversed(everyone):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def finish(folder: Path, process: subprocess.Popen | None = None) -> None:
    process = process or start(folder)
    assert process.wait(DEADLINE_S) == 0, (folder / "log.txt").read_text()
    assert_complete(folder / "run", TRIALS)


def kill_workers(folder: Path, kills: int, generator: random.Random) -> None:
    """Runs a search to its end, killing a training worker now and then."""
    process = start(folder)
    for _ in range(kills):
        wait_for_trial(folder, trials(folder), process)
        time.sleep(generator.uniform(0, 1.5))
        if found := workers(process.pid):
            os.kill(generator.choice(found), signal.SIGKILL)
    finish(folder, process)


@pytest.mark.parametrize(
    ("drivers", "workers_killed"), [(2, 2), pytest.param(5, 5, marks=pytest.mark.long)]
)
def test_kill_9_loses_no_trial_doubles_none_and_leaves_none_running(
    tmp_path, drivers, workers_killed
):
    generator = random.Random(drivers)
    write_study(tmp_path)
    for _ in range(drivers):
        kill_driver(tmp_path, generator)
    finish(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    write_study(other)
    kill_workers(other, workers_killed, generator)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(tmp_path):
    write_study(tmp_path)
    process = start(tmp_path)
    wait_for_trial(tmp_path, {"teacher", "b-width4"}, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    log = (tmp_path / "log.txt").read_text()
    assert "interrupted" in log
    assert "the same command goes on" in log
    assert "Traceback" not in log
    finish(tmp_path)


def test_a_search_listens_on_the_loopback_only(tmp_path):
    write_study(tmp_path)
    process = start(tmp_path)
    try:
        wait_for_trial(tmp_path, set(), process)
        everyone = [process.pid, *descendants(process.pid)]
        inodes = set()
        for pid in everyone:
            try:
                links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
            except OSError:
                continue
            inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
        listening = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    listening.append(fields[1].partition(":")[0])
        loopback = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
        assert listening
        assert set(listening) <= loopback
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
