"""Own data: every kind of labels, images and containers comes out right or is refused with the
rule."""

import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from planter.data import load_data

_OWN = "planter_tests_own_kinds:make"
_DRAWN = np.random.default_rng(0)
_N = 12
_X = _DRAWN.integers(0, 256, (_N, 3, 6, 5), dtype=np.uint8)
_Y = np.arange(_N) % 3


def _load(made, **settings):
    module = types.ModuleType("planter_tests_own_kinds")
    module.make = lambda: made
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        return load_data(_OWN, **{"validation": 3, **settings})


def _contents(data):
    """Each image as float64 bytes, with the name of its class."""
    return Counter(
        (image.double().numpy().tobytes(), data.class_names[label])
        for split in (data.train, data.validation)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    )


def _expected(images, names):
    made = np.ascontiguousarray(images, np.float64)
    return Counter((image.tobytes(), name) for image, name in zip(made, names, strict=True))


_AS_TEXT = [str(label) for label in _Y]


def _one_sentence(error):
    """The message: names the function, and holds the rule, what arrived, and what to do."""
    text = str(error.value)
    assert text.startswith(_OWN)
    assert "\n" not in text
    return text


# ---- labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (_Y, _AS_TEXT),
        (_Y.tolist(), _AS_TEXT),
        (tuple(_Y), _AS_TEXT),
        (torch.from_numpy(_Y), _AS_TEXT),
        ([torch.tensor(label) for label in _Y], _AS_TEXT),
        (_Y[:, None], _AS_TEXT),
        (torch.from_numpy(_Y)[:, None], _AS_TEXT),
        (_Y.astype(np.float32), _AS_TEXT),
        (torch.from_numpy(_Y).to(torch.bfloat16), _AS_TEXT),
        (_Y.astype(np.uint8), _AS_TEXT),
        (_Y.astype(">i4"), _AS_TEXT),
        (_Y.astype(object), _AS_TEXT),
        (np.array(["cat", "ant", "eel"])[_Y], ["cat", "ant", "eel"] * 4),
        (["cat", "ant", "eel"] * 4, ["cat", "ant", "eel"] * 4),
        (np.array(["cat", "ant", "eel"], dtype=object)[_Y], ["cat", "ant", "eel"] * 4),
        (np.array([b"cat", b"ant", b"eel"])[_Y], ["cat", "ant", "eel"] * 4),
        (["1", "2", "10"] * 4, ["1", "2", "10"] * 4),
        (_Y > 0, ["0", "1", "1"] * 4),
        (torch.from_numpy(_Y > 0), ["0", "1", "1"] * 4),
    ],
    ids=lambda value: "",
)
def test_labels_of_every_kind_name_their_class(labels, names):
    data = _load({"train": (_X, labels)})
    assert _contents(data) == _expected(_X, names)
    assert data.class_names == tuple(sorted(set(names)))
    assert data.train.labels.dtype == torch.int64


