"""Trainings that fail: recorded with the reason, which names the trial and its log; the study goes
on. Images that cannot be read: told before anything is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

import planter
from planter import cli
from planter.driver.trials.jobs import SearchStoppedError
from planter.study.schema import StudyError

STUDY = """
name: small
data: {name: digits, subset: 240, validation: 0.25}
recipe: {epochs: 2, batch: 30, optimizer: adam, lr: 0.01, schedule: constant}
objectives: {macs_reference: 1.0e+6}
sample: {space: "SPACE:space", trials: 7, sampler: random}
resources: {workers: 0}
"""
# Trials 1 to 5 go wrong in a way each. That the space itself does so is not seen by the check, for
# which there is no run yet.
SPACE = """
from pathlib import Path
from planter import Architecture, Candidate

WAYS = ["sound", "raises", "no number", "swells", "dies", "space", "sound"]

def space(trial):
    width = trial.suggest_int("width", 4, 6)
    trial.suggest_float("idle", 0, 1)
    names = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc1"]
    how = WAYS[trial.number] if trial.number < len(WAYS) else "sound"
    if how == "space" and Path("RUN").exists():
        raise KeyError("no such choice")
    return Candidate(Architecture("failing_nets:build", dict.fromkeys(names, width), {"how": how}))
"""
BUILDER = """
import os, signal
from collections import OrderedDict
import torch
from planter.backbones import StagedNet
from planter.backbones.convnet import convnet
from torch import nn

