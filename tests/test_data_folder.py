"""Folders of every layout: what is read, under which label, and what is told of the rest."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from planter.data import Ignored, Skipped, load_data


def _image(file, level=0, size=(4, 4)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file)


def _fill(root, *classes, count=4, level=0):
    """`count` flat images a class; returns the levels, each another one."""
    levels = {}
    for at, name in enumerate(classes):
        levels[name] = [level + 20 * at + i for i in range(count)]
        for i, one in enumerate(levels[name]):
            _image(root / name / f"{i}.png", one)
    return levels


def _levels(split, names):
    """The level of each image, by class."""
    found = {}
    for image, label in zip(split.images, split.labels.tolist(), strict=True):
        found.setdefault(names[label], []).append(int(image[0, 0, 0]))
    return {name: sorted(levels) for name, levels in found.items()}


def _load(root, **settings):
    return load_data("folder", root=root, **{"validation": 2, **settings})


def _all(data):
    both = _levels(data.train, data.class_names), _levels(data.validation, data.class_names)
    return {name: sorted(both[0][name] + both[1].get(name, [])) for name in both[0]}


def _write(file, content=b"x"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


# ---- classes


def test_folders_in_a_class_are_read(tmp_path):
    expected = _fill(tmp_path, "cat", "dog")
    _image(tmp_path / "cat" / "2019" / "july" / "a.png", 200)
    _image(tmp_path / "cat" / "2020" / "0.png", 201)
    expected["cat"] += [200, 201]
    assert _all(_load(tmp_path)) == expected


def test_a_flat_folder_keeps_the_order_of_its_files(tmp_path):
    """As before nested folders were read (issue 15): the split of an old run stays."""
    for i, name in enumerate(["b.png", "a.PNG", "10.png", "9.png"]):
        _image(tmp_path / "cat" / name, i)
        _image(tmp_path / "dog" / name, 10 + i)
    whole = load_data("folder", root=tmp_path, validation=2)
    kept = [int(level) for level in whole.train.images[:, 0, 0, 0]]
    order = [2, 3, 1, 0, 12, 13, 11, 10]  # by name: 10, 9, a, b
    assert kept == [level for level in order if level in kept]


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    expected = _fill(tmp_path / "photos", "cat", "dog")
    _image(tmp_path / "elsewhere" / "a.png", 200)
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "cat" / "more")
    os.symlink(tmp_path / "photos" / "cat", tmp_path / "photos" / "cat" / "round")
    expected["cat"].append(200)
    data = _load(tmp_path / "photos")
    assert _all(data) == expected
    assert [one.folder for one in data.account.ignored] == ["cat/round"]


def _link(target, link):
    link.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, link)


@pytest.mark.parametrize("train", ["", "train"])
@pytest.mark.parametrize(
    ("link", "target", "reason"),
    [
        ("dog/cats", "../cat", "a link into the class cat"),
        ("cat/dogs", "../dog", "a link into the class dog"),
        ("dog/cats", "../cat/2019", "a link into the class cat"),
        ("dog/deep/cats", "../../cat", "a link into the class cat"),
        ("cat/all", "..", "a link to a folder that holds the class"),
        ("cat/all", "../../..", "a link to a folder that holds the class"),
        ("cat/all", "/", "a link to a folder that holds the class"),
        ("cat/all", ".", "a link to a folder that was read already"),
        ("cat/2018", "2019", "a link to a folder that was read already"),
        ("cat/2019/up", "..", "a link to a folder that was read already"),
    ],
)
def test_a_link_reads_no_image_twice_or_under_another_class(tmp_path, train, link, target, reason):
    """Issue 15: images of one class were read as another's."""
    root = tmp_path / "photos"
    expected = _fill(root / train, "cat", "dog")
    _image(root / train / "cat" / "2019" / "a.png", 200)
    expected["cat"].append(200)
    _link(target, root / train / link)
    data = _load(root)
    assert _all(data) == expected
    place = f"{train}/{link}".strip("/")
    assert data.account.ignored == (Ignored(place, 0, reason),)


