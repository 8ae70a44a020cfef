"""Nobody else gets in: sockets, tokens, names that would leave their folder or reach SQL."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from kills import DEADLINE_S, descendants, held, kill, log_of, start
from sockets import is_loopback, listening, name_of
from test_driver import write_study

import planter
from planter import Architecture
from planter.backbones import full_widths
from planter.networks.assembly import check_architecture

JOIN = """
import ray
ray.init(address=ADDRESS, log_to_driver=False, configure_logging=False)
print("let in", ray.cluster_resources())
"""


@pytest.fixture(scope="module")
def searching(tmp_path_factory) -> Iterator[list[int]]:
    """The processes of a search with two workers at work, the driver's first."""
    folder = tmp_path_factory.mktemp("searching")
    write_study(folder)
    process = start(folder, "recipe.epochs=2000")
    end = time.monotonic() + DEADLINE_S
    while True:
        assert process.poll() is None, log_of(folder)
        assert time.monotonic() < end, log_of(folder)
        below = descendants(process.pid)
        if sum(bool(held(pid, folder / "run")) for pid in below) == 2:
            break
        time.sleep(0.05)
    yield [process.pid, *below]
    kill(process.pid, *descendants(process.pid))
    process.wait()


def test_a_search_listens_on_the_loopback_and_in_a_folder_of_its_own_only(searching):
    sockets = listening(searching)
    ports = [one for one in sockets if one.kind in ("tcp", "udp")]
    assert {one.kind for one in sockets} >= {"tcp", "unix"}
    assert [one for one in ports if not is_loopback(one.place)] == []
    for one in sockets:
        if one.kind == "unix":
            top = next(p for p in Path(one.place).parents if p.name.startswith("planter-"))
            assert top.stat().st_mode & 0o077 == 0, "nobody else may enter"
            assert top.stat().st_uid == os.getuid()


def test_a_search_has_a_process_a_worker_and_no_idle_one(searching):
    """Ray names its processes; agents of its own bear other names."""
    names = [name_of(pid) for pid in searching]
    assert sum(name.startswith(("ray::Resource", "ray::Training")) for name in names) == 2, names
    assert not any(name.startswith("ray::IDLE") for name in names), names