def test_names_that_are_given_set_the_order_of_string_labels():
    texts = np.array(["cat", "ant", "eel"])[_Y]
    data = _load({"train": (_X, texts), "class_names": ["eel", "cat", "ant"]})
    assert data.class_names == ("eel", "cat", "ant")
    assert _contents(data) == _expected(_X, texts)
    for names in (np.array(["a", "b", "c"]), ("a", "b", "c"), [np.str_("a"), "b", "c"]):
        assert _load({"train": (_X, _Y), "class_names": names}).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (_Y + 1, "got the labels 1, 2, 3: subtract 1, or give names"),
        (_Y + 5, "got the labels 5, 6, 7: subtract 5"),
        (_Y * 1000, r"got the labels 0, 1000, 2000: numpy.unique\(labels, return_inverse=True\)"),
        (_Y * 10**7, "got the labels 0, 10000000, 20000000"),
        (_Y.astype(np.uint64) + np.uint64(2**63), "number them from 0"),
        (_Y + 0.5, r"got 0\.5 in train; round them or give names"),
        (np.where(_Y == 1, np.nan, _Y), "got nan in train"),
        (_Y - 1, "got the label -1 in train; number them from 0"),
        (_Y * 0, "two or more classes; every label is 0"),
        (_Y * 0 + 7, "two or more classes; every label is 7"),
        (["cat"] * _N, "two or more classes; every label is cat"),
        (np.eye(3)[_Y], r"got an array \[12, 3\] of labels; labels.argmax\(1\) makes numbers"),
        (np.stack([_Y, _Y], 1), r"got an array \[12, 2\] of labels"),
        (_Y + 1j, "labels of the type complex128"),
        ([0, "cat", 1] * 4, "labels of the types int, str"),
        ([0, None, 1] * 4, "labels of the types NoneType, int"),
        ([[0], [1, 2]] * 6, "that is no array"),
        (None, r"got an array \[\] of labels"),
        (iter(_Y), r"got an array \[\] of labels"),
        (_Y[:-1], r"got images \[12, 3, 6, 5\] and labels \[11\]"),
        (np.datetime64("2020-01-01") + _Y, "labels of the type datetime64"),
        ([10**30, 0, 1] * 4, "labels of the types int"),
    ],
    ids=lambda value: "",
)
def test_labels_that_are_no_classes_are_refused_with_the_rule(labels, told):
    with pytest.raises(ValueError, match=told) as error:
        _load({"train": (_X, labels)})
    assert len(_one_sentence(error)) < 400


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("abc", "got one text, 'abc'"),
        (["a", "a", "b"], "got 'a' more than once"),
        ({"a": 0, "b": 1, "c": 2}, "got a dict"),
        ({"a", "b", "c"}, "got a set"),
        (["a", "", "b"], "the name of class 1 is empty"),
        (["a", "b"], "2 class names for labels up to 2 in train"),
        (["a", "b", "c", "d"], r"these have none: d \(label 3\)"),
        (3, "got a int"),
    ],
)
def test_names_that_are_none_are_refused(names, told):
    with pytest.raises(ValueError, match=told) as error:
        _load({"train": (_X, _Y), "class_names": names})
    _one_sentence(error)


@pytest.mark.parametrize(
    ("test", "told"),
    [
        (["cat", "fox"], "test has labels that are no class: fox; classes are ant, cat, eel"),
        ([0, 1], "got names in train and numbers in test"),
    ],
)
def test_test_labels_that_no_training_image_has_are_refused(test, told):
    texts = np.array(["cat", "ant", "eel"])[_Y]
    with pytest.raises(ValueError, match=told):
        _load({"train": (_X, texts), "test": (_X[:2], test)})


# ---- images


@pytest.mark.parametrize(
    "images",
    [
        _X.astype(np.float32) / 7,
        _X.astype(np.float64) / 8,
        _X.astype(np.float16),
        _X.astype(np.int64) - 128,
        _X.astype(np.uint16) * 257,
        _X.astype(">u2"),
        _X.astype(">f8"),
        _X > 100,
        _X[:, :, ::-1],
        _X[:, ::-1, :, ::2],
        np.asfortranarray(_X),
        np.broadcast_to(_X[:, :1], _X.shape),
        _X.transpose(0, 1, 3, 2),
        _X.view(np.ma.MaskedArray),
    ],
    ids=lambda value: f"{value.dtype}{value.strides}",
)
def test_arrays_of_every_kind_keep_their_values(images):
    data = _load({"train": (images, _Y)})
    assert _contents(data) == _expected(np.asarray(images).astype(np.float64), _AS_TEXT)
    expected = torch.uint8 if images.dtype == np.uint8 else torch.float32
    assert data.train.images.dtype == expected
    assert data.train.images.is_contiguous()


def test_tensors_come_without_their_gradients():
    images = torch.rand(_N, 3, 6, 5, requires_grad=True)
    data = _load({"train": (images, torch.from_numpy(_Y))})
    assert not data.train.images.requires_grad
    assert _contents(data) == _expected(images.detach().numpy(), _AS_TEXT)
    assert _load({"train": (images.to(torch.bfloat16), _Y)}).train.images.dtype == torch.float32


