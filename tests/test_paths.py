"""Paths as people write them, beside what a shell makes of the same words."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import planter
from planter import Architecture
from planter.backbones import full_widths, with_data_options
from planter.machine.commands import command, word_of
from planter.machine.paths import user_path
from planter.networks.assembly import build_network
from planter.study.file import read_study
from planter.study.schema import StudyError

_WRITTEN = [
    "~/a",
    "$PLACE/a",
    "${PLACE}/b c",
    "x/$PLACE.d/$NAME",
    "a/~",
    "x$",
    "5$ 7",
    "$PLACE$NAME",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(tmp_path / "a place"))
    monkeypatch.setenv("NAME", "ü$HOME")  # a value is not looked through for names
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path


@pytest.mark.parametrize("written", _WRITTEN)
def test_a_path_is_what_a_shell_makes_of_it(here, written):
    tilde, rest = ("~/", written[2:]) if written.startswith("~/") else ("", written)
    told = subprocess.run(
        ["sh", "-c", f'printf %s {tilde}"{rest}"'], capture_output=True, text=True, check=True
    )
    assert user_path(written) == Path(told.stdout)


def test_a_relative_path_begins_at_the_base(here):
    assert user_path("a/$NAME", here / "there") == here / "there" / "a" / "ü$HOME"
    assert user_path("$PLACE/a", here / "there") == here / "a place" / "a"
    assert user_path("~", here / "there") == here / "home"


@pytest.mark.parametrize("written", ["$NOT_SET/a", "a/${NOT_SET}", "~/$NOT_SET"])
def test_a_variable_that_is_not_set_is_told_by_its_name(here, written):
    with pytest.raises(ValueError, match="variable NOT_SET is not set") as told:
        user_path(written)
    assert written in str(told.value)


def test_an_empty_variable_would_lead_elsewhere_and_is_told(here, monkeypatch):
    monkeypatch.setenv("NOT_SET", "")
    with pytest.raises(ValueError, match="variable NOT_SET is empty"):
        user_path("$NOT_SET/a")


def test_the_home_of_nobody_is_told(here):
    with pytest.raises(ValueError, match="~no_such_user"):
        user_path("~no_such_user/a")


@pytest.mark.parametrize("name", ["$NOT_SET", "~", "~no_such_user", "$PLACE"])
def test_what_is_there_as_it_is_written_is_taken_as_it_is(here, name):
    (here / name).mkdir()
    assert user_path(name) == Path(name)
    assert user_path(name, here) == here / name


def test_an_absolute_path_object_is_looked_up_already(here):
    assert user_path(here / "$NOT_SET") == here / "$NOT_SET"
    assert user_path(Path("~/a")) == here / "home" / "a"


KEYS = ["data.root", "teacher.model", "sample.space", "storage"]


def _value(study, key):
    section, _, name = key.partition(".")
    return getattr(getattr(study, section), name) if name else study.storage


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("in_file", [True, False])
def test_every_path_of_a_study_is_read_so(here, key, in_file):
    written = {"sample.space": "${PLACE}/s.py:space", "storage": "sqlite:///${PLACE}/s.db"}
    meant = {
        "sample.space": f"{here}/a place/s.py:space",
        "storage": f"sqlite:///{here}/a place/s.db",
    }
    section, _, name = key.partition(".")
    value = written.get(key, "${PLACE}/t")
    line = f'{section}: {{{name}: "{value}"}}\n' if name else f'{section}: "{value}"\n'
    (here / "study.yaml").write_text(f"name: x\n{line if in_file else ''}", encoding="utf-8")
    study = read_study("study.yaml", [] if in_file else [f"{key}={value}"])
    assert _value(study, key) == meant.get(key, f"{here}/a place/t")


@pytest.mark.parametrize("key", KEYS)
def test_a_variable_of_a_study_that_is_not_set_is_a_problem_of_its_key(here, key):
    value = {"sample.space": "$NOT_SET/s.py:f", "storage": "journal:///$NOT_SET/s.log"}
    (here / "study.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(StudyError, match="variable NOT_SET is not set"):
        read_study("study.yaml", [f"{key}={value.get(key, '$NOT_SET/t')}"])


def test_a_password_keeps_its_dollars(here):
    url = "postgresql+psycopg://me:pa$NOT_SETs@db/planter"
    (here / "study.yaml").write_text(f"name: x\nstorage: '{url}'\n", encoding="utf-8")
    assert read_study("study.yaml").storage == url


def test_a_folder_with_a_dollar_in_its_name_is_worked_in(here, monkeypatch):
    """What is relative begins there, and is not looked through for names again."""
    folder = here / "a$NOT_SET"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "study.yaml").write_text("name: x\ndata: {root: images}\n", encoding="utf-8")
    overrides = ["teacher.model=t", "data.name=folder"]
    study = read_study("study.yaml", overrides)
    assert (study.data.root, study.teacher.model) == (f"{folder}/images", f"{folder}/t")


def test_networks_are_saved_and_loaded_by_such_paths(here):
    options = {"classes": 3, "image": (3, 8, 8)}
    plain = Architecture("toy", full_widths("toy"), {})
    arch = with_data_options(plain, options["classes"], options["image"])
    planter.save("~/net", build_network(arch), arch, "base")
    assert (here / "home" / "net" / "arch.json").is_file()
    assert planter.load("${HOME}/net") is not None
    with pytest.raises(ValueError, match="NOT_SET"):
        planter.load("$NOT_SET/net")


def test_commands_take_such_paths(call, monkeypatch, tmp_path):
    monkeypatch.setenv("RUNS", "runs")
    monkeypatch.setenv("TO", str(tmp_path))
    code, _, err = call("pareto", "$RUNS/small", "--csv", "$TO/new/front.csv")
    assert code == 0, err
    assert (tmp_path / "new" / "front.csv").is_file()
    assert call("show", "${RUNS}/small")[0] == 0
    assert call("cost", "$RUNS/small/s0000")[0] == 0
    for arguments in (
        ["pareto", "small", "--html", "$NOT_SET/a.html"],
        ["show", "$NOT_SET/small"],
        ["check", "$NOT_SET/small.yaml"],
        ["search", "small.yaml", "--out", "$NOT_SET/a"],
        ["export", "small/s0000", "-o", "$NOT_SET/a.onnx"],
        ["latency", "$NOT_SET/a.onnx"],
    ):
        code, _, err = call(*arguments)
        assert (code, "variable NOT_SET is not set" in err) == (2, True), arguments


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1))
def test_a_word_of_a_command_is_the_same_word_in_a_shell(text):
    assert shlex.split(word_of(text)) == [text]
    told = shlex.split(word_of(Path(text)))[0]
    assert Path(told) == Path(text)
    assert not told.startswith(("-", "~"))


def test_a_command_runs_when_it_is_pasted(tmp_path, monkeypatch):
    """In a shell, with a program `planter` that prints what it is given."""
    (tmp_path / "planter").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    (tmp_path / "planter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    words = ["show", Path("a run; of 'mine' & $HOME/ü")]
    done = subprocess.run(["sh", "-c", command(*words)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(word) for word in words]


def test_a_command_is_called_as_this_one_was(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # where no planter is found
    mine = tmp_path / "my venv" / "planter"
    mine.parent.mkdir()
    mine.touch()
    monkeypatch.setattr(sys, "argv", [str(mine), "search"])
    assert shlex.split(command("show", "x")) == [str(mine), "show", "x"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/planter/__main__.py", "search"])
    assert shlex.split(command("show", "x")) == [sys.executable, "-m", "planter", "show", "x"]
    monkeypatch.setattr(sys, "argv", ["my_script.py"])
    assert command("show", "x") == "planter show x"