def test_the_list_of_sockets_shows_one_that_is_open_to_all():
    with socket.socket() as wide, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        wide.bind(("0.0.0.0", 0))
        wide.listen()
        datagrams.bind(("0.0.0.0", 0))
        found = {(one.kind, one.place) for one in listening([os.getpid()])}
        for kind, one in (("tcp", wide), ("udp", datagrams)):
            place = f"0.0.0.0 {one.getsockname()[1]}"
            assert (kind, place) in found
            assert not is_loopback(place)


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_ray_lets_nobody_in_without_the_searchs_token(searching, token):
    (gcs,) = [pid for pid in searching if name_of(pid) == "gcs_server"]
    ports = [one.place.split()[1] for one in listening([gcs]) if one.kind == "tcp"]
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    stranger |= {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if token is not None:
        stranger |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    answers = [
        subprocess.run(
            [sys.executable, "-c", JOIN.replace("ADDRESS", repr(f"127.0.0.1:{port}"))],
            env=stranger,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )
        for port in ports
    ]
    assert all(answer.returncode != 0 and "let in" not in answer.stdout for answer in answers)
    assert any("InvalidAuthToken" in answer.stderr for answer in answers), answers


def test_rays_agents_answer_nobody_without_the_token(searching):
    agents = [one for one in listening(searching) if one.process.startswith("ray::RuntimeEnv")]
    assert agents
    for agent in agents:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://{agent.place.replace(' ', ':')}/", timeout=60)


def test_the_token_stands_where_only_this_user_can_read_it(searching):
    (raylet,) = [pid for pid in searching if name_of(pid) == "raylet"]
    environment = Path(f"/proc/{raylet}/environ").read_bytes().split(b"\0")
    (token,) = [e.partition(b"=")[2] for e in environment if e.startswith(b"RAY_AUTH_TOKEN=")]
    assert len(bytes.fromhex(token.decode())) == 32
    for pid in searching:
        with contextlib.suppress(OSError):
            assert token not in Path(f"/proc/{pid}/cmdline").read_bytes()
    (folder,) = Path(tempfile.gettempdir()).glob(f"planter-{searching[0]}-*")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if token in path.read_bytes()] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    overrides = ["plant=null", "sample=null", "recipe.epochs=1"]
    planter.search(write_study(folder), out=folder / "run", overrides=overrides)
    return folder / "run"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_the_dashboard_listens_on_the_loopback_and_answers_by_that_name_only(finished, host):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from planter.cli import main; main()", "dashboard"]
    process = subprocess.Popen(
        [*command, str(finished), "--port", str(port), "--host", host],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert f"http://{host}:{port}/" in told
        sockets = listening([process.pid, *descendants(process.pid)])
        assert [(one.kind, one.place) for one in sockets] == [("tcp", f"127.0.0.1 {port}")]
        page = f"http://127.0.0.1:{port}/api/studies"
        with urllib.request.urlopen(page, timeout=60) as answer:
            assert b"small" in answer.read()
        # A page of somebody else whose name was made to lead here: the browser sends that name.
        foreign = urllib.request.Request(page, headers={"Host": f"evil.example:{port}"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=60)
    finally:
        process.terminate()  # what a script starts in the background may ignore Ctrl-C
        process.communicate(timeout=60)


TOY = Architecture("toy", full_widths("toy"), {"classes": 4, "image": [3, 8, 8]})
NAMES = ["/tmp/x", "../x", "..", ".", ".x", "a/b", "a\\b", "a\0b", "a\nb", "", "<b>", "'", " a"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_become_folders_cannot_leave_theirs(name):
    with pytest.raises(ValueError, match="a name of letters"):
        Architecture("toy", {name: 4})
    ways = {name: {"before": "cut1"}}
    with pytest.raises(ValueError, match="pipeline name"):
        check_architecture(Architecture("toy", TOY.widths, TOY.options, ways))


HOSTILE = "'); DROP TABLE studies; DROP TABLE trials; --"
HOSTILE_SPACE = f"""
from planter import Architecture, Candidate

TEXT = {HOSTILE!r}

def space(trial):
    width = trial.suggest_categorical(TEXT, [TEXT, '"; DROP TABLE trial_params; --'])
    trial.suggest_float("idle", 0, 1)  # equal networks are not trained twice
    trial.set_user_attr(TEXT, TEXT) if hasattr(trial, "set_user_attr") else None
    names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    return Candidate(Architecture("convnet", dict.fromkeys(names, 4)))
"""


def test_strings_of_a_space_are_values_in_the_database_never_statements(tmp_path):
    study = write_study(tmp_path)
    (tmp_path / "space.py").write_text(HOSTILE_SPACE)
    overrides = ["plant=null", "baselines=[]", "recipe.epochs=1", "sample.trials=3"]
    planter.search(study, out=tmp_path / "run", overrides=overrides)
    with sqlite3.connect(tmp_path / "run" / "study.db") as database:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        names = {row[0] for row in database.execute("SELECT param_name FROM trial_params")}
        count = database.execute("SELECT count(*) FROM trials").fetchone()[0]
    database.close()
    assert {"studies", "trials", "trial_params"} <= tables
    assert names == {HOSTILE, "idle"}
    assert count == 3 + 3 + 1  # sampled, their points, the teacher's


def test_a_searchs_folder_holds_all_it_writes(tmp_path):
    """Whatever the settings say, nothing appears beside the run folder but the teachers."""
    study = write_study(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    planter.search(study, out=tmp_path / "run", overrides=["recipe.epochs=1", "plant=null"])
    assert {path.name for path in tmp_path.iterdir()} - before == {"run", ".teachers"}
    ids = {path.name for path in (tmp_path / "run" / "trials").iterdir()}
    assert all(re.fullmatch(r"teacher|b-width4|s\d{4}", name) for name in ids)
