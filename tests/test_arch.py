from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planter.arch import Architecture

WIDTHS = st.dictionaries(st.sampled_from(["conv1", "conv2", "fc1"]), st.integers(1, 9), min_size=1)
VALUES = st.recursive(
    st.integers(-5, 5) | st.text(max_size=3) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=4,
)
ARCHITECTURES = st.builds(
    Architecture,
    st.sampled_from(["toy", "vgg16"]),
    WIDTHS,
    st.dictionaries(st.sampled_from(["image", "classes", "x"]), VALUES, max_size=3),
    st.dictionaries(
        st.sampled_from(["cut1", "cut2"]),
        st.dictionaries(st.sampled_from(["stride", "before"]), VALUES, max_size=2),
        max_size=2,
    ),
)


@given(ARCHITECTURES)
def test_json_round_trip_gives_an_equal_architecture_and_key(arch: Architecture) -> None:
    again = Architecture.from_dict(json.loads(json.dumps(arch.to_dict())))
    assert again == arch
    assert again.key() == arch.key()
    assert hash(again) == hash(arch)


@given(ARCHITECTURES, ARCHITECTURES)
def test_keys_are_equal_exactly_for_equal_architectures(a: Architecture, b: Architecture) -> None:
    assert (a.key() == b.key()) == (a == b)


def test_key_does_not_depend_on_the_order_of_names() -> None:
    a = Architecture("toy", {"conv1": 1, "conv2": 2}, {"classes": 3, "image": (1, 4, 4)})
    b = Architecture("toy", {"conv2": 2, "conv1": 1}, {"image": [1, 4, 4], "classes": 3})
    assert a.key() == b.key()


@given(ARCHITECTURES, st.integers(1, 5), st.data())
def test_widen_changes_one_width_and_nothing_else(
    arch: Architecture, channels: int, data: st.DataObject
) -> None:
    before = json.loads(json.dumps(arch.to_dict()))
    name = data.draw(st.sampled_from(sorted(arch.widths)))
    after = arch.widen(name, channels).to_dict()
    assert arch.to_dict() == before, "the original has changed"
    assert after["widths"].pop(name) == before["widths"].pop(name) + channels
    assert after == before


def test_architecture_does_not_share_what_it_was_given() -> None:
    widths, spec = {"conv1": 1}, {"cut1": {"stride": 2}}
    arch = Architecture("toy", widths, {}, spec)
    widths["conv1"] = 5
    spec["cut1"]["stride"] = 5
    assert arch.widths["conv1"] == 1
    assert arch.pipelines["cut1"]["stride"] == 2


def test_widening_an_unknown_width_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'conv9' is not a width; widths are conv1, fc1"):
        Architecture("toy", {"conv1": 1, "fc1": 2}).widen("conv9", 1)


@pytest.mark.parametrize("width", [0, -1, 1.5, "8", True, None])
def test_widths_are_whole_numbers_from_one(width: object) -> None:
    with pytest.raises(ValueError, match="conv1 must be a whole number >= 1"):
        Architecture("toy", {"conv1": width})


def test_no_pipeline_may_be_called_base() -> None:
    with pytest.raises(ValueError, match="'base'"):
        Architecture("toy", {}, {}, {"base": {"stride": 2}})