def test_the_users_own_array_is_not_shared():
    mine = _X.copy()
    data = _load({"train": (mine, _Y)})
    before = data.train.images.clone()
    mine[:] = 0
    assert torch.equal(data.train.images, before)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (_X[:, 0], r"got \[12, 6, 5\]: images\[:, None\] adds a grey channel"),
        (np.zeros((12, 16, 16, 3)), r"got \[12, 16, 16, 3\], whose channels seem to come last"),
        (np.zeros((12, 28, 28, 1)), "whose channels seem to come last"),
        (np.zeros((12, 40, 30, 4)), "whose channels seem to come last"),
        (np.zeros((12, 3, 0, 5)), r"got \[12, 3, 0, 5\]"),
        (np.zeros((12, 48)), r"got \[12, 48\]"),
        (_X.astype(np.complex64), "got the type complex64: give its real and imaginary part"),
        (np.full((12, 1, 2, 2), np.nan), "finite float32 numbers"),
        (np.full((12, 1, 2, 2), 1e300), "finite float32 numbers"),
        ([_X[0], _X[1][:, :3]], r"one shape; got \(3, 3, 5\), \(3, 6, 5\): bring them to one"),
        (None, "real numbers; got the type object"),
        (["a.png"] * 12, "real numbers; got the type <U5"),
        (torch.zeros(12, 1, 2, 2).to_sparse(), "dense tensors"),
        (torch.zeros(12, 1, 2, 2, device="meta"), "meta"),
    ],
    ids=lambda value: "",
)
def test_images_of_another_form_are_refused_with_the_rule(images, told):
    labels = _Y[: len(images)] if images is not None else _Y
    with pytest.raises(ValueError, match=told) as error:
        _load({"train": (images, labels)})
    _one_sentence(error)


@pytest.mark.parametrize("shape", [(20, 24, 1), (9, 128, 1), (5, 4, 3), (64, 4, 3), (30, 2, 1)])
def test_a_last_axis_of_colours_is_channels_last(shape):
    """Issue 15: a grey image that is not square was read as many channels."""
    with pytest.raises(ValueError, match="channels seem to come last") as error:
        _load({"train": (_DRAWN.normal(size=(_N, *shape)), _Y)})
    _one_sentence(error)
    turned = _DRAWN.normal(size=(_N, shape[0], shape[2], shape[1]))
    assert _load({"train": (turned, _Y)}).image == turned.shape[1:]


@pytest.mark.parametrize("shape", [(4, 4, 3), (3, 32, 3), (64, 3, 3), (64, 1, 1), (64, 2, 4)])
def test_images_that_might_have_their_channels_last_are_warned_about(shape):
    data = _load({"train": (_DRAWN.normal(size=(_N, *shape)), _Y)})
    assert data.image == shape
    (warning,) = data.account.warnings
    assert f"read as {shape[0]} channels of {shape[1]} x {shape[2]} pixels" in warning


@pytest.mark.parametrize("shape", [(224, 6, 2), (3, 4, 4), (64, 4, 4), (9, 1, 128), (1, 1, 1)])
def test_images_with_their_channels_first_are_not_warned_about(shape):
    data = _load({"train": (_DRAWN.normal(size=(_N, *shape)), _Y)})
    assert (data.image, data.account.warnings) == (shape, ())


_FLOAT = _X.astype(np.float32)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"train": _FLOAT, "val": _X}, "got float32 in train, uint8 in val: bring them"),
        ({"train": _X, "val": _FLOAT}, "got uint8 in train, float32 in val"),
        ({"train": _X, "test": _X > 9}, "got uint8 in train, bool in test"),
        ({"train": _X.astype(np.uint16), "test": _X}, "got uint16 in train, uint8 in test"),
        ({"train": [_X[0], *_FLOAT[1:]]}, "train: .*got uint8 in image 0, float32 in image 1"),
        ({"train": [*_X[:5], *torch.from_numpy(_FLOAT[5:])]}, "float32 in image 5"),
        ({"train": [Image.new("RGB", (5, 6)), *_FLOAT[1:]]}, "got uint8 in image 0, float32"),
    ],
    ids=lambda value: "",
)
def test_pixels_of_several_types_are_refused(parts, told):
    """Issue 15: uint8 counts to 255, floats are as they are, and one mean normalised both."""
    with pytest.raises(ValueError, match=told) as error:
        _load({part: (images, _Y) for part, images in parts.items()})
    _one_sentence(error)
    if len(parts) == 1:
        with pytest.raises(ValueError, match=told.removeprefix("train: ")):
            _load({"train": list(zip(parts["train"], _Y.tolist(), strict=True))})


