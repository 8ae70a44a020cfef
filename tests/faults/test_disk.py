"""A disk that is full for a while, or for longer than a search waits: real ones, of a few MB."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from small_study import assert_whole, rows, write_study
from torch import nn
from torch.nn import functional

import planter
from planter import cli
from planter.data import load_data
from planter.driver.run_folder import documents
from planter.driver.schedule import Schedule
from planter.driver.storage import retrying
from planter.driver.tasks import context as context_module
from planter.driver.tasks.planting_step import PlantingStep
from planter.driver.trials.jobs import SearchStoppedError
from planter.front.points import read_front
from planter.machine import disk
from planter.networks import checkpoint
from planter.training import loop as train
from planter.training.recipe import Recipe


class Disk:
    """A file system of 32 MB that can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        assert os.statvfs(self.folder).f_bavail == 0

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount: file systems of their own cannot be made here")
    if done.returncode:
        pytest.skip(f"only root may mount a file system to fill: {done.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study finds on a disk with space."""
    folder = tmp_path_factory.mktemp("whole")
    return planter.search(write_study(folder), out=folder / "run")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of those who wait; `pauses` are the seconds slept, and `after(n, do)` makes
    something happen during the n-th."""
    clock = SimpleNamespace(pauses=[], happens={})
    clock.monotonic = lambda: sum(clock.pauses)
    clock.after = clock.happens.__setitem__

    def sleep(seconds: float) -> None:
        clock.pauses.append(seconds)
        clock.happens.get(len(clock.pauses), lambda: None)()

    clock.sleep = sleep
    monkeypatch.setattr(disk, "time", clock)
    monkeypatch.setattr(retrying, "time", clock)
    return clock


# Where a search writes: teachers and models, logits, optimisers, metrics, documents, pages, books.
PLACES: dict[str, tuple[Any, str]] = {
    "models": (checkpoint, "save"),
    "logits": (checkpoint, "write_tensors"),
    "optimiser": (checkpoint, "write_training"),
    "metrics": (context_module.Context, "metrics"),
    "round": (PlantingStep, "train"),
    "pages": (documents, "write_html"),
    "book": (optuna.Study, "tell"),
}


def fill_before(
    monkeypatch: pytest.MonkeyPatch, place: str, number: int, small_disk: Disk
) -> list[None]:
    """Fills the disk before a place is written for the n-th time; an item for each time."""
    owner, name = PLACES[place]
    write, times = getattr(owner, name), []

    def filled(*arguments: Any, **options: Any) -> Any:
        times.append(None)
        if len(times) == number:
            small_disk.fill()
        return write(*arguments, **options)

    monkeypatch.setattr(owner, name, filled)
    return times


@pytest.mark.parametrize(
    ("place", "number"),
    [("models", 1), ("models", 5), *((place, 1) for place in PLACES if place != "models")],
)
def test_a_full_disk_is_waited_for_and_changes_nothing(
    small_disk: Disk,
    whole: dict[str, Any],
    clock: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    number: int,
) -> None:
    run = small_disk.folder / "run"
    times = fill_before(monkeypatch, place, number, small_disk)
    clock.after(3, small_disk.free)
    front = planter.search(write_study(tmp_path), out=run)
    assert len(times) >= number
    assert clock.pauses == [0.5, 1.0, 2.0]
    assert_whole(front, run, whole)
    assert not list(small_disk.folder.rglob("*.new"))


@pytest.mark.parametrize(("place", "number"), [("models", 5), ("metrics", 4), ("book", 3)])
def test_a_disk_that_stays_full_stops_the_search_and_the_same_command_goes_on(
    small_disk: Disk,
    whole: dict[str, Any],
    clock: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    number: int,
) -> None:
    run, file = small_disk.folder / "run", write_study(tmp_path)
    fill_before(monkeypatch, place, number, small_disk)
    with pytest.raises(SearchStoppedError, match=r"(no space left|disk is full).*then go on"):
        planter.search(file, out=run)
    assert 500 < sum(clock.pauses) <= 600
    assert max(clock.pauses) == 30
    small_disk.free()
    states = [row.state.name for book in ("sampling", "planting") for row in rows(run, book)]
    assert "FAIL" not in states
    monkeypatch.undo()
    assert_whole(planter.search(file, out=run), run, whole)


def test_the_command_says_what_to_do_about_a_full_disk(
    small_disk: Disk,
    clock: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = small_disk.folder / "run"
    command = ["planter", "search", str(write_study(tmp_path)), "--out", str(run)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "500")
    fill_before(monkeypatch, "models", 3, small_disk)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4
    told = capsys.readouterr().err
    assert f"stopped: no space left in {run}" in told
    assert "for longer than a search waits (600 s): free some, then go on" in told
    assert "the same command goes on" in told
    assert "Traceback" not in told


def test_workers_wait_for_space_too(
    small_disk: Disk, whole: dict[str, Any], tmp_path: Path
) -> None:
    study, run = write_study(tmp_path), small_disk.folder / "run"
    # In a process of its own: Ray keeps what it has read of the environment when it was imported.
    program = "import sys, test_disk; print(test_disk.search_on_a_disk_that_fills(*sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(study), str(run)]
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    waited = done.stdout.split()[-1]
    assert_whole(read_front(run), run, whole)
    # Written when there was space again.
    assert "next try in" in (run / "trials" / waited / "log.txt").read_text()


def search_on_a_disk_that_fills(study: str, run: str) -> str:
    """Searches on a worker, on a disk that is full from the second job on until the worker could
    not write the line of an epoch; that trial."""
    disk, trials = Disk(Path(run).parent), Path(run) / "trials"
    waited: list[str] = []
    over = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        times = fill_before_job(patch, 2, disk.fill)

        def free_when_awaited() -> None:
            while not waited and not over.wait(0.1):
                empty = [f for f in trials.glob("*/metrics.jsonl") if f.stat().st_size == 0]
                if len(times) >= 2 and empty and not over.wait(0.5):
                    waited.extend(f.parent.name for f in empty[:1] if f.stat().st_size == 0)
            disk.free()

        thread = threading.Thread(target=free_when_awaited)
        thread.start()
        try:
            planter.search(study, out=run, overrides=["resources.workers=1"])
        finally:
            over.set()
            thread.join()
    return waited[0]


def fill_before_job(
    monkeypatch: pytest.MonkeyPatch, number: int, fill: Callable[[], None]
) -> list[None]:
    """Fills the disk when the driver hands out its n-th job."""
    hand_out, times = Schedule.next, []

    def filled(self: Any) -> Any:
        job = hand_out(self)
        if job is not None:
            times.append(None)
            if len(times) == number:
                fill()
        return job

    monkeypatch.setattr(Schedule, "next", filled)
    return times


def test_a_training_goes_on_without_checkpoints_while_the_disk_is_full(
    small_disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", -1.0)
    data = load_data("digits", subset=60)
    recipe = Recipe(epochs=3, batch=20, optimizer="adam", lr=0.01)
    file = small_disk.folder / "checkpoint.pt"

    def trained(on_epoch: Callable[[train.Epoch], None], to: Path | None) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        return train.fit(
            net,
            lambda model, batch: functional.cross_entropy(model(batch.images), batch.labels),
            data.train,
            recipe,
            seed=0,
            checkpoint=to,
            on_epoch=on_epoch,
        )

    def fill_in_the_second(epoch: train.Epoch) -> None:
        if epoch.epoch == 2:
            small_disk.fill()

    found = trained(fill_in_the_second, file).state_dict()
    assert "goes on without" in caplog.text
    expected = trained(lambda epoch: None, None).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    kept = checkpoint.read_training(file)
    assert kept is not None
    assert kept["epoch"] == 1
    assert set(os.listdir(small_disk.folder)) == {"ballast", "checkpoint.pt"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_only_a_lack_of_space_is_waited_for(
    clock: SimpleNamespace, tmp_path: Path, number: int
) -> None:
    def failing() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=r"no space left|Input/output") as caught:
        disk.when_there_is_space(failing, tmp_path)
    full = number != errno.EIO
    assert isinstance(caught.value, disk.NoSpaceError) == full
    assert bool(clock.pauses) == full
