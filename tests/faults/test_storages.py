"""Storages other than the run folder's own SQLite, storages that go away, and second drivers."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread, current_thread
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

import planter
from planter.driver.backends import local
from planter.driver.dashboard.serve import serve_dashboard
from planter.driver.run_folder.read import read_points
from planter.driver.storage import retrying
from planter.driver.storage.points import METRICS, RetryingStorage, open_storage, open_study
from planter.driver.trials.jobs import SearchStoppedError
from planter.study.schema import StudyError

STUDY = """
name: small
data: {name: digits, subset: 240, validation: 0.25}
teacher: {builder: convnet, widths: 6}
baselines: [{widths: 4}]
recipe: {epochs: 2, batch: 30, optimizer: adam, lr: 0.02, schedule: onecycle}
plant:
  start: 3
  channels: 2
  rounds: 1
  layers: [conv1, conv5]
  recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, weight_decay: 0.0}
sample: {space: "SPACE:space", trials: 3}
resources: {workers: 0}
"""
SPACE = """
from planter import Architecture, Candidate

def space(trial):
    width = trial.suggest_categorical("width", [4, 6])
    trial.suggest_float("idle", 0, 1)  # equal networks are not trained twice
    names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    return Candidate(
        Architecture("convnet", dict.fromkeys(names, width), {}, {}),
        kd_weight=0.0,
    )