def test_floats_of_any_width_are_one_type():
    data = _load({"train": (_FLOAT.astype(np.float64), _Y), "val": (torch.from_numpy(_FLOAT), _Y)})
    assert torch.equal(data.train.images, data.validation.images)


def test_masked_values_are_refused_as_missing():
    """Issue 15: the values under the mask were read."""
    images = np.ma.masked_array(_X, _X > 250)
    labels = np.ma.masked_array(_Y, _Y == 1)
    single = [np.ma.masked, *_Y[1:].tolist()]
    for part in [
        (images, _Y),
        (list(images), _Y),
        list(zip(images, _Y.tolist(), strict=True)),
        (_X, labels),
        (_X, single),
        list(zip(_X, single, strict=True)),
    ]:
        with pytest.raises(ValueError, match="no missing values; got a masked array") as error:
            _load({"train": part})
        _one_sentence(error)


def test_names_in_bytes_are_texts():
    names = [b"cat", "dog", np.bytes_("é".encode())]
    for given in (names, np.array([b"cat", b"dog", "é".encode()])):
        assert _load({"train": (_X, _Y), "class_names": given}).class_names == ("cat", "dog", "é")


# ---- containers


class _Items:
    def __init__(self, item, count=_N):
        self.item, self.count = item, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.item(index)


@pytest.mark.parametrize(
    "part",
    [
        TensorDataset(torch.from_numpy(_X), torch.from_numpy(_Y)),
        _Items(lambda i: (_X[i], _Y[i])),
        _Items(lambda i: [torch.from_numpy(_X[i]), torch.tensor([_Y[i]])]),
        _Items(lambda i: (_X[i], "012"[_Y[i]])),
        _Items(lambda i: (Image.fromarray(_X[i].transpose(1, 2, 0)), int(_Y[i]))),
        list(zip(_X, _Y, strict=True)),
        tuple(zip(_X, _Y.tolist(), strict=True)),
        [list(_X), _Y.tolist()],
        [[Image.fromarray(x.transpose(1, 2, 0)) for x in _X], _Y],
    ],
    ids=lambda value: type(value).__name__,
)
def test_containers_of_every_kind_give_their_pairs(part):
    data = _load({"train": part})
    assert _contents(data) == _expected(_X, _AS_TEXT)
    assert data.train.images.dtype == torch.uint8


def test_two_pairs_are_two_images_not_images_and_labels():
    made = {"train": [(_X[0], 0), (_X[1], 1)] * 3, "test": [(_X[0], 0), (_X[1], 1)]}
    data = _load(made, validation=2)
    assert np.array_equal(data.test.images.numpy(), _X[:2])
    assert data.test.labels.tolist() == [0, 1]


def test_pictures_are_read_as_files_are():
    rgba = np.concatenate([_X[0].transpose(1, 2, 0), np.zeros((6, 5, 1), np.uint8)], -1)
    part = _Items(lambda i: (Image.fromarray(rgba if i % 2 else rgba[..., :3]), i % 2))
    data = _load({"train": part})
    assert (data.train.images[data.train.labels == 1] == 255).all()
    assert np.array_equal(data.train.images[data.train.labels == 0][0].numpy(), _X[0])


class _Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(_X, _Y, strict=True))


