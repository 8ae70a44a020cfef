"""Searches in processes of their own, what they are at, and what must hold when they end.

Used by test_kills.py, a few kills at a time, and by soak.py, many.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sockets import opened

import planter
from planter.driver.run_folder.read import read_points

TRIALS = 6
DEADLINE_S = 900  # many times what a search takes, for busy machines
# Long enough to be hit in the middle of a training.
SETTINGS = [
    "resources.workers=2",
    f"sample.trials={TRIALS}",
    "recipe.epochs=12",
    "plant.recipe.epochs=12",
]


def start(
    folder: Path,
    *overrides: str,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """A search of `folder/small.yaml` in a session of its own, into `folder/run`."""
    command = [sys.executable, "-c", "from planter.cli import main; main()"]
    command += ["search", str(folder / "small.yaml"), "--out", str(folder / "run"), *options]
    for override in [*SETTINGS, *overrides]:
        command += ["--set", override]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=env,
            # Tests that a script has started in the background would hand on that it is ignored.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text(errors="replace")


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, from the parent each names in /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found, frontier = [], [pid]
    while frontier:
        parent = frontier.pop()
        children = [child for child, its_parent in parents.items() if its_parent == parent]
        found += children
        frontier += children
    return found


def born(pid: int) -> str | None:
    """When a process began, which tells it from a later one of its number; None for none."""
    fields = _stat(pid)
    return None if not fields or fields[0] == "Z" else fields[19]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def workers(pid: int) -> list[int]:
    """The processes below `pid` that train: Ray names them after their actor, and after its wrapper
    while they are at work."""
    found = []
    for child in descendants(pid):
        try:
            name = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith((b"ray::TrainingActor", b"ray::ResourceTrainable")):
            found.append(child)
    return found


def held(pid: int, run: Path) -> list[str]:
    """The trials of a run that a process trains: it keeps their locks open."""
    files = [Path(name) for name in opened(pid) if name.endswith("/.lock")]
    return sorted({f.parent.name for f in files if f.parent.parent == run.resolve() / "trials"})


def kill(*pids: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def trials(folder: Path) -> set[str]:
    found = folder / "run" / "trials"
    return {path.name for path in found.iterdir()} if found.is_dir() else set()


def wait_for_trial(folder: Path, known: set[str], process: subprocess.Popen[bytes]) -> None:
    """Until a trial has begun that is not known yet, or the search has ended."""
    end = time.monotonic() + DEADLINE_S
    while process.poll() is None and not trials(folder) - known:
        assert time.monotonic() < end, log_of(folder)
        time.sleep(0.02)


def points_of(run: Path) -> dict[str, dict[str, Any]]:
    """Every point in the books by its id, without how long its training took."""
    return {
        point.id: {k: v for k, v in asdict(point).items() if k != "seconds"}
        for point in read_points(run)
    }


def differences(
    run: Path, reference: dict[str, dict[str, Any]], methods: Sequence[str]
) -> list[str]:
    """How the points of these methods differ from those of a search that nobody disturbed."""
    found = points_of(run)
    wrong = []
    for name in sorted({*found, *reference}):
        one, other = found.get(name), reference.get(name)
        if (one or other or {})["method"] in methods and one != other:
            keys = [k for k in one or other or {} if not (one and other) or one[k] != other[k]]
            pairs = ", ".join(f"{k} {(one or {}).get(k)} != {(other or {}).get(k)}" for k in keys)
            wrong.append(f"{name}: {pairs}")
    return wrong


def unlike_their_models(run: Path) -> list[str]:
    """The points whose saved network is missing, or scores something else than is reported. To be
    called with as many threads as a worker has."""
    front = json.loads((run / "pareto.json").read_text())
    losses = {point.id: point.loss for point in read_points(run)}
    data = planter.load_data(run)
    assert data.test is not None
    wrong = []
    for point in front["points"]:
        reported = point["on_front"] or point["method"] in ("teacher", "baseline")
        if point["model"] is None:
            wrong += [f"{point['id']}: no model"] if reported else []
            continue
        network = planter.load(run / point["model"])
        score = planter.evaluate(network, data.validation)
        test = planter.evaluate(network, data.test).accuracy if reported else None
        told = (point["accuracy"], losses[point["id"]], point["test_accuracy"])
        if (score.accuracy, score.loss, test) != told:
            wrong.append(f"{point['id']}: its model scores {score} and {test}, told {told}")
    return wrong
