"""Data sets: every source's pixels and labels exactly, splits, noise and statistics."""

import math
import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from planter.data import load_data

_OWN = "planter_tests_own_data:make"


def _own(made, **settings):
    """`load_data` of a function of one's own that returns `made`."""
    module = types.ModuleType("planter_tests_own_data")
    module.make = lambda: made
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        return load_data(_OWN, **settings)


def _numbered(labels):
    """Images whose one pixel is their index: what a split did to each can be read off it."""
    return torch.arange(len(labels), dtype=torch.float32).reshape(-1, 1, 1, 1), torch.tensor(labels)


def _indices(split):
    return split.images.flatten().long().tolist()


def _contents(*splits):
    """Images with labels as a multiset, whatever order a split has put them in."""
    return Counter(
        (image.numpy().tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )


def _pairs(images, labels):
    return Counter(
        (np.ascontiguousarray(i).tobytes(), int(n)) for i, n in zip(images, labels, strict=True)
    )


def _random(count, classes, *shape, seed):
    """uint8 images `[count, *shape]` and labels that name every class."""
    drawn = np.random.default_rng(seed)
    images = drawn.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count) % classes


# ---- digits


def test_digits_are_scikit_learns_images_and_labels_each_once():
    data = load_data("digits")
    digits = load_digits()
    # 17 grey levels 0..16 become 0..255.
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    assert _contents(data.train, data.validation, data.test) == _pairs(images, digits.target)
    assert data.image == (1, 8, 8)
    assert data.class_names == tuple("0123456789")
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64


def test_digits_parts_have_the_sizes_asked_for():
    data = load_data("digits", validation=0.25)
    assert len(data.test) == 1797 // 5
    assert len(data.validation) == round(0.25 * (1797 - 359))
    assert len(data.train) + len(data.validation) + len(data.test) == 1797


def test_digits_test_part_is_the_same_for_every_seed_and_setting():
    first = load_data("digits", seed=0)
    other = load_data("digits", seed=99, validation=0.4, subset=300, label_noise=0.5)
    assert torch.equal(first.test.images, other.test.images)
    assert torch.equal(first.test.labels, other.test.labels)


def test_digits_test_part_holds_each_class_in_proportion():
    counts = np.bincount(load_digits().target)
    test = np.bincount(load_data("digits").test.labels.numpy())
    assert np.all(np.abs(test - 359 * counts / 1797) < 1)


# ---- splits

_labels = (
    st.lists(st.integers(0, 4), min_size=8, max_size=60)
    .filter(lambda labels: len(set(labels)) > 1)
    .map(lambda labels: np.unique(labels, return_inverse=True)[1].tolist())
)


def _in_proportion(chosen, among, labels):
    total, all_counts = len(among), Counter(labels[i] for i in among)
    counts = Counter(labels[i] for i in chosen)
    return all(abs(counts[c] - len(chosen) * n / total) < 1 for c, n in all_counts.items())


@settings(deadline=None, max_examples=60)
@given(labels=_labels, share=st.floats(0.1, 0.9), seed=st.integers(0, 2**31))
def test_a_split_is_disjoint_complete_and_stratified_and_leaves_each_class_an_image(
    labels, share, seed
):
    count, sizes = round(share * len(labels)), Counter(labels)
    made = {"train": _numbered(labels)}
    if count > len(labels) - len(sizes) or count < 1:
        with pytest.raises(ValueError, match="validation"):
            _own(made, validation=share, seed=seed)
        return
    data = _own(made, validation=share, seed=seed)
    train, validation = _indices(data.train), _indices(data.validation)
    assert sorted(train + validation) == list(range(len(labels)))
    assert len(validation) == count
    assert set(data.train.labels.tolist()) == set(sizes)
    if all(math.ceil(count * n / len(labels)) < n for n in sizes.values()):
        assert _in_proportion(validation, range(len(labels)), labels)
    assert [labels[i] for i in train] == data.train.labels.tolist()
    assert [labels[i] for i in validation] == data.validation.labels.tolist()
    assert data.test is None