def _raises(index):
    raise KeyError("no such file")


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ((pair for pair in zip(_X, _Y, strict=True)), "gone through once only: return a list"),
        (_Stream(), "got a _Stream"),
        (DataLoader(TensorDataset(torch.zeros(4, 1, 2, 2))), "return the loader's dataset"),
        (_Items(lambda i: (_X[i], _Y[i], "path")), "got a tuple of 3 as item 0"),
        (_Items(lambda i: {"image": _X[i], "label": _Y[i]}), "got a dict of 2 as item 0"),
        (_Items(lambda i: _X[i]), "got a ndarray as item 0"),
        (_Items(_raises), "item 0 raised KeyError: 'no such file'"),
        (_Items(lambda i: (_X[i], _Y[i]), count=0), "a part holds an image or is left out"),
        (_Items(lambda i: (_X[i][:, : 3 + i % 2], _Y[i])), "all images have one shape"),
        (_Items(lambda i: (_X[i], _Y[i] + 0.5)), r"got 0\.5 in train"),
        ({"images": _X, "labels": _Y}, "got a dict"),
        ("photos", "got a str"),
        (_X, "item 0"),
        ((_X, _Y, _Y), "item"),
        (7, "got a int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_containers_of_another_form_are_refused_with_the_rule(part, told):
    with pytest.raises(ValueError, match=told) as error:
        _load({"train": part})
    _one_sentence(error)


def test_a_data_set_may_fill_the_same_array_for_each_item():
    buffer = np.zeros_like(_X[0])

    def filled(index):
        buffer[:] = _X[index]
        return buffer, _Y[index]

    assert _contents(_load({"train": _Items(filled)})) == _expected(_X, _AS_TEXT)


def test_random_data_are_refused_and_pointed_to_augment():
    drawn = np.random.default_rng(1)

    def flipped(index):
        return _X[index][..., :: drawn.choice([-1, 1])], _Y[index]

    with pytest.raises(ValueError, match=r"two reads of item \d+ differ.*augment") as error:
        _load({"train": _Items(flipped)})
    _one_sentence(error)
    with pytest.raises(ValueError, match="two reads"):
        _load({"train": _Items(lambda i: (_X[i], int(drawn.integers(3))))})
    nan = np.where(_X > 250, np.nan, _X)  # which no read equals, and which is another mistake
    with pytest.raises(ValueError, match="finite"):
        _load({"train": _Items(lambda i: (nan[i], _Y[i]))})


# ---- keys


@pytest.mark.parametrize("key", ["val", "valid", "validation"])
def test_a_validation_part_is_the_validation_set(key):
    data = _load({"train": (_X, _Y), key: (_X[:4], _Y[:4])}, validation=0.5)
    assert len(data.train) == _N
    assert np.array_equal(data.validation.images.numpy(), _X[:4])
    assert data.validation.labels.tolist() == _Y[:4].tolist()
    assert data.account.validation_from == f"'{key}'"
    # The statistics are those of the training images.
    mean = (_X / 255).mean((0, 2, 3))
    np.testing.assert_allclose(data.validation.mean.flatten(), mean, rtol=1e-6)


@pytest.mark.parametrize("key", ["test", "testing"])
def test_a_test_part_is_the_test_set(key):
    data = _load({"train": (_X, _Y), key: (_X[:4], _Y[:4]), "valid": None})
    assert np.array_equal(data.test.images.numpy(), _X[:4])
    assert data.account.test_from == f"'{key}'"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"extra": (_X, _Y)}, "got 'extra', which nothing would read"),
        ({"classes": ["a", "b", "c"]}, "got 'classes'"),
        ({3: (_X, _Y)}, "got 3"),
        ({"val": (_X, _Y), "validation": (_X, _Y)}, "'val' and 'validation' are one part"),
        ({"test": (_X[:0], _Y[:0])}, "test: a part holds an image or is left out"),
        ({"test": (_X[:, :1], _Y)}, "images of all parts have one shape"),
    ],
)
def test_keys_that_are_none_are_refused_by_name(more, told):
    with pytest.raises(ValueError, match=told) as error:
        _load({"train": (_X, _Y), **more})
    _one_sentence(error)
