"""Profiles; one torch thread, one seed and no given networks; commands on a finished run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from planter.backbones.outside.own import NETWORKS

Command = Callable[..., tuple[int, str, str]]

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True)
def _one_thread_one_seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _given_networks_forgotten() -> Iterator[None]:
    """`planter.search(networks=...)` keeps them in the process: no test sees another's."""
    before = dict(NETWORKS)
    yield
    NETWORKS.clear()
    NETWORKS.update(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder that holds a finished run, runs/small."""
    from test_driver import write_study

    import planter

    folder = tmp_path_factory.mktemp("place")
    write_study(folder)
    planter.search(folder / "small.yaml", out=folder / "runs" / "small")
    return folder


@pytest.fixture
def command_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], Command]:
    """A function that runs `planter ARGUMENTS` in a folder; exit code, stdout and stderr."""
    from planter import cli

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["planter", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def within(folder: Path) -> Command:
        monkeypatch.chdir(folder)
        return run

    return within


@pytest.fixture
def call(place: Path, command_in: Callable[[Path], Command]) -> Command:
    """Runs `planter ARGUMENTS` beside the finished run."""
    return command_in(place)


@pytest.fixture
def forked_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported files are checked in forks of a process that has torch, not in new processes: of
    many exports these take most of the time."""
    import preloaded

    import planter.export

    monkeypatch.setattr(planter.export, "subprocess", preloaded)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images are not left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