@settings(deadline=None, max_examples=60)
@given(labels=_labels, part=st.data(), seed=st.integers(0, 2**31))
def test_a_subset_is_stratified_and_is_what_train_and_validation_share(labels, part, seed):
    sizes = Counter(labels)
    count = part.draw(st.integers(len(sizes) + 1, len(labels)))
    data = _own({"train": _numbered(labels)}, subset=count, validation=1, seed=seed)
    kept = _indices(data.train) + _indices(data.validation)
    assert len(kept) == len(set(kept)) == count
    assert len(data.validation) == 1
    assert set(data.train.labels.tolist()) == set(sizes)
    if all(count * n >= len(labels) for n in sizes.values()):
        assert _in_proportion(kept, range(len(labels)), labels)


@pytest.mark.parametrize(
    ("settings", "fingerprint", "mean"),
    [
        ({}, "01abe649fc83aeee", 0.3055627644062042),
        ({"seed": 7}, "548fd1db3888a999", 0.30578887462615967),
        ({"subset": 160, "validation": 0.25}, "d7751ef42308c9c9", 0.3104375898838043),
        (
            {"subset": 0.5, "validation": 100, "label_noise": 0.3, "seed": 3},
            "fdf93379b44a1511",
            0.3052264451980591,
        ),
        ({"resize": 16, "subset": 240}, "6b0460b38e127615", 0.3087943196296692),
    ],
    ids=str,
)
def test_splits_are_those_of_earlier_versions_bit_for_bit(settings, fingerprint, mean):
    """Written down before draws left each class an image (issue 15): old runs go on."""
    data = load_data("digits", **settings)
    assert data.fingerprint() == fingerprint
    assert data.train.mean.item() == mean


_TINY = [0] * 30 + [1] * 30 + [2] + [3] * 2


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3, 0.5, 0.6, 0.9])
def test_the_only_image_of_a_class_is_trained_on(share):
    for seed in range(20):
        data = _own({"train": _numbered(_TINY)}, validation=share, seed=seed)
        assert len(data.validation) == round(share * 63)
        trained = data.train.labels.bincount(minlength=4).tolist()
        assert trained[2] == 1
        assert trained[3] >= 1


def test_what_a_tiny_class_cannot_give_others_give():
    # Shares of 60 of 70 images: 51.4, then 0.86 of each of ten single images.
    labels = [0] * 60 + list(range(1, 11))
    data = _own({"train": _numbered(labels)}, validation=59)
    assert data.validation.labels.bincount(minlength=11).tolist() == [59] + [0] * 10
    with pytest.raises(ValueError, match=r"validation 60.*for 1, 2, 3.*at most 59 images"):
        _own({"train": _numbered(labels)}, validation=60)


def test_a_subset_holds_each_class_or_is_refused_with_the_least_it_needs():
    for seed in range(20):
        data = _own({"train": _numbered(_TINY)}, subset=10, validation=1, seed=seed)
        assert set(data.train.labels.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"subset 3, .*at least 4 images"):
        _own({"train": _numbered(_TINY)}, subset=3)


def test_a_class_without_a_validation_image_is_warned_about():
    account = _own({"train": _numbered(_TINY)}, validation=0.2).account
    (warning,) = account.warnings
    assert "no validation image of 2" in warning
    assert account.validation[2] == 0


# ---- a test part set aside


