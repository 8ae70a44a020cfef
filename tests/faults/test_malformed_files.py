"""Study files that are no files, cannot be read, or hold code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_driver import SPACE
from test_malformed import _SPACES, COMMAND, Refused, study_text, write

from planter import cli


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files that the studies name."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "space.py").write_text(SPACE)
    (folder / "spaces.py").write_text(_SPACES)
    (folder / "no_python.py").write_text("def space(:\n")
    (folder / "leaves.py").write_text("raise SystemExit\n")
    for name in ("one_class/a", "no_images/a", "no_images/b", "broken_images/a", "broken_images/b"):
        (folder / name).mkdir(parents=True)
    (folder / "broken_images" / "a" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    models = {
        "cut_short": '{"format": 1',
        "a_list": "[]",
        "no_architecture": '{"format": 1, "pipeline": "base"}',
        "other_format": '{"format": 99}',
    }
    for name, text in models.items():
        (folder / name).mkdir()
        (folder / name / "arch.json").write_text(text)
        (folder / name / "weights.safetensors").touch()
    return folder


@pytest.fixture
def refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Runs `planter check` and `planter search` on a study file; what they say is that there is one
    problem at this place, and they leave nothing behind."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "app", COMMAND)

    def run(study: str, told: str) -> str:
        before = sorted(place.iterdir())
        said = []
        for command in (["check", study], ["search", study, "--out", "run"]):
            monkeypatch.setattr(sys, "argv", ["planter", *command])
            with pytest.raises(SystemExit) as end:
                cli.main()
            captured = capsys.readouterr()
            assert end.value.code == 2, captured.err
            assert captured.out == ""
            said.append(captured.err)
        assert said[0] == said[1]
        first, second, *more, last = said[0].splitlines()
        assert re.fullmatch(r"planter: .*: 1 problem", first)
        assert second.startswith(f"  {told}: got "), said[0]
        assert not any(re.match(r"  \S+: got ", line) for line in more)
        assert last == "--debug shows where this was raised"
        assert "Traceback" not in said[0]
        assert sorted(place.iterdir()) == before
        return second

    return run


def test_a_folder_in_place_of_a_file_is_told(refused: Refused) -> None:
    assert "one_class" in refused("one_class", "STUDY")


def test_a_name_of_nothing_is_told(refused: Refused) -> None:
    assert "quickstart" in refused("no_such_study.yaml", "STUDY")


def test_a_pipe_is_not_waited_for(place: Path, refused: Refused) -> None:
    os.mkfifo(place / "pipe.yaml")
    refused("pipe.yaml", "STUDY")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told(place: Path, refused: Refused) -> None:
    write(place, study_text().encode())
    (place / "study.yaml").rename(place / "locked.yaml")
    (place / "locked.yaml").chmod(0)
    refused("locked.yaml", "file")


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs Linux")
def test_a_file_that_fails_to_be_read_is_told(place: Path, refused: Refused) -> None:
    (place / "failing.yaml").symlink_to("/proc/self/mem")
    refused("failing.yaml", "file")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [executed]",
        "!!python/object/new:os.mkdir [executed]",
        "!!python/object/apply:subprocess.run [[mkdir, executed]]",
    ],
)
def test_code_in_a_study_is_refused_and_not_run(place: Path, refused: Refused, value: str) -> None:
    refused(write(place, study_text(keep=value).encode()), "file (line 11)")
    assert not (place / "executed").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: small\nrecipe: {epochs: 3\n", "file (line 3): got "),
        (study_text(teacher="{builder: nonet}").encode(), "teacher: got nonet"),
    ],
)
def test_a_process_of_its_own_ends_with_2_and_one_message(
    tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "space.py").write_text(SPACE)
    program = [sys.executable, "-c", "from planter.cli import main; main()"]
    done = subprocess.run(
        [*program, "search", write(tmp_path, content)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("planter: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