def test_a_folder_that_two_classes_link_to_is_read_for_the_first(tmp_path):
    root = tmp_path / "photos"
    expected = _fill(root, "cat", "dog")
    _image(tmp_path / "pool" / "a" / "0.png", 200)
    _image(tmp_path / "pool" / "1.png", 201)
    expected["cat"] += [200, 201]
    _link(tmp_path / "pool", root / "cat" / "more")
    _link(tmp_path / "pool" / "a", root / "dog" / "more")
    data = _load(root)
    assert _all(data) == expected
    reason = "a link to a folder that was read already"
    assert data.account.ignored == (Ignored("dog/more", 0, reason),)


def test_each_part_follows_its_own_links(tmp_path):
    trained = _fill(tmp_path / "photos" / "train", "cat", "dog")
    tested = _fill(tmp_path / "photos" / "test", "cat", "dog", level=100)
    _image(tmp_path / "pool" / "0.png", 200)
    for part, levels in (("train", trained), ("test", tested)):
        _link(tmp_path / "pool", tmp_path / "photos" / part / "cat" / "more")
        levels["cat"].append(200)
    _link("../cat", tmp_path / "photos" / "test" / "dog" / "cats")
    data = _load(tmp_path / "photos")
    assert _all(data) == trained
    assert _levels(data.test, data.class_names) == tested
    assert [one.folder for one in data.account.ignored] == ["test/dog/cats"]


@pytest.mark.parametrize("train", ["", "train"])
def test_a_link_into_another_part_is_not_followed(tmp_path, train):
    """Else networks are tested on images they trained on, or on ones of another class."""
    trained = _fill(tmp_path / train, "cat", "dog")
    held = _fill(tmp_path / "val", "cat", "dog", level=100)
    tested = _fill(tmp_path / "test", "cat", "dog", level=200)
    cat = tmp_path / train / "cat"
    _link(cat, tmp_path / "test" / "dog" / "more")
    _link(cat / "0.png", tmp_path / "test" / "cat" / "trained.png")
    _link(tmp_path / "test" / "cat", tmp_path / "val" / "cat" / "more")
    _link(tmp_path / "val" / "cat", cat / "more")
    _link(tmp_path / "test" / "dog" / "0.png", cat / "tested.png")
    data = _load(tmp_path)
    assert _levels(data.train, data.class_names) == trained
    assert _levels(data.validation, data.class_names) == held
    assert _levels(data.test, data.class_names) == tested
    reason = "a link into another part"
    assert {(one.folder, one.reason) for one in data.account.ignored} == {
        (f"{train}/cat/more".strip("/"), reason),
        ("val/cat/more", reason),
        ("test/dog/more", reason),
    }
    assert data.account.skipped == (Skipped(".png", 2, "a link into another class or part"),)


def test_classes_may_be_links_to_folders_elsewhere(tmp_path):
    expected = _fill(tmp_path / "disk", "cat", "dog")
    for name in expected:
        _link(tmp_path / "disk" / name, tmp_path / "photos" / name)
    _link("../dog", tmp_path / "disk" / "cat" / "dogs")
    _link(tmp_path / "photos", tmp_path / "disk" / "cat" / "all")
    data = _load(tmp_path / "photos")
    assert _all(data) == expected
    assert [one.folder for one in data.account.ignored] == ["cat/all", "cat/dogs"]


@pytest.mark.parametrize("target", ["cat", "cat/2019", ".", ".."])
def test_a_class_that_is_a_link_to_another_is_refused(tmp_path, target):
    _fill(tmp_path / "photos", "cat", "dog")
    _fill(tmp_path / "photos" / "cat", "2019")
    _link(target, tmp_path / "photos" / "eel")
    with pytest.raises(ValueError, match=r"each class has a folder of its own; .* leads to"):
        _load(tmp_path / "photos")


def test_a_link_to_a_file_is_followed_but_not_into_another_class(tmp_path):
    expected = _fill(tmp_path / "photos", "cat", "dog")
    _image(tmp_path / "pool" / "0.png", 200)
    _link(tmp_path / "pool" / "0.png", tmp_path / "photos" / "cat" / "pool.png")
    _link("../dog/0.png", tmp_path / "photos" / "cat" / "dog.png")
    _link("../cat/pool.png", tmp_path / "photos" / "dog" / "pool.png")  # which leads on
    expected["cat"].append(200)
    expected["dog"].append(200)
    data = _load(tmp_path / "photos")
    assert _all(data) == expected
    assert data.account.skipped == (Skipped(".png", 1, "a link into another class or part"),)
    _fill(tmp_path / "photos", "eel", count=0)
    _link("../dog/0.png", tmp_path / "photos" / "eel" / "dog.png")
    with pytest.raises(ValueError, match="links into other classes or parts are not read"):
        _load(tmp_path / "photos")


