"""Images in a folder a class."""

import numpy as np
import pytest
from PIL import Image
from test_data import _contents, _pairs

from planter.data import load_data

# ---- class folders


def _image(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


def _fill(root, classes=("cat", "dog"), count=4, size=(6, 5), seed=0):
    """PNG files in folders; returns the images [n, 3, height, width] and labels expected."""
    drawn = np.random.default_rng(seed)
    images, labels = [], []
    for label, name in enumerate(sorted(classes)):
        for i in range(count):
            pixels = drawn.integers(0, 256, (*size, 3), dtype=np.uint8)
            _image(root / name / f"{i}.png", pixels)
            images.append(pixels.transpose(2, 0, 1))
            labels.append(label)
    return np.stack(images), np.array(labels)


def test_class_folders_give_their_images_under_the_folders_names(tmp_path):
    expected = _fill(tmp_path, ("dog", "ant", "cat"))
    data = load_data("folder", root=tmp_path, validation=3)
    assert _contents(data.train, data.validation) == _pairs(*expected)
    assert data.class_names == ("ant", "cat", "dog")
    assert data.test is None
    assert data.image == (3, 6, 5)


def test_train_and_test_folders_are_the_training_and_the_test_data(tmp_path):
    train = _fill(tmp_path / "train")
    test = _fill(tmp_path / "test", count=2, seed=1)
    data = load_data("folder", root=tmp_path, validation=2)
    assert _contents(data.train, data.validation) == _pairs(*train)
    assert _contents(data.test) == _pairs(*test)


def test_a_test_folder_may_lack_a_class_and_keeps_the_others_numbers(tmp_path):
    _fill(tmp_path / "train", ("ant", "cat", "dog"))
    _fill(tmp_path / "test", ("dog",))
    data = load_data("folder", root=tmp_path, validation=3)
    assert set(data.test.labels.tolist()) == {2}


def test_grey_and_transparent_images_become_three_channels(tmp_path):
    grey = np.arange(30, dtype=np.uint8).reshape(6, 5)
    rgba = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    for i in range(3):
        _image(tmp_path / "grey" / f"{i}.png", grey)
        _image(tmp_path / "rgba" / f"{i}.PNG", rgba)
    data = load_data("folder", root=tmp_path, validation=2)
    grey_image = data.train.images[data.train.labels == 0][0].numpy()
    assert np.array_equal(grey_image, np.stack([grey] * 3))
    rgba_image = data.train.images[data.train.labels == 1][0].numpy()
    alpha = rgba[..., 3:] / 255
    white = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))
    assert np.array_equal(rgba_image, white.transpose(2, 0, 1))


def test_files_that_are_no_images_by_name_are_passed_over(tmp_path):
    expected = _fill(tmp_path)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no class")
    data = load_data("folder", root=tmp_path, validation=2)
    assert _contents(data.train, data.validation) == _pairs(*expected)


def test_images_of_several_sizes_are_refused_by_name_and_taken_with_resize(tmp_path):
    _fill(tmp_path)
    _image(tmp_path / "dog" / "tall.png", np.full((9, 5, 3), 77, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"tall\.png.*\(9, 5\).*\(6, 5\).*resize"):
        load_data("folder", root=tmp_path)
    data = load_data("folder", root=tmp_path, resize=4, validation=2)
    assert data.image == (3, 4, 4)
    flat = (np.full((3, 4, 4), 77, dtype=np.uint8).tobytes(), 1)
    assert _contents(data.train, data.validation)[flat] == 1


def test_train_and_test_of_different_sizes_are_refused(tmp_path):
    _fill(tmp_path / "train")
    _fill(tmp_path / "test", size=(7, 7))
    with pytest.raises(ValueError, match="resize"):
        load_data("folder", root=tmp_path)
    assert load_data("folder", root=tmp_path, resize=6).image == (3, 6, 6)


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, content):
    _fill(tmp_path)
    broken = tmp_path / "cat" / "broken.png"
    if content == "cut":
        content = (tmp_path / "cat" / "0.png").read_bytes()[:-40]
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        load_data("folder", root=tmp_path)


def test_an_image_with_any_damaged_byte_is_read_or_named(tmp_path):
    _fill(tmp_path)
    whole = (tmp_path / "cat" / "0.png").read_bytes()
    broken = tmp_path / "cat" / "broken.png"
    named = 0
    for i in range(0, len(whole), 3):
        broken.write_bytes(whole[:i] + bytes([whole[i] ^ 0x5A]) + whole[i + 1 :])
        message = None
        try:
            load_data("folder", root=tmp_path, resize=4)
        except ValueError as error:
            message = str(error)
        assert message is None or "broken.png" in message, i
        named += message is not None
    assert named > 10


def test_a_class_that_only_test_has_is_refused(tmp_path):
    _fill(tmp_path / "train")
    _fill(tmp_path / "test", ("cat", "dog", "emu"))
    with pytest.raises(ValueError, match=r"test has classes that train has not: emu"):
        load_data("folder", root=tmp_path)


@pytest.mark.parametrize("classes", [(), ("cat",)])
def test_fewer_than_two_classes_are_refused(tmp_path, classes):
    root = tmp_path / "pictures"
    root.mkdir()
    if classes:
        _fill(root, classes)
    with pytest.raises(ValueError, match=r"pictures must hold a folder for each of two or more"):
        load_data("folder", root=root)


def test_folders_without_images_and_a_missing_root_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="gone is not a folder"):
        load_data("folder", root=tmp_path / "gone")
    for name in ("cat", "dog"):
        (tmp_path / "bare" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="bare holds no images"):
        load_data("folder", root=tmp_path / "bare")
