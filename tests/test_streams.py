"""What is printed never decides how a command ends; each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from planter.front.points import read_front

COST = ["cost", "toy"]
WRONG = ["cost", "nosuch"]  # a mistake of the user's: exit code 2


def _run(arguments, *, redirect="", cwd=None, **environment):
    """`planter ARGUMENTS` in a shell, with what the shell does to its streams."""
    program = [sys.executable, "-m", "planter", *arguments]
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirect}', "bash", *program],
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def printed() -> bytes:
    done = _run(COST)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize(
    "redirect", [">&-", "2>&-", "0<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "| true"]
)
@pytest.mark.parametrize(("arguments", "code"), [(COST, 0), (WRONG, 2)])
def test_streams_that_are_closed_or_full_change_no_exit_code(redirect, arguments, code):
    assert _run(arguments, redirect=redirect).returncode == code


def test_a_file_that_is_opened_later_does_not_take_the_place_of_a_closed_stream(tmp_path):
    """What others write to number 1 would go into it."""
    program = (
        "import os, sys; from planter.cli.streams import keep_streams; keep_streams()\n"
        f"file = open({str(tmp_path / 'database')!r}, 'wb')\n"
        "os.write(1, b'lost'); print('lost'); sys.exit(file.fileno() < 3)"
    )
    command = ["bash", "-c", '"$@" >&- 2>&- 0<&-', "bash", sys.executable, "-c", program]
    assert subprocess.run(command).returncode == 0
    assert (tmp_path / "database").read_bytes() == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_an_encoding_lacks_are_shown_by_others(encoding, printed):
    done = _run(["search", "--help"], PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    done = _run(["show", "±·…ü中"], PYTHONIOENCODING=f"{encoding}")
    assert done.returncode == 2
    told = done.stderr.decode(encoding)
    shown = {"ascii": "+-;...??", "latin-1": "±·...ü?"}[encoding]
    assert f"no run '{shown}'" in told


def test_a_table_that_is_no_terminals_is_as_wide_as_it_is(printed):
    assert b"macs_all" in printed
    assert _run(COST, COLUMNS="20").stdout == printed


def test_the_module_is_the_program(printed):
    program = Path(sys.executable).with_name("planter")
    done = subprocess.run([program, *COST], capture_output=True)
    assert (done.returncode, done.stdout) == (0, printed)
    usage = _run(["--help"]).stdout.decode()
    assert "Usage: python -m planter " in usage


STUDY = """
name: t  # Größe
data: {name: folder, root: "fotos ü", validation: 0.25}
baselines: [{builder: toy, widths: 2}]
recipe: {epochs: 1, batch: 8, optimizer: adam, lr: 0.01}
resources: {workers: 0}
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("größe")
    (folder / "study ü.yaml").write_text(STUDY, encoding="utf-8")
    for label, name in enumerate(["äpfel", "birnen"]):
        place = folder / "fotos ü" / name
        place.mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (200 * label, 10 * i, 40)).save(place / f"{i} ü.png")
    return folder


@pytest.mark.parametrize(
    ("redirect", "environment"),
    [
        ("| head -1", {}),
        (">&- 2>&-", {}),
        ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_a_search_ends_as_it_does_whoever_reads_it(photos, tmp_path, redirect, environment):
    out = tmp_path / "run ü"
    arguments = ["search", "study ü.yaml", "--out", str(out)]
    if environment:  # a locale without the letters of the folder, which Ray does not take
        done = _run([*arguments, "--workers", "1"], cwd=photos, **environment)
        assert done.returncode == 2
        assert b"LC_ALL=C.UTF-8" in done.stderr
        arguments += ["--workers", "0"]
    done = _run(arguments, redirect=redirect, cwd=photos, **environment)
    assert done.returncode == 0, done.stderr
    assert [point["id"] for point in read_front(out)["points"]] == ["b-width2/base"]
    assert (out / "report.html").is_file()
    assert "Größe" in (out / "study.yaml").read_text(encoding="utf-8")
    if not redirect:
        assert b"'" in done.stdout.splitlines()[-1]  # the next commands, with their quotes
