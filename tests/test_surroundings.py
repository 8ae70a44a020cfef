"""A search finds the same whatever the notebook that calls it has set, and leaves it as it was."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

import planter
from planter.backbones import BUILDERS, Builder, source_key
from planter.backbones.toy import WIDTHS, toy
from planter.study.schema import StudyError

STUDY = """
name: tiny
data: {name: digits, subset: 120, validation: 0.25}
teacher: {builder: toy, widths: 4}
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, augment: {crop: 1, flip: true}}
plant:
  start: 3
  channels: 2
  rounds: 1
  layers: [conv2]
  recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, weight_decay: 0.0}
sample: {space: "SPACE:space", trials: 1}
resources: {workers: 0}
"""
SPACE = """
from planter import Architecture, Candidate, KernelFilter

def space(trial):
    widths = {"conv1": 4, "conv2": 4, "conv3": trial.suggest_int("width", 4, 8)}
    return Candidate(Architecture("toy", widths, {}, {"cut1": {}}), kernels=KernelFilter(2, rho=2))
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "space.py").write_text(SPACE, encoding="utf-8")
    text = STUDY.replace("SPACE", str(folder / "space.py"))
    (folder / "tiny.yaml").write_text(text, encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def plain(study):
    """What the study finds in a process that has set nothing."""
    found = planter.search(study, out=study.parent / "plain")
    assert len(found["points"]) >= 4
    return found


@contextmanager
def _set(dtype: torch.dtype, device: str, *, deterministic: bool) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)


def _state() -> list[object]:
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.empty(1).device,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        list(warnings.filters),
        logging.root.manager.disable,
        list(sys.path),
    ]


# Several at once, as a search takes seconds; each of them alone was seen to end every trial.
STATES = {
    "no_grad, float64, autocast": lambda: (
        torch.no_grad(),
        _set(torch.float64, "cpu", deterministic=False),
        torch.autocast("cpu"),
    ),
    "inference mode, a default device, deterministic": lambda: (
        torch.inference_mode(),
        _set(torch.float32, "meta", deterministic=True),
    ),
    "within a device": lambda: (torch.device("meta"),),
}


@pytest.mark.parametrize("name", STATES)
def test_a_search_finds_the_same_in_any_state_of_torch_and_keeps_it(study, plain, name, tmp_path):
    with ExitStack() as stack:
        for state in STATES[name]():
            stack.enter_context(state)
        before = _state()
        found = planter.search(study, out=tmp_path / "run")
        assert _state() == before
    assert found["points"] == plain["points"]


def test_a_search_in_an_event_loop_in_a_thread_finds_the_same(study, plain, tmp_path):
    found = []

    async def search():
        found.append(planter.search(study, out=tmp_path / "run"))

    thread = threading.Thread(target=lambda: asyncio.run(search()))
    thread.start()
    thread.join()
    assert [one["points"] for one in found] == [plain["points"]]


def test_another_working_folder_changes_nothing(study, plain, tmp_path, monkeypatch):
    """Also one that is changed to while the search runs."""
    monkeypatch.chdir(study.parent)
    (tmp_path / "elsewhere").mkdir()

    def observe(progress):
        monkeypatch.chdir(tmp_path / "elsewhere")

    out = tmp_path / "run"
    overrides = ["sample.space=space.py:space"]
    found = planter.search("tiny.yaml", out=out, overrides=overrides, observe=observe)
    assert found["points"] == plain["points"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---- functions that live in the calling process alone


def build(widths, *, classes=10, image=(3, 32, 32)):
    return toy(widths, classes=classes, image=image)


build.widths = WIDTHS


def _given(monkeypatch, where):
    """A builder that no other process can import; its name."""
    if where == "__main__":
        monkeypatch.setattr(sys.modules["__main__"], "build_here", build, raising=False)
        return "__main__:build_here"
    if where == "module without file":
        module = types.ModuleType("made_here")
        module.build_here = build
        monkeypatch.setitem(sys.modules, "made_here", module)
        return "made_here:build_here"
    monkeypatch.setitem(BUILDERS, "mine", Builder(build, WIDTHS))
    return "mine"


WHERE = ["__main__", "module without file", "BUILDERS"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("workers", ["1", "null"])
def test_workers_that_could_not_import_a_builder_are_not_started(
    study, tmp_path, monkeypatch, where, workers
):
    key = _given(monkeypatch, where)
    overrides = ["sample=null", "plant=null", f"resources.workers={workers}"]
    overrides += [f"baselines=[{{builder: '{key}', name: one}}]"]
    with pytest.raises(StudyError, match="module file") as told:
        planter.search(study, out=tmp_path / "run", overrides=overrides)
    assert key in str(told.value)
    assert "workers: 0" in str(told.value)
    assert not (tmp_path / "run").exists()
    more = [f"teacher.builder={key}", "baselines=[]", "objectives.macs_reference=1"]
    with pytest.raises(StudyError, match="teacher"):
        planter.search(study, out=tmp_path / "run", overrides=[*overrides, *more])


@pytest.mark.parametrize("where", WHERE)
def test_without_workers_such_a_builder_is_trained_and_warned_about(
    study, tmp_path, monkeypatch, where, caplog
):
    key = _given(monkeypatch, where)
    overrides = ["sample=null", f"teacher.builder={key}", f"plant.builder={key}"]
    found = planter.search(study, out=tmp_path / "run", overrides=overrides)
    assert {p["method"] for p in found["points"]} == {"teacher", "plant"}
    assert "no other program can load" in caplog.text


def test_a_space_cannot_bring_such_a_builder_to_workers(study, tmp_path, monkeypatch):
    key = _given(monkeypatch, "__main__")
    space = tmp_path / "space.py"
    space.write_text(SPACE.replace('"toy"', f'"{key}"'), encoding="utf-8")
    overrides = ["plant=null", f"sample.space={space}:space", "resources.workers=1"]
    with pytest.raises(StudyError, match=r"sample\.space"):
        planter.search(study, out=tmp_path / "run", overrides=overrides)


def _function(text):
    """A function and a class of a module whose text stands in no file."""
    names: dict[str, object] = {"__name__": "made_here"}
    exec(compile(text, "<string>", "exec"), names)
    return types.SimpleNamespace(**names)


def test_functions_without_a_file_are_told_apart_by_what_they_do(monkeypatch):
    text = "def f(widths):\n    return {'a', 'b', 'c'} if widths in {'x', 'y'} else WIDTH\n"
    text += "class C:\n    def __init__(self, widths):\n        self.width = 3\n"

    def keys(text):
        module = _function(text)
        found = []
        for name in ("f", "C"):
            monkeypatch.setitem(BUILDERS, "mine", Builder(getattr(module, name), {}))
            found.append(source_key("mine"))
        return found

    assert keys(text) == keys("\n\n" + text)
    assert keys(text)[0] != keys(text.replace("'b'", "'d'"))[0]
    assert keys(text)[0] != keys(text.replace("WIDTH", "OTHER"))[0]
    assert keys(text)[1] != keys(text.replace("3", "4"))[1]