def test_links_in_a_circle_are_no_crash(tmp_path):
    expected = _fill(tmp_path, "cat", "dog")
    _link("a", tmp_path / "cat" / "b")
    _link("b", tmp_path / "cat" / "a")
    data = _load(tmp_path)
    assert _all(data) == expected
    assert [(one.ending, one.files) for one in data.account.skipped] == [("", 2)]


def test_a_class_without_an_image_is_refused_with_what_its_folder_holds(tmp_path):
    _fill(tmp_path, "cat", "dog")
    for i in range(3):
        _write(tmp_path / "eel" / f"{i}.heic")
    _write(tmp_path / "eel" / "more" / "LICENSE")
    (tmp_path / "fox").mkdir()
    with pytest.raises(
        ValueError, match=r"have none: eel \(3 .heic, 1 without.*\), fox \(an empty"
    ):
        _load(tmp_path)


def test_a_class_that_trains_on_nothing_but_has_test_images_is_refused(tmp_path):
    _fill(tmp_path / "train", "cat", "dog")
    (tmp_path / "train" / "eel").mkdir()
    _fill(tmp_path / "test", "cat", "eel")
    with pytest.raises(ValueError, match=r"this has none: eel \(an empty folder\); add images"):
        _load(tmp_path)


def test_one_class_is_refused_with_a_hint_where_the_classes_may_lie(tmp_path):
    _fill(tmp_path / "photos", "cat", "dog")
    with pytest.raises(ValueError, match=r"got the folder photos; if the classes lie in it"):
        _load(tmp_path)
    for i in range(3):
        _image(tmp_path / "flat" / f"{i}.png")
    with pytest.raises(ValueError, match=r"two or more classes; got no folder and 3 images"):
        _load(tmp_path / "flat")


# ---- parts