"""


class Interruption(Exception):
    """Stands for a kill: raised where the driver never catches anything."""


class Server:
    """A PostgreSQL server of its own, on a socket in a folder, run by a user who may."""

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self._binaries, self._folder, self._user = binaries, folder, user
        self._databases = 0
        self._call("initdb", "-A", "trust", "-U", "planter", "-N", "-D", str(folder / "data"))
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -c fsync=off -k {self._folder}"
        self._control("start", "-w", "-o", options, "-l", str(self._folder / "log"))

    def stop(self) -> None:
        self._control("stop", "-w", "-m", "immediate")

    def database(self) -> str:
        """The URL of a new database."""
        self._databases += 1
        name = f"d{self._databases}"
        self._call("createdb", "-h", str(self._folder), "-U", "planter", name)
        return f"postgresql+psycopg://planter@/{name}?host={self._folder}"

    def _control(self, *arguments: str) -> None:
        self._call("pg_ctl", "-s", "-D", str(self._folder / "data"), *arguments)

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, *arguments],
            cwd=self._folder,
            user=self._user,
            check=True,
            stdout=subprocess.DEVNULL,
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("no psycopg: pip install 'planter[postgres]'")
    folder = Path(tempfile.mkdtemp(prefix="planter-pg-"))  # socket paths must be short
    user = None
    if os.geteuid() == 0:
        user = "postgres"  # the server refuses to run as root
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    server = Server(found[-1].parent, folder, user)
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(params=["postgres", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return request.getfixturevalue("postgres").database()
    return f"journal:///{tmp_path / 'study.log'}"


def write_study(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "space.py").write_text(SPACE)
    file = folder / "small.yaml"
    file.write_text(STUDY.replace("SPACE", str(folder / "space.py")))
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study finds with the run folder's own SQLite when nothing interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    return planter.search(write_study(folder), out=folder / "run")


def on(url: str) -> list[str]:
    return [f"storage={json.dumps(url)}"]


def at_job(monkeypatch: pytest.MonkeyPatch, number: int, happens: Callable[[], None]) -> list[str]:
    """Makes something happen before a job; returns the ids of jobs, as they begin."""
    begun: list[str] = []
    do = local.run_job

    def doing(self: Any, job: Any) -> Any:
        begun.append(job.id)
        if len(begun) == number:
            happens()
        return do(self, job)

    monkeypatch.setattr(local, "run_job", doing)
    return begun


def interrupt() -> None:
    raise Interruption


def assert_whole(front: dict[str, Any], url: str, whole: dict[str, Any]) -> None:
    """Complete, nothing doubled, nothing left running, and what SQLite finds."""
    with closing(open_storage(url)) as storage:
        rows = {
            name: optuna.load_study(study_name=name, storage=storage).get_trials()
            for name in ("small", "small/sampling", "small/planting")
        }
        held = optuna.load_study(study_name="small", storage=storage).user_attrs["driver"]
    assert held is None
    for every in rows.values():
        assert all(row.state.name == "COMPLETE" for row in every)
    for name in ("small", "small/planting"):
        ids = [row.user_attrs["id"] for row in rows[name]]
        assert len(ids) == len(set(ids))
    assert [row.number for row in rows["small/sampling"]] == [0, 1, 2]
    assert len(rows["small"]) == len(whole["points"])
    assert front["points"] == whole["points"]
    assert front["hypervolume"] == whole["hypervolume"]


def test_an_interrupted_search_finds_on_any_storage_what_it_finds_on_sqlite(
    url, whole, tmp_path, monkeypatch
):
    file = write_study(tmp_path)
    at_job(monkeypatch, 5, interrupt)
    with pytest.raises(Interruption):
        planter.search(file, out=tmp_path / "run", overrides=on(url))
    monkeypatch.undo()
    front = planter.search(file, out=tmp_path / "run", overrides=on(url))
    assert_whole(front, url, whole)
    assert len(read_points(tmp_path / "run")) == len(front["points"])


@pytest.mark.long
@pytest.mark.parametrize("number", [2, 4, 7])
def test_an_interruption_at_another_job_loses_and_doubles_nothing(
    url, whole, tmp_path, monkeypatch, number
):
    file = write_study(tmp_path)
    at_job(monkeypatch, number, interrupt)
    with pytest.raises(Interruption):
        planter.search(file, out=tmp_path / "run", overrides=on(url))
    monkeypatch.undo()
    assert_whole(planter.search(file, out=tmp_path / "run", overrides=on(url)), url, whole)


def test_a_server_that_is_started_again_is_waited_for(
    postgres, whole, tmp_path, monkeypatch, caplog
):
    url = postgres.database()
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        assert len(pauses) < 5, "the server does not come back"
        if len(pauses) == 2:
            postgres.start()

    # Its own clock, not the process's: file locks sleep, too.
    monkeypatch.setattr(retrying, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    at_job(monkeypatch, 4, postgres.stop)
    front = planter.search(write_study(tmp_path), out=tmp_path / "run", overrides=on(url))
    assert_whole(front, url, whole)
    assert pauses == [0.5, 1.0]
    assert "the storage is away" in caplog.text


def test_a_server_that_stays_away_stops_the_search_and_the_same_command_goes_on(
    postgres, whole, tmp_path, monkeypatch
):
    url, file = postgres.database(), write_study(tmp_path)
    monkeypatch.setattr(retrying, "_PATIENCE_S", 1.0)
    at_job(monkeypatch, 4, postgres.stop)
    with pytest.raises(SearchStoppedError, match=r"(?s)storage was away .*\(1 s\).*go on"):
        planter.search(file, out=tmp_path / "run", overrides=on(url))
    with pytest.raises(ValueError, match=r"cannot be opened \(OperationalError"):
        planter.search(file, out=tmp_path / "run", overrides=on(url))
    postgres.start()
    monkeypatch.undo()
    assert_whole(planter.search(file, out=tmp_path / "run", overrides=on(url)), url, whole)


class Lossy:
    """Passes calls on; of each listed one, the first answer is lost after it was written."""

    def __init__(self, storage: optuna.storages.BaseStorage, *lost: str) -> None:
        self._storage, self._lost = storage, set(lost)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            if name in self._lost:
                self._lost.remove(name)
                raise retrying.StorageAwayError("connection lost")
            return answer

        return call


def test_a_write_whose_answer_was_lost_is_not_done_twice(url, monkeypatch):
    monkeypatch.setattr(retrying, "_FIRST_PAUSE_S", 0.0)
    writes = ("create_new_study", "create_new_trial", "set_trial_param", "set_trial_user_attr")
    with closing(open_storage(url)) as inner:
        lossy: Any = Lossy(inner._storage, *writes, "set_trial_state_values")
        study = open_study(RetryingStorage(lossy, lambda: None), "small", METRICS)
        trial = study.ask()
        trial.suggest_int("width", 1, 9)
        trial.set_user_attr("id", "one")
        study.tell(trial, [0.5, 100])
        (row,) = study.get_trials()
    assert lossy._lost == set()
    assert (row.values, row.user_attrs, list(row.params)) == ([0.5, 100], {"id": "one"}, ["width"])


def test_a_commit_whose_answer_was_lost_adds_no_second_trial(tmp_path, monkeypatch):
    """Optuna's own repetition, inside the storage, would add one."""
    monkeypatch.setattr(retrying, "_FIRST_PAUSE_S", 0.0)
    with closing(open_storage(f"sqlite:///{tmp_path / 'study.db'}")) as storage:
        study = open_study(storage, "small", METRICS)
        engine: Any = storage._storage._backend.engine  # type: ignore[attr-defined]
        commit, lost = engine.dialect.do_commit, []

        def losing(connection: Any) -> None:
            commit(connection)
            if not lost:
                lost.append(connection)
                raise sqlite3.OperationalError("connection lost")

        monkeypatch.setattr(engine.dialect, "do_commit", losing)
        study.ask()
        assert lost
        assert len(study.get_trials()) == 1