class Wild(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if not self.training or x.device.type == "meta":
            return x
        if self.how == "raises":
            raise KeyError("broken on purpose")
        if self.how == "no number":
            return x * float("nan")
        if self.how == "swells":
            return x + torch.ones(2**44).sum()
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return x

def build(widths, *, classes=10, image=(1, 8, 8), how="sound"):
    net = convnet(widths, classes=classes, image=image)
    stages = OrderedDict(wild=Wild(how), **dict(net.stages.named_children()))
    return StagedNet(nn.Sequential(stages), net.head)
"""
# Ray tells of a worker that it ends for want of memory, and of a machine that is gone, by errors
# that its Tune does not know.
TOLD_OTHERWISE = """
import itertools, ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
from planter.cli import main

get, deaths = ray.get, itertools.count(1)

def told_otherwise(*given, **named):
    try:
        return get(*given, **named)
    except RayActorError as error:
        raise {1: OutOfMemoryError, 2: NodeDiedError}[next(deaths)](str(error)) from None

ray.get = told_otherwise
main()
"""
# Ctrl-C while Ray is imported, which takes a second or two.
INTERRUPTED = """
import sys
from planter.cli import main

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "ray.util.annotations":
            sys.meta_path.remove(self)  # once, as a person does
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
main()
"""
REASONS = {
    1: "KeyError: 'broken on purpose'",
    2: "FloatingPointError: training loss became nan in epoch 1 of 2",
    3: "allocate",
    4: "its worker process died",
    5: "KeyError: 'no such choice'",
}


def write_study(folder: Path, **more: Any) -> Path:
    (folder / "space.py").write_text(SPACE.replace("RUN", str(folder / "run")))
    (folder / "failing_nets.py").write_text(BUILDER)
    file = folder / "small.yaml"
    file.write_text(STUDY.replace("SPACE", str(folder / "space.py")))
    return file


def rows(run: Path, book: str) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{run / 'study.db'}"
    return optuna.load_study(study_name=f"small/{book}", storage=storage).get_trials()


def assert_failed(run: Path, told: list[str], number: int, reason: str) -> None:
    """In the book, in the message and, what was trained, in the log."""
    row = rows(run, "sampling")[number]
    assert row.state.name == "FAIL"
    assert reason in row.user_attrs["error"]
    lines = [line for line in told if f"s{number:04d} failed: " in line]
    assert all(reason in line for line in lines)
    if number == 5:
        assert "space.py, line 13" in lines[0]
        return
    assert f"; see trials/s{number:04d}/log.txt" in lines[-1]
    log = (run / "trials" / f"s{number:04d}" / "log.txt").read_text()
    if reason == REASONS[4]:
        # Once more, as it may have been the machine; then it is given up.
        assert len(lines) == 2
        assert "it is tried again" in lines[0]
        assert log.count(" starts") == 2
    else:
        assert len(lines) == 1
        assert "Traceback (most recent call last)" in log
        assert reason in log


def test_failures_in_this_process_are_recorded_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    study, run, told = write_study(tmp_path), tmp_path / "run", []
    space = tmp_path / "space.py"
    space.write_text(space.read_text().replace('"dies"', '"sound"'))  # it would be the driver
    front = planter.search(study, out=run, observe=lambda progress: told.append(progress.event))
    assert {point["trial"] for point in front["points"]} == {"s0000", "s0004", "s0006"}
    for number in (1, 2, 3, 5):
        assert_failed(run, told, number, REASONS[number])


def searched_by_workers(
    folder: Path, workers: int, program: str = "from planter.cli import main; main()"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, "search"]
    command += [str(write_study(folder)), "--out", str(folder / "run"), "--workers", str(workers)]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_failures_of_workers_are_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    done = searched_by_workers(tmp_path, 1)
    assert done.returncode == 0, done.stderr
    front = json.loads((tmp_path / "run" / "pareto.json").read_text())
    assert {point["trial"] for point in front["points"]} == {"s0000", "s0006"}
    for number, reason in REASONS.items():
        assert_failed(tmp_path / "run", done.stdout.splitlines(), number, reason)


def test_workers_that_end_for_memory_or_with_their_machine_do_not_end_the_search(
    tmp_path: Path,
) -> None:
    done = searched_by_workers(tmp_path, 2, TOLD_OTHERWISE)
    assert done.returncode == 0, done.stderr
    first, second = (line for line in done.stdout.splitlines() if "s0004 failed: " in line)
    assert "the machine's memory ran short" in first
    assert "now at most 1 at a time; it is tried again" in first
    assert REASONS[4] in second
    front = json.loads((tmp_path / "run" / "pareto.json").read_text())
    assert {point["trial"] for point in front["points"]} == {"s0000", "s0006"}


def test_ctrl_c_while_ray_is_imported_ends_as_at_any_time(tmp_path: Path) -> None:
    done = searched_by_workers(tmp_path, 1, INTERRUPTED)
    assert done.returncode == 130, done.stderr
    assert "the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_many_failures_end_the_study_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    study, run = write_study(tmp_path), tmp_path / "run"
    with pytest.raises(SearchStoppedError, match=r"2 trials failed, resources.max_failures is 1"):
        planter.search(study, out=run, overrides=["resources.max_failures=1"])
    assert [row.state.name for row in rows(run, "sampling")] == ["COMPLETE", "FAIL", "FAIL"]


def test_a_data_function_that_raises_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_data.py").write_text("def make():\n    raise KeyError('no such file')\n")
    with pytest.raises(StudyError, match=r"failing_data:make raised KeyError: 'no such file'"):
        planter.search(
            write_study(tmp_path),
            out=tmp_path / "run",
            overrides=["data={name: 'failing_data:make'}"],
        )
    assert not (tmp_path / "run").exists()


# Images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders of train and test images."""
    drawn = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(10):
                pixels = drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return tmp_path / "images"


def searched(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and message of a search on these images."""
    study = images.parent / "pets.yaml"
    study.write_text(
        f"name: pets\ndata: {{name: folder, root: {images}}}\n"
        "baselines: [{builder: convnet, widths: 3}]\nobjectives: {macs_reference: 1.0e+6}\n"
        "recipe: {epochs: 1, batch: 10}\nresources: {workers: 0}\n"
    )
    command = ["planter", "search", str(study), "--out", str(images.parent / "run")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "500")
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().err


def test_images_that_cannot_be_read_are_named_all_at_once_and_nothing_is_trained(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [
        images / "train" / "cat" / "0.png",
        images / "train" / "cat" / "1.jpg",
        images / "train" / "dog" / "text.png",
        images / "train" / "dog" / "empty.jpeg",
        images / "test" / "dog" / "3.jpg",
    ]
    broken[2].write_text("not an image")
    broken[3].write_bytes(b"")
    for file in (broken[0], broken[1], broken[4]):
        os.truncate(file, file.stat().st_size // 2)
    code, told = searched(images, monkeypatch, capsys)
    assert code == 2
    assert "data.root" in told
    assert "replace or remove" in told
    assert [told.count(f"{file} cannot be read as an image") for file in broken] == [1] * 5
    assert told.count("cannot be read") == 5
    assert not (images.parent / "run").exists()
    for file in broken:
        file.unlink()
    assert searched(images, monkeypatch, capsys)[0] == 0


def test_of_many_images_that_cannot_be_read_some_are_named_and_the_rest_counted(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (images / "train").rglob("*.png"):
        file.write_bytes(b"")
    code, told = searched(images, monkeypatch, capsys)
    assert code == 2
    assert told.count("cannot be read as an image") == 10
    assert "and 10 more" in told