@pytest.mark.parametrize("train", ["train", "training", "Train", "TRAINING"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
@pytest.mark.parametrize("test", ["test", "testing"])
def test_folders_named_like_parts_are_the_parts(tmp_path, train, validation, test):
    trained = _fill(tmp_path / train, "cat", "dog")
    held = _fill(tmp_path / validation, "cat", "dog", count=2, level=100)
    tested = _fill(tmp_path / test, "cat", "dog", count=3, level=200)
    data = _load(tmp_path, validation=0.5)
    assert _levels(data.train, data.class_names) == trained
    assert _levels(data.validation, data.class_names) == held
    assert _levels(data.test, data.class_names) == tested
    assert data.account.validation_from == f"{validation}/"
    assert data.account.test_from == f"{test}/"
    assert (data.account.train, data.account.validation, data.account.test) == (
        (4, 4), (2, 2), (3, 3)
    )  # fmt: skip


def test_a_subset_leaves_a_validation_folder_whole(tmp_path):
    _fill(tmp_path / "train", "cat", "dog", count=10)
    held = _fill(tmp_path / "val", "cat", "dog", count=3, level=100)
    data = _load(tmp_path, subset=6)
    assert len(data.train) == 6
    assert _levels(data.validation, data.class_names) == held


def test_a_test_share_beside_a_validation_folder_comes_from_the_training_images(tmp_path):
    _fill(tmp_path / "train", "cat", "dog", count=10)
    _fill(tmp_path / "val", "cat", "dog", count=3, level=100)
    data = _load(tmp_path, test=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 6, 4)
    _fill(tmp_path / "test", "cat", "dog", count=2)
    with pytest.raises(ValueError, match="test part of 4 images"):
        _load(tmp_path, test=0.2)


def test_two_folders_for_one_part_are_refused(tmp_path):
    for part in ("train", "val", "validation"):
        _fill(tmp_path / part, "cat", "dog")
    with pytest.raises(ValueError, match="has val and validation: one folder for validation"):
        _load(tmp_path)


def test_parts_without_a_training_folder_are_refused(tmp_path):
    for part in ("val", "test"):
        _fill(tmp_path / part, "cat", "dog")
    with pytest.raises(ValueError, match=r"has test and val, but no folder train|val and test"):
        _load(tmp_path)


def test_a_test_folder_beside_the_classes_is_the_test_part(tmp_path):
    trained = _fill(tmp_path, "cat", "dog")
    tested = _fill(tmp_path / "test", "cat", "dog", count=2, level=100)
    data = _load(tmp_path)
    assert _all(data) == trained
    assert _levels(data.test, data.class_names) == tested


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_be_named_like_a_part(tmp_path, name):
    expected = _fill(tmp_path, "car", name, "plane")
    data = _load(tmp_path, validation=3)
    assert data.class_names == tuple(sorted(("car", name, "plane")))
    assert _all(data) == expected
    (warning,) = data.account.warnings
    assert f"the folder {name} is read as a class; if it is to be the" in warning
    assert f"such as {name}/car/" in warning


def test_a_part_of_another_form_is_a_class_that_is_told(tmp_path):
    """Issue 15: it became one without a word."""
    _fill(tmp_path / "inside" / "train", "a", "b")
    _fill(tmp_path / "inside" / "train" / "val", "a", "b")
    data = _load(tmp_path / "inside", validation=3)
    assert data.class_names == ("a", "b", "val")
    (warning,) = data.account.warnings
    assert "the folder train/val is read as a class" in warning
    assert "such as val/a/, and lies beside the training folder" in warning
    _fill(tmp_path / "loose" / "train", "a")
    _image(tmp_path / "loose" / "train" / "stray.png")
    _fill(tmp_path / "loose", "b")
    data = _load(tmp_path / "loose")
    assert data.class_names == ("b", "train")
    (warning,) = data.account.warnings
    assert "it holds class folders, such as train/b/, and no image of its own" in warning


def test_a_class_named_like_a_part_with_folders_of_its_own_is_read_and_told(tmp_path):
    _fill(tmp_path, "control", "treated")
    _fill(tmp_path / "test", "patient1", "patient2", level=100)
    data = _load(tmp_path, validation=3)
    assert data.class_names == ("control", "test", "treated")
    (warning,) = data.account.warnings
    assert "the folder test is read as a class" in warning


def test_folders_beside_the_training_folder_are_told(tmp_path):
    _fill(tmp_path / "train", "cat", "dog")
    _fill(tmp_path, "eel", count=3)
    _write(tmp_path / "notes" / "a.txt")
    for i in range(5):
        _image(tmp_path / "test" / f"{i}.png")  # images without classes
    data = _load(tmp_path)
    assert data.test is None
    reason = "beside the training folder, and no part"
    assert data.account.ignored == (
        Ignored("eel", 3, reason), Ignored("notes", 1, reason), Ignored("test", 5, reason)
    )  # fmt: skip
    first, second = data.account.warnings
    assert "eel lies beside the training folder, and its 3 images are not read" in first
    assert "test lies beside the training folder, and its 5 images are not read" in second


def test_a_part_without_images_is_refused(tmp_path):
    _fill(tmp_path / "train", "cat", "dog")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"val holds no images; fill it or move it away"):
        _load(tmp_path)


# ---- what is not read


def test_hidden_and_system_files_are_counted_not_read(tmp_path):
    expected = _fill(tmp_path, "cat", "dog")
    for name in ("cat", "dog"):
        for i in range(3):
            _write(tmp_path / name / f"._{i}.png", b"\0\5\x16\7")
            _write(tmp_path / "__MACOSX" / name / f"._{i}.png")
        _write(tmp_path / name / ".DS_Store")
        _write(tmp_path / name / "Thumbs.db")
        _write(tmp_path / name / "desktop.ini")
        _write(tmp_path / name / ".ipynb_checkpoints" / "0-checkpoint.png")
    _write(tmp_path / "cat" / "@eaDir" / "0.png")
    data = _load(tmp_path)
    assert _all(data) == expected
    assert data.account.skipped == (
        Skipped("", 2, "hidden"),
        Skipped(".db", 2, "the system's own"),
        Skipped(".ini", 2, "the system's own"),
        Skipped(".png", 6, "hidden"),
    )
    assert {(one.folder, one.files) for one in data.account.ignored} == {
        ("__MACOSX", 6),
        ("cat/.ipynb_checkpoints", 1),
        ("cat/@eaDir", 1),
        ("dog/.ipynb_checkpoints", 1),
    }


def test_other_files_are_counted_by_their_ending(tmp_path):
    expected = _fill(tmp_path, "cat", "dog")
    for i in range(3):
        _write(tmp_path / "cat" / f"{i}.HEIC")
        _write(tmp_path / "cat" / f"{i}.xml")
    _write(tmp_path / "dog" / "README")
    _write(tmp_path / "labels.csv")
    _image(tmp_path / "stray.png")
    data = _load(tmp_path)
    assert _all(data) == expected
    told = {(one.ending, one.files) for one in data.account.skipped}
    assert told == {(".heic", 3), (".xml", 3), ("", 1), (".csv", 1), (".png", 1)}
    (stray,) = [one for one in data.account.skipped if one.ending == ".png"]
    assert stray.reason == "beside the class folders"


def test_images_under_another_ending_are_told_to_be_renamed(tmp_path):
    expected = _fill(tmp_path, "cat", "dog")
    for kind, name in (("PNG", "a"), ("JPEG", "b.jpg_large"), ("WEBP", "c.tmp"), ("GIF", "d")):
        Image.new("RGB", (4, 4)).save(tmp_path / "cat" / name, kind)
    _write(tmp_path / "cat" / "e.wav", b"RIFF\0\0\0\0WAVE")
    data = _load(tmp_path)
    assert _all(data) == expected
    rename = [one for one in data.account.skipped if one.reason.endswith("rename it")]
    assert {(one.ending, one.files) for one in rename} == {("", 2), (".jpg_large", 1), (".tmp", 1)}


def test_a_root_that_is_the_working_folder_leaves_out_what_planter_and_python_write(
    tmp_path, monkeypatch
):
    expected = _fill(tmp_path, "cat", "dog")
    _write(tmp_path / "study.yaml")
    _write(tmp_path / "runs" / "first" / "study.db")
    _write(tmp_path / "__pycache__" / "space.cpython-311.pyc")
    monkeypatch.chdir(tmp_path)
    data = _load(".")
    assert _all(data) == expected
    assert [(one.folder, one.files) for one in data.account.ignored] == [
        ("__pycache__", 1),
        ("runs", 1),
    ]


@pytest.mark.parametrize("place", ["runs/first", "runs/deep/first", "first", "cat/first"])
def test_planters_own_runs_are_no_class_and_no_images(tmp_path, place):
    expected = _fill(tmp_path, "cat", "dog")
    run = tmp_path / place
    _write(run / "resolved.yaml")
    _image(run / "front.png", 99)
    _write(run.parent / ".teachers" / "x" / "arch.json")
    data = _load(tmp_path)
    assert _all(data) == expected
    (ignored,) = [one for one in data.account.ignored if one.reason == "planter's own runs"]
    assert ignored.folder == ("runs" if place.startswith("runs") else place)
    told = [one for one in data.account.warnings if "its 1 images are not read" in one]
    assert len(told) == (not place.startswith("runs"))


@pytest.mark.parametrize(
    "files",
    [
        ["a/resolved.yaml", "b/"],  # a run, and one whose process has not written a file yet
        ["a/.lock"],
        ["a/.id", "a/.lock", "b/notes.txt", "readme.md"],
        [".teachers/x/arch.json"],
        ["deep/down/a/study.db", "deep/up/"],
        ["a/resolved.yaml", "a/models/m1/input.png", "a/trials/t/0.png", "a/front.png"],
    ],
    ids=lambda files: files[0],
)
def test_a_folder_with_runs_is_never_a_class_to_be_removed(tmp_path, files):
    """Issue 15: an empty class was told, and to remove its folder: the user's runs."""
    expected = _fill(tmp_path, "cat", "dog")
    for name in files:
        if name.endswith("/"):
            (tmp_path / "runs" / name).mkdir(parents=True)
        else:
            _write(tmp_path / "runs" / name)
    for folder in (tmp_path, tmp_path / "cat"):
        if folder != tmp_path:
            os.rename(tmp_path / "runs", folder / "runs")
        data = _load(tmp_path)
        assert _all(data) == expected
        place = (folder / "runs").relative_to(tmp_path).as_posix()
        count = sum(not name.endswith("/") for name in files)
        assert data.account.ignored == (Ignored(place, count, "planter's own runs"),)


def test_a_link_to_runs_elsewhere_is_no_class(tmp_path):
    expected = _fill(tmp_path / "photos", "cat", "dog")
    _write(tmp_path / "disk" / "first" / "resolved.yaml")
    os.symlink(tmp_path / "disk" / "first", tmp_path / "disk" / "latest")
    os.symlink(tmp_path / "disk", tmp_path / "photos" / "runs")
    data = _load(tmp_path / "photos")
    assert _all(data) == expected
    assert [one.folder for one in data.account.ignored] == ["runs"]


@pytest.mark.parametrize("name", [".id", ".lock", "study.db", "pareto.json"])
@pytest.mark.parametrize("deep", ["", "2019/"])
def test_a_file_called_as_one_of_a_run_takes_no_class_away(tmp_path, name, deep):
    """Issue 15: the class was dropped, with its images."""
    expected = _fill(tmp_path, "cat", "dog")
    _image(tmp_path / "cat" / f"{deep}a.png", 200)
    expected["cat"].append(200)
    _write(tmp_path / "cat" / deep / name)
    _write(tmp_path / "dog" / name)
    data = _load(tmp_path)
    assert _all(data) == expected
    assert data.account.ignored == ()


def test_a_run_that_was_written_into_a_class_is_told(tmp_path):
    _fill(tmp_path, "ant", "cat", "dog", count=3)
    _write(tmp_path / "dog" / "resolved.yaml")
    _image(tmp_path / "dog" / "models" / "m.png")
    data = _load(tmp_path)
    assert data.class_names == ("ant", "cat")
    (warning,) = data.account.warnings
    assert "dog is a run of planter's (it has resolved.yaml), and its 3 images" in warning


def test_a_class_may_be_called_runs(tmp_path):
    expected = _fill(tmp_path, "runs", "walks")
    assert _all(_load(tmp_path)) == expected


def test_a_file_that_cannot_be_listed_or_read_is_a_refusal_not_a_crash(tmp_path):
    _fill(tmp_path, "cat", "dog")
    os.symlink(tmp_path / "gone.png", tmp_path / "cat" / "link.png")
    with pytest.raises(ValueError, match=r"link\.png cannot be read as an image"):
        _load(tmp_path)
    (tmp_path / "cat" / "link.png").unlink()
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (skipped,) = _load(tmp_path).account.skipped
    assert skipped == Skipped(".png", 1, "no regular file")


# ---- the account


def test_the_account_counts_what_the_parts_hold(tmp_path):
    _fill(tmp_path / "train", "ant", "cat", "dog", count=10)
    _fill(tmp_path / "test", "cat", count=3)
    account = _load(tmp_path, validation=0.2).account
    document = account.document()
    assert document["classes"] == {
        "ant": {"train": 8, "validation": 2, "test": 0},
        "cat": {"train": 8, "validation": 2, "test": 3},
        "dog": {"train": 8, "validation": 2, "test": 0},
    }
    assert (document["train"], document["validation"], document["test"]) == (24, 6, 3)
    assert document["validation_from"] == "0.2 of the training images"
    assert json.loads(json.dumps(document)) == document
    first, *_ = account.lines()
    assert first == (
        "3 classes (ant, cat, dog); 24 training, 6 validation (0.2 of the training images), 3 test "
        "images (test/); 3 x 4 x 4 uint8"
    )


def test_a_channel_that_is_constant_is_warned_about(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            pixels[..., 1] = 77
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (warning,) = _load(tmp_path).account.warnings
    assert "channel 1 is 77 in every pixel" in warning


def test_files_with_several_frames_are_counted(tmp_path):
    _fill(tmp_path, "cat", "dog")
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (0, 255)]
    frames[0].save(tmp_path / "cat" / "a.gif", save_all=True, append_images=frames[1:])
    assert _load(tmp_path).account.notes == (
        "of 1 files with several frames the first one was read",
    )


def test_a_folder_without_any_readable_ending_says_what_it_holds(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / name / f"{number}", "PNG")
            (tmp_path / name / f"{number}.heic").write_bytes(b"no image that Pillow reads")
    with pytest.raises(ValueError, match="holds no images") as error:
        load_data("folder", root=str(tmp_path), validation=0.2)
    assert "6 without an ending (an image by its content" in str(error.value)
    assert "rename it" in str(error.value)
    assert "6 .heic" in str(error.value)
