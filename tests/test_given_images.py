"""Images given to a search in Python: the same points as by a function of the user's, kept for
whoever goes on, one sentence for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import TensorDataset

import planter
from planter.data import load_data

_DRAWN = np.random.default_rng(0)
_N = 60
_X = _DRAWN.integers(0, 256, (_N, 1, 8, 8), dtype=np.uint8)
_Y = np.arange(_N) % 3
_PLACE = "planter_tests_given_images:make"


def _study(**more) -> planter.Study:
    settings = {"validation": 0.25, **more.pop("data", {})}
    return planter.Study(
        name="given",
        data=planter.DataSettings(**settings),
        baselines=[planter.Baseline(builder="convnet", widths=3)],
        objectives=planter.Objectives(macs_reference=1e6),
        recipe=planter.Recipe(epochs=1, batch=16),
        resources=planter.Resources(workers=0),
        **more,
    )


def _by_function(made, folder, **data):
    """The run of the same study whose data a function returns."""
    module = types.ModuleType("planter_tests_given_images")
    module.make = lambda: made
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        return planter.search(_study(data={"name": _PLACE, **data}), out=folder)


def _numbers(run):
    costs = ("seconds", "model")
    return [{k: v for k, v in row.items() if k not in costs} for row in run.points]


_FLOATS = (_X / 255).astype(np.float32)
_THREE = {"train": (_X[:40], _Y[:40]), "test": (_X[40:], _Y[40:]), "class_names": list("abc")}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ((_X, _Y), {"train": (_X, _Y)}),
        ((torch.from_numpy(_X), torch.from_numpy(_Y)), {"train": (_X, _Y)}),
        ((_FLOATS, [["a", "b", "c"][y] for y in _Y]), {"train": (_FLOATS, _Y)}),
        (_THREE, _THREE),
        (TensorDataset(torch.from_numpy(_X), torch.from_numpy(_Y)), {"train": (_X, _Y)}),
    ],
    ids=["arrays", "tensors", "floats and names", "parts", "data set"],
)
def test_the_points_are_those_of_a_function_that_returns_the_images(given, made, tmp_path):
    run = planter.search(_study(), data=given, out=tmp_path / "given")
    assert _numbers(run) == _numbers(_by_function(made, tmp_path / "made"))
    assert len(run.points) == 1


def test_loaded_data_are_searched_as_they_are_split(tmp_path):
    loaded = load_data("digits", subset=120, validation=0.25, label_noise=0.2, seed=7)
    run = planter.search(_study(), data=loaded, out=tmp_path / "run")
    data = run.data()
    for part in ("train", "validation", "test"):
        one, other = getattr(data, part), getattr(loaded, part)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert data.fingerprint() == loaded.fingerprint()
    assert data.class_names == loaded.class_names


def test_settings_beside_the_source_hold(tmp_path):
    settings = {"subset": 30, "resize": 16, "validation": 9, "test": 6}
    run = planter.search(_study(data=settings), data=(_X, _Y), out=tmp_path / "run")
    data = run.data()
    assert (len(data.train), len(data.validation), len(data.test)) == (21, 9, 6)
    assert data.image == (1, 16, 16)


def test_another_process_goes_on_and_opens_the_images(tmp_path):
    planter.search(_study(), data=(_X, _Y), out=tmp_path / "run")
    said = yaml.safe_load((tmp_path / "run" / "study.yaml").read_text())
    assert said["data"]["name"] == "arrays"
    code = (
        "import planter, sys; from pathlib import Path; run = Path(sys.argv[1])\n"
        "more = 'baselines=[{builder: convnet, widths: 3}, {builder: convnet, widths: 4}]'\n"
        "found = planter.search(run / 'study.yaml', out=run, overrides=[more],"
        " accept_changes=True)\n"
        "print(len(found.points), len(found.data().train))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert told.stdout.split() == ["2", "45"]


def test_a_run_that_was_moved_has_its_images(tmp_path):
    run = planter.search(_study(), data=(_X, _Y), out=tmp_path / "run")
    before = run.data()
    (tmp_path / "run").rename(tmp_path / "moved")
    after = planter.open_run(tmp_path / "moved").data()
    assert torch.equal(before.train.images, after.train.images)


def test_the_same_call_goes_on_and_other_images_are_refused(tmp_path):
    first = planter.search(_study(), data=(_X, _Y), out=tmp_path)
    kept = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "images").iterdir()}
    assert _numbers(planter.search(_study(), data=(_X, _Y), out=tmp_path)) == _numbers(first)
    other = _X.copy()
    other[5, 0, 0, 0] ^= 1
    for given in [(other, _Y), (_X, (_Y + 1) % 3), (_FLOATS, _Y)]:
        with pytest.raises(planter.StudyError, match="other images or labels than the run was"):
            planter.search(_study(), data=given, out=tmp_path)
    assert kept == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "images").iterdir()}


def test_a_run_of_other_data_is_not_gone_on_with(tmp_path):
    planter.search(_study(data={"subset": 60}), out=tmp_path)
    with pytest.raises(planter.StudyError, match="than the run was begun with"):
        planter.search(_study(), data=(_X, _Y), out=tmp_path)
    assert not (tmp_path / "images").exists()


def test_a_study_that_was_refused_may_be_given_other_images(tmp_path):
    with pytest.raises(planter.StudyError, match="leaves no training image"):
        planter.search(_study(data={"validation": 59}), data=(_X, _Y), out=tmp_path)
    run = planter.search(_study(), data=(_X[:30], _Y[:30]), out=tmp_path)
    assert len(run.data().train) + len(run.data().validation) == 30


@pytest.mark.long
def test_ray_workers_get_them(tmp_path):
    here = planter.search(_study(), data=(_X, _Y), out=tmp_path / "here")
    study = _study().model_copy(update={"resources": planter.Resources(workers=1)})
    there = planter.search(study, data=(_X, _Y), out=tmp_path / "there")
    assert _numbers(there) == _numbers(here)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (_X, r"ndarray: expected \(images, labels\).*come with their labels"),
        ("photos", r"str: expected .*where images lie is said by the study"),
        (((_X, _Y), (_X, _Y)), "two parts are told apart by their names"),
        (
            (TensorDataset(torch.zeros(2, 1, 8, 8), torch.zeros(2)),) * 2,
            "two parts are told apart by their names",
        ),
        ({"test": (_X, _Y)}, "a mapping with 'train'.*got 'test'"),
        ({"train": (_X, _Y), "trane": (_X, _Y)}, "got 'trane', which nothing would read"),
        ((_X, _Y[:-1]), "every image has one label"),
        ((_X[:, 0], _Y), "a grey channel"),
        ((np.zeros((9, 8, 8, 3), np.uint8), _Y[:9]), "channels seem to come last"),
        ((_X.astype(complex), _Y), "pixels are real numbers"),
        ((np.full((9, 1, 8, 8), np.nan), _Y[:9]), "pixels are finite"),
        ((_X, _Y + 1), "labels are whole numbers from 0 on"),
        ({"train": (_X, _Y), "test": (_FLOATS, _Y)}, "one type of pixels"),
        (7, "int: .*with a length and items"),
        ([], "a part holds an image"),
    ],
)
def test_what_are_no_images_is_told(given, rule, tmp_path):
    with pytest.raises(planter.StudyError, match=f"data: got {'.*' + rule}"):
        planter.search(_study(), data=given, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_are_normalised_otherwise_are_refused(tmp_path):
    loaded = load_data("digits", subset=60)
    half = replace(loaded, train=loaded.train.taken_by(loaded.train.mean / 2, loaded.train.std))
    with pytest.raises(planter.StudyError, match="give the images alone"):
        planter.search(_study(), data=half, out=tmp_path / "run")


def test_a_second_source_is_refused(tmp_path):
    for source in ({"name": "digits"}, {"root": "photos"}, {"download": True}):
        with pytest.raises(planter.StudyError, match="in the study beside data=, expected one"):
            planter.search(_study(data=source), data=(_X, _Y), out=tmp_path / "run")


def _write(folder, **arrays):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name.replace('_', '-')}.npy", array)
    return folder


def test_a_folder_of_arrays_is_a_source(tmp_path):
    root = _write(
        tmp_path / "npy", train_images=_X[:40], train_labels=_Y[:40], test_images=_X[40:],
        test_labels=_Y[40:],
    )  # fmt: skip
    (root / "class_names.json").write_text(json.dumps(["a", "b", "c"]))
    data = load_data("arrays", root=root, validation=10)
    assert data.class_names == ("a", "b", "c")
    assert np.array_equal(data.test.images.numpy(), _X[40:])
    assert (len(data.train), len(data.validation)) == (30, 10)


def test_a_folder_that_is_none_is_told(tmp_path):
    alone = _write(tmp_path / "alone", train_images=_X)
    with pytest.raises(ValueError, match=r"expected train-labels\.npy beside it"):
        load_data("arrays", root=alone)
    with pytest.raises(ValueError, match=r"holds no train-images\.npy"):
        load_data("arrays", root=_write(tmp_path / "test", test_images=_X, test_labels=_Y))
    bad = _write(tmp_path / "bad", train_images=_X, train_labels=_Y)
    (bad / "class_names.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON list of names"):
        load_data("arrays", root=bad)
    (bad / "train-images.npy").write_bytes(b"none")
    with pytest.raises(ValueError, match="no array of numpy's"):
        load_data("arrays", root=bad)
    np.save(bad / "train-images.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="no array of numpy's"):
        load_data("arrays", root=bad)
