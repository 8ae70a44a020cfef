"""Kills in the middle of a search on Ray: nothing is lost, doubled or left running."""

import copy
import json
import math
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from kills import (
    DEADLINE_S,
    SETTINGS,
    TRIALS,
    descendants,
    differences,
    held,
    kill,
    log_of,
    points_of,
    start,
    trials,
    unlike_their_models,
    wait_for_trial,
    workers,
)
from test_driver import assert_complete, rows, write_study

import planter

RANDOM = "sample.sampler=random"
EVERY = ("teacher", "baseline", "plant", "sample")


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory):
    """A run of the same study, in one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    overrides = [*SETTINGS, RANDOM, "resources.workers=0"]
    planter.search(write_study(folder), out=folder / "run", overrides=overrides)
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run):
    return points_of(undisturbed_run)


def test_the_comparison_sees_one_bit_a_lost_point_and_a_lost_model(
    undisturbed_run, undisturbed, tmp_path
):
    assert differences(undisturbed_run, undisturbed, EVERY) == []
    changed = copy.deepcopy(undisturbed)
    point = changed["s0002/base"]
    point["loss"] = math.nextafter(point["loss"], 9)
    (difference,) = differences(undisturbed_run, changed, EVERY)
    assert difference.startswith("s0002/base: loss ")
    assert differences(undisturbed_run, changed, ("teacher", "baseline", "plant")) == []
    del changed["s0002/base"], changed["teacher/base"]
    assert len(differences(undisturbed_run, changed, EVERY)) == 2
    assert unlike_their_models(undisturbed_run) == []
    copied = shutil.copytree(undisturbed_run, tmp_path / "run")
    front = json.loads((copied / "pareto.json").read_text())
    other = next(p for p in front["points"] if p["method"] == "baseline")
    other["accuracy"] += 0.01
    next(p for p in front["points"] if p["method"] == "teacher")["model"] = None
    (copied / "pareto.json").write_text(json.dumps(front))
    lost, scored = sorted(unlike_their_models(copied), reverse=True)
    assert lost == "teacher/base: no model"
    assert scored.startswith("b-width4/base: its model scores")


def assert_sound(folder: Path, undisturbed) -> None:
    assert_complete(folder / "run", TRIALS)
    assert differences(folder / "run", undisturbed, EVERY) == []
    assert unlike_their_models(folder / "run") == []


def finish(folder: Path, process=None) -> None:
    process = process or start(folder, RANDOM)
    assert process.wait(DEADLINE_S) == 0, log_of(folder)


def kill_driver(folder: Path, generator: random.Random, *, alone: bool) -> None:
    """Starts the search and kills it some time after a new trial began: with all it has started,
    or alone, so that its workers go on until they notice."""
    process = start(folder, RANDOM)
    wait_for_trial(folder, trials(folder), process)
    time.sleep(generator.uniform(0, 2.5))
    kill(process.pid, *([] if alone else descendants(process.pid)))
    process.wait()


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.long)])
def test_kill_9_of_the_driver_loses_no_trial_and_doubles_none(tmp_path, undisturbed, kills):
    generator = random.Random(kills)
    write_study(tmp_path)
    for number in range(kills):
        kill_driver(tmp_path, generator, alone=number % 2 == 0)
    finish(tmp_path)
    assert_sound(tmp_path, undisturbed)


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.long)])
def test_kill_9_of_workers_loses_no_trial_and_doubles_none(tmp_path, undisturbed, kills):
    generator = random.Random(kills)
    write_study(tmp_path)
    process = start(tmp_path, RANDOM)
    hit = set()
    for _ in range(kills):
        wait_for_trial(tmp_path, trials(tmp_path), process)
        time.sleep(generator.uniform(0, 1.5))
        at_work = {pid: held(pid, tmp_path / "run") for pid in workers(process.pid)}
        # A trial hit twice is given up, which the next test sees to.
        fresh = [pid for pid, names in at_work.items() if names and not hit & {*names}]
        if fresh:
            pid = generator.choice(fresh)
            hit |= {*at_work[pid]}
            kill(pid)
    finish(tmp_path, process)
    assert_sound(tmp_path, undisturbed)


@pytest.mark.long
def test_a_trial_whose_worker_dies_twice_is_recorded_as_failed_and_the_others_go_on(tmp_path):
    write_study(tmp_path)
    process = start(tmp_path, RANDOM, "recipe.epochs=40")
    struck: list[int] = []
    end = time.monotonic() + DEADLINE_S
    while len(struck) < 2 and process.poll() is None:
        assert time.monotonic() < end, log_of(tmp_path)
        for pid in workers(process.pid):
            if pid not in struck and "s0001" in held(pid, tmp_path / "run"):
                kill(pid)
                struck.append(pid)
        time.sleep(0.02)
    finish(tmp_path, process)
    states = {row.number: row.state.name for row in rows(tmp_path / "run", "small/sampling")}
    assert states == dict.fromkeys(range(TRIALS), "COMPLETE") | {1: "FAIL"}
    log = log_of(tmp_path)
    assert "s0001 failed: its worker process died; it is tried again" in log
    assert "s0001 failed: its worker process died; see trials/s0001/log.txt" in log


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
    process = start(tmp_path)
    finish(tmp_path, process)
    assert_complete(tmp_path / "run", TRIALS)