def test_a_test_part_is_set_aside_stratified_and_the_same_for_every_seed():
    labels = [0, 1, 2, 3] * 25
    made = {"train": _numbered(labels), "class_names": ["a", "b", "c", "d"]}
    tests = []
    for seed, others in [(0, {}), (5, {"validation": 0.4}), (9, {"subset": 40})]:
        data = _own(made, test=0.2, seed=seed, **others)
        tests.append(_indices(data.test))
        assert not set(tests[-1]) & set(_indices(data.train) + _indices(data.validation))
        assert Counter(data.test.labels.tolist()) == {0: 5, 1: 5, 2: 5, 3: 5}
    assert tests[0] == tests[1] == tests[2]
    assert len(_own(made, test=12).test) == 12
    whole = _own(made, test=0.2, validation=16)
    assert sorted(
        _indices(whole.train) + _indices(whole.validation) + _indices(whole.test)
    ) == list(range(100))


def test_a_test_part_leaves_each_class_an_image_to_train_on():
    data = _own({"train": _numbered(_TINY)}, test=0.5, validation=0.2)
    assert set(data.train.labels.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"test 62, .*leaves no training image for 0, 2, 3"):
        _own({"train": _numbered(_TINY)}, test=62)


def test_a_test_part_beside_one_of_the_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"test 0\.2: the data have a test part of 359 images"):
        load_data("digits", test=0.2)
    made = {"train": _numbered([0, 1] * 20), "test": _numbered([0, 1])}
    with pytest.raises(ValueError, match="test part of 2 images; leave test out"):
        _own(made, test=0.2)


def test_parts_are_counts_or_shares():
    made = {"train": _numbered([0, 1] * 100)}
    for subset, validation, kept, held in [
        (None, 30, 200, 30),
        (None, 0.1, 200, 20),
        (50, 10, 50, 10),
        (0.5, 0.1, 100, 10),
        (200, 198, 200, 198),
    ]:
        data = _own(made, subset=subset, validation=validation)
        assert len(data.validation) == held
        assert len(data.train) == kept - held


@pytest.mark.parametrize(
    "parts",
    [
        {"validation": 0},
        {"validation": 199},
        {"validation": 200},
        {"validation": 201},
        {"validation": -1},
        {"validation": 1e-4},
        {"validation": 0.999},
        {"validation": math.nan},
        {"validation": math.inf},
        {"validation": "0.1"},
        {"validation": True},
        {"test": 0},
        {"test": 199},
        {"test": 1.5},
        {"test": math.nan},
        {"subset": 0},
        {"subset": 201},
        {"subset": -0.5},
        {"subset": 1},
        {"subset": 150.5},
        {"validation": 20.5},
    ],
    ids=str,
)
def test_a_part_that_leaves_a_split_empty_or_is_no_part_is_refused(parts):
    with pytest.raises(ValueError, match=r"."):
        _own({"train": _numbered([0, 1] * 100)}, **parts)


def test_one_seed_makes_one_split_and_another_seed_another():
    def drawn(seed):
        data = load_data("digits", subset=400, label_noise=0.3, seed=seed)
        return [data.train.images, data.train.labels, data.validation.images]

    first, again, other = drawn(5), drawn(5), drawn(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[2], other[2])


def test_a_split_takes_nothing_from_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_data("digits", subset=100, label_noise=0.5)
    assert torch.equal(torch.get_rng_state(), before)


# ---- label noise


@settings(deadline=None, max_examples=40)
@given(
    share=st.floats(0, 1),
    classes=st.integers(2, 6),
    count=st.integers(12, 60),
    seed=st.integers(0, 2**31),
)
def test_label_noise_changes_the_share_asked_for_to_other_classes(share, classes, count, seed):
    labels = [i % classes for i in range(count)]
    data = _own({"train": _numbered(labels)}, label_noise=share, validation=0.3, seed=seed)
    old = [labels[i] for i in _indices(data.train)]
    new = data.train.labels.tolist()
    changed = sum(a != b for a, b in zip(old, new, strict=True))
    assert abs(changed - share * len(new)) <= 0.5
    assert set(new) <= set(range(classes))
    assert [labels[i] for i in _indices(data.validation)] == data.validation.labels.tolist()


