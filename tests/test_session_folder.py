"""Where Ray's session stands: short, private, removed; or a reason that says what to do."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import planter
from planter.driver.backends.session_folder import places, remove_left_folders, session_folder

LONGEST_SOCKET = "r/session_2026-11-29_07-09-42_123456_4194304/sockets/plasma_store"


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as folder:
        yield Path(folder)


def test_it_is_a_new_folder_of_this_user_alone_and_goes(short):
    before = os.umask(0)
    try:
        with session_folder([short]) as folder, session_folder([short]) as other:
            assert folder.parent == short
            assert folder != other
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            (folder / "r").mkdir()
        assert not folder.exists()
    finally:
        os.umask(before)


def test_the_system_takes_sockets_in_any_folder_that_is_made(short):
    """The longest place that is taken, by binding a socket where Ray would; one more is not."""
    taken = []
    for length in range(len(str(short)) + 2, 60):
        place = short / ("x" * (length - len(str(short)) - 1))
        place.mkdir()
        with session_folder([place, short]) as folder:
            if folder.parent == place:
                taken.append(length)
                # A process number of seven digits makes the folder's own name as long as it gets.
                name = folder.name.replace(f"-{os.getpid()}-", "-4194304-")
                file = place / name / LONGEST_SOCKET
                file.parent.mkdir(parents=True)
                with socket.socket(socket.AF_UNIX) as one:
                    one.bind(str(file))
    assert taken == list(range(taken[0], taken[-1] + 1))
    assert taken[-1] < 59


@pytest.mark.parametrize("name", ["a b", "ü", "x" * 60, "not there"])
def test_another_place_is_taken_where_ray_could_not_work(short, name):
    if name != "not there":
        (short / name).mkdir()
    with session_folder([short / name, short]) as folder:
        assert folder.parent == short


def test_where_there_is_none_the_reasons_and_what_to_do_are_told(short):
    long = short / ("x" * 60)
    with pytest.raises(ValueError, match="TMPDIR") as told, session_folder([long, Path("/none")]):
        pass
    assert "--workers 0" in str(told.value)
    assert f"{len(str(long))} bytes" in str(told.value)
    assert "/none: No such file or directory" in str(told.value)


def test_folders_of_killed_drivers_go_and_all_others_stay(short):
    """Of a process that was killed, of one that lives, and what users may call their own."""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from planter.driver.backends.session_folder import session_folder\n"
        "with session_folder([Path(sys.argv[1])]) as folder:\n"
        "    print(folder, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(short)], stdout=subprocess.PIPE, text=True
    ) as driver:
        left = Path(driver.stdout.readline().strip())
        remove_left_folders([short])
        assert left.is_dir()
        driver.kill()
    kept = [short / "planter-2024-results", short / "planter-99999999-abcdefgh"]
    for folder in kept:
        (folder / "r").mkdir(parents=True)
    linked = short / "linked"
    shutil.copytree(left, linked)
    (short / "planter-99999998-abcdefgh").symlink_to(linked)
    with session_folder([short]) as mine:
        remove_left_folders([short, short / "not there"])
        assert mine.is_dir()
    assert not left.exists()
    assert all((folder / "r").is_dir() for folder in [*kept])
    assert linked.is_dir()


def test_a_home_that_is_not_there_is_no_place_and_no_error(monkeypatch):
    monkeypatch.setenv("HOME", "/no/such/home")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "not/absolute")
    remove_left_folders(places())
    assert all(place.is_absolute() for place in places())


STUDY = """
name: t
data: {name: digits, subset: 60, validation: 0.25}
baselines: [{builder: toy, widths: 2}]
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01}
resources: {workers: 1}
"""


def test_a_search_with_workers_runs_below_a_long_tmpdir_and_leaves_nothing(tmp_path, monkeypatch):
    """Its own environment and working folder, a home that is not there, and a module beside it."""
    long = tmp_path / "a rather long folder ü" / ("x" * 60)
    long.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)  # as in a new process
    monkeypatch.setenv("HOME", "/no/such/home")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "own_net.py").write_text(
        "from planter.backbones.toy import WIDTHS, toy\n"
        "def build(widths, *, classes=10, image=(3, 32, 32)):\n"
        "    return toy(widths, classes=classes, image=image)\n"
        "build.widths = WIDTHS\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path / "nets"))
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    ours = ("RAY_", "TUNE_", "OMP_")  # torch keeps settings of its own there
    environment = {k: v for k, v in os.environ.items() if k.startswith(ours)}
    found = planter.search(
        tmp_path / "study.yaml",
        out=tmp_path / "run",
        overrides=["baselines=[{builder: 'own_net:build', widths: 2, name: own}]"],
    )
    assert [point["id"] for point in found["points"]] == ["b-own/base"]
    assert {k: v for k, v in os.environ.items() if k.startswith(ours)} == environment
    assert list(long.glob("planter-*")) == []
    mine = [p for place in places() for p in place.glob(f"planter-{os.getpid()}-*")]
    assert mine == []


USED_BEFORE = """
import os, sys
import ray
import planter

def use_ray():
    quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    ray.init(address="local", num_cpus=1, **quiet)  # not one that another process has left
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    ray.shutdown()

def search(run):
    print([point["id"] for point in planter.search("study.yaml", out=run)["points"]])

if __name__ == "__main__":
    search("imported-before")
    use_ray()
    search("used-before")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}
    use_ray()
    search("used-with-a-token-before")
    assert os.environ["RAY_AUTH_TOKEN"] == "5" * 64
    use_ray()
"""


def test_a_process_that_uses_ray_itself_searches_in_between(tmp_path):
    """Ray reads its token once a process, when it is imported or first used."""
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    (tmp_path / "script.py").write_text(USED_BEFORE, encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("['b-width2/base']") == 3
