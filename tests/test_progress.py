"""What a search shows of its trainings while they run, from their logs."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from interrupted import interrupt_around_jobs, until_it_ends
from made_runs import POINTS
from rich.console import Console

import planter
from planter.cli import progress as shown
from planter.cli.progress import ProgressDisplay
from planter.driver.progress import Progress
from planter.driver.run_folder.watched import training_of
from planter.driver.tasks import planting


def write_log(run: Path, trial: str, lines: list[dict[str, Any]]) -> None:
    folder = run / "trials" / trial
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def told(**changes: Any) -> Progress:
    now: dict[str, Any] = {
        "kind": "start",
        "event": "s0003 starts",
        "done": 2,
        "failed": 1,
        "running": ("teacher", "s0003"),
        "left": 5,
        "front": tuple(p for p in POINTS if p.searched),
        "hypervolume": 1.5,
        "seconds_left": 75.0,
        "epochs": {"teacher": 8, "s0003": 6},
    }
    return Progress(**{**now, **changes})


LINES = [
    {"epoch": n, "loss": 1.0 / n, "seconds": 40.0 if n == 1 else 2.0, "val_loss": 0.5 * n}
    for n in range(1, 7)
]
LINES[3]["val_accuracy"] = 0.75


def test_the_latest_validation_and_the_time_left_are_those_of_the_log(tmp_path: Path) -> None:
    write_log(tmp_path, "teacher", LINES)
    found = training_of(tmp_path, "teacher", 8)
    assert found[:4] == ("teacher", 6, 8, pytest.approx(1 / 6))
    assert found.validation == 0.75
    assert found.age is not None
    # Two epochs of two seconds; the slow first one is not among the last five.
    assert found.seconds_left == pytest.approx(2 * 2.0 - found.age, abs=0.1)
    assert training_of(tmp_path, "teacher", 8, "loss").validation == pytest.approx(3.0)
    assert training_of(tmp_path, "teacher", 8, "f1_macro").validation is None
    assert training_of(tmp_path, "teacher", 0).seconds_left is None


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_shows_each_training(width: int, tmp_path: Path) -> None:
    write_log(tmp_path, "teacher", LINES)
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    with ProgressDisplay(console, tmp_path) as display:
        display.show(told())
        console.print("-- above --")
        display.show(told(kind="done", event="b-width4 done: base 90.00 % at 3 macs"))
        picture = io.StringIO()
        Console(file=picture, width=width).print(display._picture())
    lines = picture.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "2/7 done, 1 failed, 0:00:0" in lines[0]
    assert "  teacher  epoch 6/8  loss 0.1667  val 75.00 %" in "\n".join(lines)
    assert "  s0003    starting" in lines
    assert "s0002/base" in picture.getvalue()
    assert "b-width4 done: base 90.00 % at 3 macs" in file.getvalue()
    assert "epoch 6/8" in file.getvalue()


def test_plain_lines_tell_what_has_advanced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "_TOLD_EVERY_S", 0.02)
    monkeypatch.setattr(shown, "_LOOKS_EVERY_S", 0.0)
    file = io.StringIO()
    write_log(tmp_path, "teacher", LINES[:5])

    def until(text: str) -> None:
        end = time.monotonic() + 60
        while text not in file.getvalue():
            assert time.monotonic() < end, file.getvalue()
            time.sleep(0.01)

    with ProgressDisplay(Console(file=file, width=40), tmp_path) as display:
        display.show(told())
        until("epoch 5/8")
        write_log(tmp_path, "teacher", LINES)
        until("epoch 6/8")
        display.show(told(kind="done", event="s0003 done"))
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("[2/7] teacher  epoch 5/8  loss 0.2000  val 75.00 %")
    assert [line for line in lines if "epoch" in line] == lines[:2]
    assert lines[2].startswith("[2/7] s0003 done; front 5, best 87.50 % (s0002/base)")
    assert lines[2].endswith("about 1 min 15 s left")


def test_planted_candidates_write_their_epochs_as_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = {
        "name": "plants",
        "data": {"name": "digits", "subset": 120},
        "teacher": {"builder": "convnet", "widths": 4},
        "recipe": {"epochs": 1, "batch": 30},
        "plant": {"start": 3, "rounds": 1, "layers": ["conv1", "conv5"], "recipe": {"epochs": 3}},
        "resources": {"workers": 0},
    }
    written, real = list[tuple[str, int]](), planting.epochs_to

    def noted(file: Path) -> Any:
        write = real(file)

        def one(epoch: Any) -> None:
            write(epoch)
            lines = file.read_text().splitlines()
            written.append((file.parent.name, len(lines)))

        return one

    monkeypatch.setattr(planting, "epochs_to", noted)
    run = planter.search(study, out=tmp_path / "run")
    trials = sorted({name for name, _ in written})
    assert len(trials) == 2
    for trial in trials:
        counts = [count for name, count in written if name == trial]
        assert counts in ([1, 2, 3], [1, 2, 3] * 2)  # one that is dead is planted once more
        lines = (run.path / "trials" / trial / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


SEARCH = """
name: counted
data: {name: digits, subset: 120}
teacher: {builder: convnet, widths: 6}
baselines: [{widths: 4}]
recipe: {epochs: 4, batch: 30, optimizer: adam, lr: 0.01}
plant: {start: 3, rounds: 2, layers: [conv1, conv5], recipe: {epochs: 1, batch: 30}}
sample: {space: convnet_cuts, trials: 3}
evolve: {trials: 3}
resources: {workers: 0}
"""
HALVING = "early_stopping={rungs: [0.5], keep: 0.5, wait: 2}"


@pytest.mark.parametrize("overrides", [[], [f"sample.{HALVING}", f"evolve.{HALVING}"]])
def test_a_search_that_goes_on_counts_on(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "counted.yaml"
    file.write_text(SEARCH)
    commands: list[list[tuple[int, int]]] = []

    def search() -> Any:
        written, run = io.StringIO(), tmp_path / "run"
        try:
            with ProgressDisplay(Console(file=written, width=80), run) as display:
                return planter.search(file, out=run, overrides=overrides, observe=display.show)
        finally:
            told = re.findall(r"^\[(\d+)/(\d+)\]", written.getvalue(), re.MULTILINE)
            commands.append([(int(done), int(every)) for done, every in told])

    cut_off = ["teacher", "b-width4", "p01-conv1", "s0001", "e0001"]
    ahead = interrupt_around_jobs(monkeypatch, cut_off)
    front = until_it_ends(search, least=2 * len(cut_off))
    assert not ahead
    seen = [one for counts in commands for one in counts]
    assert len(commands) == 2 * len(cut_off) + 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= every for done, every in seen)
    trials = {point["trial"] for point in front["points"]}
    stopped = {f.name for f in (tmp_path / "run/trials").iterdir()} - trials
    assert seen[-1] == (len(trials | stopped),) * 2
    if not overrides:
        assert not stopped
