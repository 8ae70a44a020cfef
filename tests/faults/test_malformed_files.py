"""Study files that are no files, cannot be read, or hold code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_driver import SPACE
from test_malformed import Refused, make_place, make_refused, study_text, write

from planter import cli

place = pytest.fixture(scope="module")(make_place)
refused = pytest.fixture(make_refused)


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