def test_label_noise_leaves_test_labels_alone():
    made = {"train": _numbered([0, 1, 2] * 20), "test": _numbered([2, 1, 0] * 5)}
    data = _own(made, label_noise=1.0)
    assert data.test.labels.tolist() == [2, 1, 0] * 5


def test_label_noise_reaches_every_other_class_evenly():
    data = _own({"train": _numbered([0] * 8000 + [1, 2, 3, 4])}, label_noise=1.0)
    drawn = Counter(data.train.labels[data.train.images.flatten() < 8000].tolist())
    # About 1,800 each; six standard deviations of a binomial are 220.
    assert set(drawn) == {1, 2, 3, 4}
    assert max(drawn.values()) - min(drawn.values()) < 440


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_label_noise_that_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="label_noise"):
        _own({"train": _numbered([0, 1] * 20)}, label_noise=share)


# ---- statistics, normalisation, resize, fingerprint


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_statistics_are_numpys_of_the_training_images_alone(kind):
    # More images than one chunk of the running sums; far values that float32 sums would blur.
    images = np.random.default_rng(0).integers(200, 256, (9000, 3, 3, 2)).astype(kind)
    images[:, 1] //= 3
    if kind == "float32":
        images = images * np.float32(40)
    data = _own({"train": (images, np.arange(9000) % 5)}, validation=0.5)
    scale = 255 if kind == "uint8" else 1
    train = data.train.images.numpy().astype(np.float64) / scale
    # Computed in double precision, kept in single: half a unit in the last place, 6e-8.
    np.testing.assert_allclose(data.train.mean.flatten(), train.mean((0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(data.train.std.flatten(), train.std((0, 2, 3)), rtol=1e-7)
    for split in (data.validation,):
        assert torch.equal(split.mean, data.train.mean)
        assert torch.equal(split.std, data.train.std)


def test_normalised_training_images_have_mean_zero_and_deviation_one():
    data = load_data("digits")
    raw = data.validation.images.numpy() / 255
    expected = (raw - float(data.train.mean)) / float(data.train.std)
    made = data.validation.normalise(data.validation.images)
    np.testing.assert_allclose(made, expected, atol=1e-6)  # a few roundings of values below 3
    normalised = data.train.normalise(data.train.images).double()
    assert abs(normalised.mean()) < 1e-6
    assert abs(normalised.std(correction=0) - 1) < 1e-6


def test_a_constant_channel_is_centred_and_not_divided_by_zero():
    images = torch.full((20, 2, 2, 2), 51, dtype=torch.uint8)
    images[:, 1] = torch.arange(20, dtype=torch.uint8)[:, None, None]
    data = _own({"train": (images, torch.arange(20) % 2)})
    assert float(data.train.mean[0]) == pytest.approx(0.2, rel=1e-7)
    assert float(data.train.std[0]) == 1
    assert torch.equal(data.train.normalise(data.train.images)[:, 0], torch.zeros(18, 2, 2))


def test_resize_brings_every_part_to_the_size_and_keeps_flat_images_flat():
    level = np.arange(40, dtype=np.uint8) * 6
    images = np.broadcast_to(level[:, None, None, None], (40, 3, 7, 11))
    made = {"train": (images.copy(), np.arange(40) % 2), "test": (images[:4].copy(), [0, 1, 0, 1])}
    data = _own(made, resize=5)
    assert data.image == (3, 5, 5)
    expected = np.broadcast_to(level[:, None, None, None], (40, 3, 5, 5))
    assert _contents(data.train, data.validation) == _pairs(expected, np.arange(40) % 2)
    assert np.array_equal(data.test.images.numpy(), expected[:4])


def test_resize_to_half_is_an_antialiased_mean():
    """On a linear ramp every symmetric filter gives the ramp's value at the new pixel's centre."""
    ramp = np.tile(np.arange(16, dtype=np.float32), (16, 1))
    images = np.broadcast_to(ramp, (10, 1, 16, 16)).copy()
    data = _own({"train": (images, np.arange(10) % 2)}, resize=8)
    inner = data.train.images[0, 0, :, 1:-1]
    expected = np.tile(2 * np.arange(8, dtype=np.float32) + 0.5, (8, 1))[:, 1:-1]
    np.testing.assert_allclose(inner, expected, atol=1e-5)
    # One bright pixel in sixteen, where a filter without antialiasing never looks.
    dots = np.zeros((10, 1, 32, 32), dtype=np.float32)
    dots[:, :, ::4, ::4] = 16
    small = _own({"train": (dots, np.arange(10) % 2)}, resize=8)
    np.testing.assert_allclose(small.train.images[0, 0, 1:-1, 1:-1], 1, atol=1e-5)


def test_the_fingerprint_sees_every_pixel_and_every_label():
    images, labels = _random(30, 3, 1, 4, 4, seed=0)

    def fingerprint(images, labels):
        return _own({"train": (images.copy(), labels.copy())}, validation=6).fingerprint()

    first = fingerprint(images, labels)
    assert fingerprint(images, labels) == first
    assert len(first) == 16
    assert int(first, 16) >= 0
    prints = {first}
    for i in range(30):
        changed = images.copy()
        changed[i, 0, i % 4, 3] ^= 1
        prints.add(fingerprint(changed, labels))
    assert len(prints) == 31
    swapped = labels.copy()
    swapped[[0, 1]] = labels[[1, 0]]
    assert fingerprint(images, swapped) not in prints


def test_the_fingerprint_does_not_depend_on_the_test_part():
    made = {"train": _numbered([0, 1] * 20)}
    with_test = {**made, "test": _numbered([1, 0])}
    assert _own(made).fingerprint() == _own(with_test).fingerprint()


def test_data_moves_to_a_device_whole():
    data = load_data("digits").to("meta")
    for split in (data.train, data.validation, data.test):
        tensors = (split.images, split.labels, split.mean, split.std)
        assert {tensor.device.type for tensor in tensors} == {"meta"}


# ---- a function of one's own


@pytest.mark.parametrize("form", ["tensors", "numpy", "lists", "dataset"])
def test_own_data_come_through_in_every_form(form):
    train, test = _random(24, 3, 2, 4, 5, seed=0), _random(6, 3, 2, 4, 5, seed=1)

    def shaped(part):
        images, labels = part
        tensors = torch.from_numpy(images), torch.from_numpy(labels)
        return {
            "tensors": tensors,
            "numpy": part,
            "lists": [images, labels.tolist()],
            "dataset": TensorDataset(*tensors),
        }[form]

    data = _own({"train": shaped(train), "test": shaped(test)}, validation=6)
    assert _contents(data.train, data.validation) == _pairs(*train)
    assert np.array_equal(data.test.images.numpy(), test[0])
    assert np.array_equal(data.test.labels.numpy(), test[1])
    assert data.train.images.dtype == torch.uint8
    assert data.image == (2, 4, 5)
    assert data.class_names == ("0", "1", "2")


def test_own_floats_stay_as_they_are():
    images = np.random.default_rng(0).normal(size=(20, 1, 3, 3))
    data = _own({"train": (images, np.arange(20) % 2)}, validation=4)
    assert data.train.images.dtype == torch.float32
    assert _contents(data.train, data.validation) == _pairs(
        images.astype(np.float32), np.arange(20) % 2
    )


def test_own_class_names_are_kept_and_must_be_enough():
    made = {"train": _numbered([0, 1, 2] * 5), "class_names": ["a", "b", "c"]}
    assert _own(made).class_names == ("a", "b", "c")
    with pytest.raises(ValueError, match="2 class names for labels up to 2"):
        _own({**made, "class_names": ["a", "b"]})


def test_a_class_without_a_training_image_is_refused_by_name():
    with pytest.raises(ValueError, match="test has the label 4, which no training image has"):
        _own({"train": _numbered([0, 1] * 5), "test": _numbered([4])})
    with pytest.raises(ValueError, match=r"these have none: never seen \(label 2\)"):
        _own({"train": _numbered([0, 1] * 5), "class_names": ["a", "b", "never seen"]})


_GOOD = (torch.zeros(8, 1, 2, 2), torch.arange(8) % 2)


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (None, "NoneType"),
        (_GOOD, "tuple"),
        ({"test": _GOOD}, "dict"),
        ({"train": None}, "train"),
        ({"train": None, "test": _GOOD}, "train"),
        ({"train": 3}, "int"),
        ({"train": (_GOOD[0], _GOOD[1], _GOOD[1])}, "train"),
        ({"train": (_GOOD[0][:, 0], _GOOD[1])}, r"\[8, 2, 2\]"),
        ({"train": (_GOOD[0], _GOOD[1][:5])}, r"\[5\]"),
        ({"train": (_GOOD[0], torch.eye(8))}, r"\[8, 8\]"),
        ({"train": (_GOOD[0][:0], _GOOD[1][:0])}, r"\[0\]"),
        ({"train": (_GOOD[0], _GOOD[1] - 1)}, "label -1"),
        ({"train": _GOOD, "test": (_GOOD[0], -_GOOD[1])}, "label -1"),
        ({"train": _GOOD, "test": (torch.zeros(8, 1, 3, 3), _GOOD[1])}, "3, 3"),
        ({"train": _GOOD, "test": (torch.zeros(8, 3, 2, 2), _GOOD[1])}, "3, 2, 2"),
        ({"train": [(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 3, 3), 1), _GOOD]}, "train"),
        ({"train": (_GOOD[0], torch.zeros(8))}, "two"),
    ],
    ids=lambda value: None if isinstance(value, str) else "made",
)
def test_own_data_of_another_form_are_refused_with_the_rule(made, shown):
    with pytest.raises(ValueError, match=shown) as caught:
        _own(made)
    assert _OWN in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("no_such_pkg_of_mine:make", "cannot import 'no_such_pkg_of_mine'"),
        ("planter.data:no_such_function", "'planter.data' has no 'no_such_function'"),
        ("math:", "'math' has no ''"),
        (":make", "':make'"),
        (".mine:make", r"'\.mine:make'"),
        ("./mine.py:make", r"'\./mine\.py:make'"),
        ("math:pi", "math:pi"),
    ],
)
def test_a_function_that_is_not_there_is_named(name, shown):
    with pytest.raises(ValueError, match=shown):
        load_data(name)


# ---- the data of a run


def test_a_run_folder_gives_the_data_of_its_study(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    kept = {"name": "digits", "subset": 300, "validation": 0.3, "label_noise": 0.2}
    (run / "resolved.yaml").write_text(yaml.safe_dump({"name": "x", "seed": 11, "data": kept}))
    from_run, direct = load_data(run), load_data(**kept, seed=11)
    other_seed = load_data(**kept, seed=12)
    assert len(from_run.validation) == 90
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(from_run, part).images, getattr(direct, part).images)
        assert torch.equal(getattr(from_run, part).labels, getattr(direct, part).labels)
    assert not torch.equal(from_run.train.images, other_seed.train.images)
    assert load_data(str(run)).fingerprint() == from_run.fingerprint()


@settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**31 - 1), share=st.floats(0.05, 0.5))
def test_a_run_folder_draws_from_the_seed_written_in_it(tmp_path, seed, share):
    text = f"seed: {seed}\ndata:\n  name: digits\n  validation: {share!r}\n"
    (tmp_path / "resolved.yaml").write_text(text)
    expected = load_data("digits", validation=share, seed=seed)
    assert torch.equal(load_data(tmp_path).validation.images, expected.validation.images)
