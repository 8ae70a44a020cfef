"""What a study tells of its images, and class names as part of a run's identity."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import planter
from planter.driver.checking.check import prepare
from planter.study.schema import Study, StudyError

_STUDY = """
name: small
data: {name: folder, root: photos, validation: 4}
baselines: [{builder: convnet, widths: 2}]
recipe: {epochs: 1, batch: 8}
resources: {workers: 0}
"""


def _fill(root, *classes, count=8):
    for at, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(100 * at + i).integers(0, 200, (16, 16, 3), np.uint8)
            pixels[..., at] += 50
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with photos and a finished run on them."""
    folder = tmp_path_factory.mktemp("searched")
    _fill(folder / "photos", "cat", "dog")
    (folder / "photos" / "__MACOSX").mkdir()
    (folder / "photos" / "__MACOSX" / "._0.png").write_bytes(b"x")
    (folder / "photos" / "cat" / "a.heic").write_bytes(b"x")
    (folder / "small.yaml").write_text(_STUDY)
    planter.search(folder / "small.yaml", out=folder / "runs" / "small")
    return folder


@pytest.fixture
def copied(searched, tmp_path):
    """The same, to change: a run knows its data by their path."""
    kept = shutil.copytree(searched, tmp_path / "kept")
    yield searched
    shutil.rmtree(searched)
    shutil.copytree(kept, searched)


def _again(folder, **settings):
    return planter.search(folder / "small.yaml", out=folder / "runs" / "small", **settings)


_ACCOUNT = {
    "classes": {
        "cat": {"train": 6, "validation": 2, "test": 0},
        "dog": {"train": 6, "validation": 2, "test": 0},
    },
    "train": 12,
    "validation": 4,
    "test": 0,
    "image": [3, 16, 16],
    "pixels": "uint8",
    "validation_from": "4 of the training images",
    "test_from": "none",
    "skipped": [
        {
            "ending": ".heic",
            "files": 1,
            "reason": "no ending of an image that Pillow reads here",
        }
    ],
    "ignored": [{"folder": "__MACOSX", "files": 1, "reason": "what archives made on a Mac leave"}],
    "notes": [],
    "warnings": [],
}


def test_pareto_json_holds_the_account(searched):
    found = json.loads((searched / "runs" / "small" / "pareto.json").read_text())
    assert found["data"] == _ACCOUNT


def test_the_report_shows_the_account(searched):
    page = (searched / "runs" / "small" / "report.html").read_text()
    section = page[page.index('<section id="data">') :]
    section = section[: section.index("</section>")]
    assert "2 classes, images of 3 x 16 x 16 (uint8)" in section
    assert "<tr><td>cat</td><td class=n>6</td><td class=n>2</td><td class=n>0</td></tr>" in section
    assert "<tr><td>all</td><td class=n>12</td><td class=n>4</td><td class=n>0</td></tr>" in section
    assert "<td>.heic</td><td class=n>1</td>" in section
    assert "<td>__MACOSX</td><td class=n>1</td>" in section


def test_check_tells_the_account_in_words_and_as_json(searched, command_in):
    call = command_in(searched)
    code, out, _ = call("check", "small.yaml", "--json")
    assert code == 0
    assert json.loads(out)["data"] == _ACCOUNT
    assert json.loads(out)["warnings"] == []
    code, out, _ = call("check", "small.yaml")
    assert code == 0
    assert "2 classes (cat, dog); 12 training, 4 validation" in out
    assert "skipped: 1 file .heic (no ending of an image that Pillow reads here)" in out
    assert "ignored: __MACOSX/ with 1 file (what archives made on a Mac leave)" in out


def test_search_tells_the_account_before_it_trains(copied, command_in):
    call = command_in(copied)
    code, out, _ = call("search", "small.yaml", "--set", "name=told")
    assert code == 0
    assert out.index("data: 2 classes (cat, dog); 12 training") < out.index("b-width2 done")
    assert "1 file .heic" in out
    assert "__MACOSX/ with 1 file" in out


def test_warnings_of_the_images_are_warnings_of_the_check(tmp_path):
    _fill(tmp_path / "photos", "cat", "dog")
    for file in (tmp_path / "photos").rglob("*.png"):
        pixels = np.asarray(Image.open(file)).copy()
        pixels[..., 2] = 9
        Image.fromarray(pixels).save(file)
    data = {"name": "folder", "root": str(tmp_path / "photos"), "validation": 4}
    study = Study(name="x", data=data, baselines=[{"builder": "convnet", "widths": 2}])
    (warning,) = prepare(study).warnings
    assert "channel 2 is 9 in every pixel of all training images" in warning


def test_a_test_share_is_a_key_of_the_study(tmp_path):
    _fill(tmp_path / "photos", "cat", "dog")
    data = {"name": "folder", "root": str(tmp_path / "photos"), "validation": 4, "test": 0.25}
    study = Study(name="x", data=data, baselines=[{"builder": "convnet", "widths": 2}])
    found = prepare(study).data
    assert (len(found.train), len(found.validation), len(found.test)) == (8, 4, 4)
    with pytest.raises(StudyError, match=r"test 0\.2: the data have a test part of 359"):
        prepare(Study(name="x", data={"name": "digits", "test": 0.2}, baselines=study.baselines))