def test_a_journal_cut_off_in_the_middle_of_a_line_goes_on(whole, tmp_path, monkeypatch):
    url, file = f"journal:///{tmp_path / 'study.log'}", write_study(tmp_path)
    at_job(monkeypatch, 5, interrupt)
    with pytest.raises(Interruption):
        planter.search(file, out=tmp_path / "run", overrides=on(url))
    monkeypatch.undo()
    with (tmp_path / "study.log").open("ab") as log:
        log.write(b'{"op_code":8,"worker_id":"x","trial')
    assert_whole(planter.search(file, out=tmp_path / "run", overrides=on(url)), url, whole)
    for line in (tmp_path / "study.log").read_text().splitlines():
        json.loads(line)


def test_a_driver_with_another_run_folder_is_turned_away(whole, tmp_path, monkeypatch):
    url, file = f"journal:///{tmp_path / 'study.log'}", write_study(tmp_path)
    seen = []

    def second() -> None:
        with pytest.raises(StudyError, match=r"'small' that is begun in .*run on .*another name"):
            planter.search(file, out=tmp_path / "other", overrides=on(url))
        seen.append(True)

    at_job(monkeypatch, 2, second)
    assert_whole(planter.search(file, out=tmp_path / "run", overrides=on(url)), url, whole)
    assert seen


@pytest.mark.parametrize("where", ["run", "copy"])
def test_a_driver_that_another_took_over_from_stops_and_writes_nothing_more(
    whole, tmp_path, monkeypatch, where
):
    url, file, run = f"journal:///{tmp_path / 'study.log'}", write_study(tmp_path), tmp_path / "run"
    fronts = []

    def second() -> None:
        if where == "copy":
            shutil.copytree(run, tmp_path / where)
        else:
            with pytest.raises(StudyError, match=r"another search at work in it.*--take-over"):
                planter.search(file, out=run, overrides=on(url))
        front = planter.search(
            file, out=tmp_path / where, overrides=on(url), take_over=where == "run"
        )
        fronts.append(front)

    at_job(monkeypatch, 4, second)
    with pytest.raises(SearchStoppedError, match="another driver took this study over"):
        planter.search(file, out=run, overrides=on(url))
    assert_whole(fronts[0], url, whole)


def test_a_reader_that_holds_a_transaction_open_does_not_stop_the_search(
    whole, tmp_path, monkeypatch
):
    run, file = tmp_path / "run", write_study(tmp_path)
    counts = []

    def read() -> None:
        reader = sqlite3.connect(run / "study.db", isolation_level=None)
        readers.append(reader)
        reader.execute("BEGIN")
        counts.append(reader.execute("SELECT count(*) FROM trials").fetchone())

    readers: list[sqlite3.Connection] = []
    at_job(monkeypatch, 2, read)
    front = planter.search(file, out=run)
    (reader,) = readers
    # The reader still sees what was there when it began.
    assert [reader.execute("SELECT count(*) FROM trials").fetchone()] == counts
    reader.close()
    assert front["points"] == whole["points"]


def test_the_dashboard_shows_a_study_of_any_storage_while_it_is_written(url, tmp_path, monkeypatch):
    run, answers = tmp_path / "run", []

    def look() -> None:
        def ready(address: str) -> None:
            base, _, number = address.partition("/dashboard/studies/")

            def fetch() -> None:
                with urllib.request.urlopen(f"{base}/api/studies/{number}?after=0") as reply:
                    answers.append(json.load(reply))
                raise_in_server.append(True)

            thread = Thread(target=fetch)
            thread.start()

        raise_in_server: list[bool] = []
        here = current_thread()  # others may serve pages of tests before this one
        monkeypatch.setattr(
            "socketserver.BaseServer.service_actions",
            lambda server: interrupt() if raise_in_server and current_thread() is here else None,
        )
        with pytest.raises(Interruption):
            serve_dashboard(run, "127.0.0.1", 0, ready)

    at_job(monkeypatch, 4, look)
    planter.search(write_study(tmp_path), out=run, overrides=on(url))
    (answer,) = answers
    assert answer["name"] == "small"
    assert answer["trials"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+psycopg2://me:secret@db/x", r"not installed .*pip install 'planter\[postgres"),
        ("journal://study.log", "three slashes"),
        ("journal:///no/such/folder/study.log", "FileNotFoundError"),
        ("nosuch://x", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_with_what_to_do(url, told):
    with pytest.raises(ValueError, match=told) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)


def test_relative_journals_stand_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("journal:///near.log", f"journal:///{tmp_path / 'far.log'}"):
        with closing(open_storage(url)) as storage:
            open_study(storage, "small", METRICS)
    assert {file.name for file in tmp_path.iterdir()} == {"near.log", "far.log"}