# ---- class names are part of a run's identity


def test_the_same_call_goes_on(copied):
    assert _again(copied)["data"] == _ACCOUNT


@pytest.mark.parametrize("accept", [False, True])
def test_a_class_that_is_renamed_is_refused(copied, accept):
    (copied / "photos" / "dog").rename(copied / "photos" / "hund")
    with pytest.raises(StudyError, match="other classes: hund new; dog gone, expected the classes"):
        _again(copied, accept_changes=accept)


def test_a_class_that_is_added_is_refused(copied):
    _fill(copied / "photos", "eel")
    with pytest.raises(StudyError, match="other classes: eel new"):
        _again(copied)


def test_an_empty_class_folder_is_refused(copied):
    (copied / "photos" / "zebra").mkdir()
    with pytest.raises(StudyError, match=r"this has none: zebra \(an empty folder\)"):
        _again(copied)


def test_own_class_names_in_another_order_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "planter_tests_renamed.py"
    module.write_text(
        "import torch\n"
        "NAMES = ['a', 'b']\n"
        "def make():\n"
        "    images = torch.arange(40).reshape(40, 1, 1, 1).expand(40, 1, 8, 8)\n"
        "    return {'train': (images, torch.arange(40) % 2), 'class_names': NAMES}\n"
    )
    study = Study(
        name="x",
        data={"name": "planter_tests_renamed:make"},
        baselines=[{"builder": "convnet", "widths": 2}],
        recipe={"epochs": 1, "batch": 8},
        resources={"workers": 0},
    )
    planter.search(study, out=tmp_path / "run")
    import planter_tests_renamed

    monkeypatch.setattr(planter_tests_renamed, "NAMES", ["b", "a"])
    with pytest.raises(StudyError, match="its classes in another order"):
        planter.search(study, out=tmp_path / "run")


def _forget_names(folder):
    """Makes a run one of a planter that kept no class names in environment.json."""
    file = folder / "runs" / "small" / "environment.json"
    environment = json.loads(file.read_text())
    del environment["class_names"]
    file.write_text(json.dumps(environment))


def test_a_run_of_an_older_planter_goes_on_and_is_held_to_its_networks_names(copied):
    _forget_names(copied)
    _again(copied)
    environment = json.loads((copied / "runs" / "small" / "environment.json").read_text())
    assert environment["class_names"] == ["cat", "dog"]
    _forget_names(copied)
    (copied / "photos" / "dog").rename(copied / "photos" / "hund")
    with pytest.raises(StudyError, match="hund new; dog gone"):
        _again(copied)
    # Without a saved network it has nothing to tell.
    shutil.rmtree(copied / "runs" / "small" / "models")
    _again(copied)


@pytest.mark.parametrize("change", ["renamed", "empty folder"])
def test_export_names_classes_as_the_network_does(copied, command_in, change):
    if change == "renamed":
        (copied / "photos" / "dog").rename(copied / "photos" / "hund")
    else:
        (copied / "photos" / "zebra").mkdir()
    call = command_in(copied)
    code, _, err = call("export", "small/b-width2", "-o", "a.safetensors")
    assert code == 0, err
    with safe_open(copied / "a.safetensors", "pt") as file:
        told = file.metadata()
    assert json.loads(told["classes"]) == ["cat", "dog"]
    spec = json.loads((copied / "runs/small/models/b-width2/base/arch.json").read_text())
    assert json.loads(told["mean"]) == spec["mean"]
    assert json.loads(told["std"]) == spec["std"]
    assert "CLASSES = ['cat', 'dog']" in (copied / "a.py").read_text()


def test_final_training_names_classes_as_the_run_does(copied, command_in):
    (copied / "photos" / "dog").rename(copied / "photos" / "hund")
    code, _, err = command_in(copied)("train", "small", "b-width2", "--from-scratch")
    assert code == 0, err
    files = list((copied / "runs" / "small" / "final").rglob("arch.json"))
    assert files
    assert {tuple(json.loads(file.read_text())["class_names"]) for file in files} == {
        ("cat", "dog")
    }


def test_a_teacher_whose_classes_stand_in_another_order_is_refused(copied):
    folder = copied / "runs" / "small" / "models" / "b-width2" / "base"
    spec = json.loads((folder / "arch.json").read_text())

    def checked(names):
        (folder / "arch.json").write_text(json.dumps({**spec, "class_names": names}))
        data = {"name": "folder", "root": str(copied / "photos"), "validation": 4}
        return prepare(
            Study(name="x", data=data, teacher={"model": str(folder)}, plant={"start": 2})
        )

    assert checked(["cat", "dog"]).warnings == []
    with pytest.raises(StudyError, match="a network whose classes are dog, cat"):
        checked(["dog", "cat"])
    (warning,) = checked(["0", "1"]).warnings
    assert warning == "the teacher names its classes 0, 1, the data cat, dog"
