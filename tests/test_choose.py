"""Choosing on a front against the definitions, by brute force, and against plane geometry."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planter.front.choose import (
    NothingWithinError,
    best_under,
    chosen,
    knee,
    macs_of,
    neighbours,
    on_front,
)


def _document(points, off=(), chance=-1.0):
    """pareto.json of points (macs, accuracy); those in `off` are not on the front."""
    rows = [
        {"id": f"s{i:04}/base", "macs": macs, "accuracy": accuracy, "on_front": True}
        for i, (macs, accuracy) in enumerate(points)
    ]
    rows += [
        {"id": f"b{i}/base", "macs": macs, "accuracy": accuracy, "on_front": False}
        for i, (macs, accuracy) in enumerate(off)
    ]
    return {
        "study": "small",
        "objectives": ["accuracy", "macs"],
        "points": rows,
        "reference_point": [chance, 10**9],
    }


@st.composite
def _fronts(draw):
    """Fronts of up to six points, in any order: accuracy rises with macs; some points twice."""
    macs = sorted(draw(st.sets(st.integers(1, 10**9), min_size=1, max_size=6)))
    accuracies = sorted(draw(st.sets(st.integers(0, 1000), min_size=len(macs), max_size=len(macs))))
    points = [(m, a / 1000) for m, a in zip(macs, accuracies, strict=True)]
    points += draw(st.lists(st.sampled_from(points), max_size=2))
    return draw(st.permutations(points))


@given(points=_fronts(), bound=st.integers(1, 10**9))
def test_under_a_bound_on_macs_nothing_is_more_accurate(points, bound):
    front = _document(points, off=[(1, 1.0)])
    small = [accuracy for macs, accuracy in points if macs <= bound]
    if small:
        found = best_under(front, max_macs=bound)
        assert found["macs"] <= bound
        assert found["accuracy"] == max(small)
        assert found["on_front"]
    else:
        with pytest.raises(NothingWithinError) as caught:
            best_under(front, max_macs=bound)
        assert caught.value.nearest["macs"] == min(macs for macs, _ in points)


@given(points=_fronts(), bound=st.integers(0, 1000))
def test_above_a_bound_on_accuracy_nothing_is_smaller(points, bound):
    front = _document(points)
    good = [macs for macs, accuracy in points if accuracy >= bound / 1000]
    if good:
        found = best_under(front, min_accuracy=bound / 1000)
        assert found["accuracy"] >= bound / 1000
        assert found["macs"] == min(good)
    else:
        with pytest.raises(NothingWithinError) as caught:
            best_under(front, min_accuracy=bound / 1000)
        assert caught.value.nearest["accuracy"] == max(accuracy for _, accuracy in points)


def test_both_bounds_hold_together():
    front = _document([(100, 0.5), (1000, 0.7), (10_000, 0.9)])
    assert best_under(front, max_macs=5000, min_accuracy=0.4)["macs"] == 1000
    with pytest.raises(NothingWithinError) as caught:
        best_under(front, max_macs=5000, min_accuracy=0.8)
    assert caught.value.nearest["macs"] == 1000
    told = str(caught.value)
    assert "at most 5,000 macs and an accuracy of 80.00%" in told
    assert "s0001/base: 70.00%, 1,000 macs" in told


@pytest.mark.parametrize("bounds", [{}, {"min_accuracy": 90}, {"min_accuracy": -0.1}])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match=r"needs a bound|between 0 and 1"):
        best_under(_document([(100, 0.5)]), **bounds)


def test_an_empty_front_is_told():
    front = _document([], off=[(100, 0.9)])
    for choose in (on_front, knee, lambda f: best_under(f, max_macs=1000)):
        with pytest.raises(ValueError, match="front of small is empty"):
            choose(front)


def _distance(point, first, last):
    """Of a point to the line through two others, by the cross product; negative below it."""
    (x, y), (x1, y1), (x2, y2) = point, first, last
    return ((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)) / math.hypot(x2 - x1, y2 - y1)


@given(points=_fronts())
def test_the_knee_is_farthest_above_the_line_between_the_ends(points):
    found = knee(_document(points))
    by_macs = sorted(points)
    low, high = by_macs[0], by_macs[-1]
    if low == high:
        assert (found["macs"], found["accuracy"]) == low
        return

    def scaled(macs, accuracy):
        x = math.log10(macs / low[0]) / math.log10(high[0] / low[0])
        return x, (accuracy - low[1]) / (high[1] - low[1])

    distances = {p: _distance(scaled(*p), (0, 0), (1, 1)) for p in points}
    most = max(distances.values())
    assert distances[(found["macs"], found["accuracy"])] == pytest.approx(most, abs=1e-9)


def test_the_knee_of_a_bent_front_is_its_corner():
    corner = [(10, 0.1), (100, 0.8), (1000, 0.85), (100_000, 0.9)]
    assert knee(_document(corner))["macs"] == 100


def test_without_a_bend_the_knee_is_the_smallest():
    straight = [(10, 0.2), (100, 0.4), (1000, 0.6)]
    hollow = [(10, 0.2), (100, 0.3), (1000, 0.9)]
    for points in (straight, hollow, straight[:2], straight[:1]):
        assert knee(_document(points))["macs"] == 10


def test_neighbours_are_the_next_of_other_macs():
    front = _document([(1000, 0.6), (10, 0.2), (100, 0.4), (100, 0.4)])
    smaller, larger = neighbours(front, front["points"][2])
    assert (smaller["macs"], larger["macs"]) == (10, 1000)
    assert neighbours(front, front["points"][1])[0] is None
    assert neighbours(front, front["points"][0])[1] is None


def test_what_the_command_line_asks_for_is_one_thing():
    front = _document([(10, 0.1), (100, 0.8), (1000, 0.85), (100_000, 0.9)])
    assert chosen(front, max_macs="1k")["macs"] == 1000
    assert chosen(front, min_accuracy=0.82)["macs"] == 1000
    assert chosen(front, at_knee=True)["macs"] == 100
    for both in ({}, {"at_knee": True, "max_macs": "1k"}, {"at_knee": True, "min_accuracy": 0.5}):
        with pytest.raises(ValueError, match="either --knee or bounds"):
            chosen(front, **both)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1500000", 1_500_000),
        ("1_500_000", 1_500_000),
        ("500k", 500_000),
        ("2M", 2_000_000),
        ("2m", 2_000_000),
        ("1.5G", 1_500_000_000),
        ("0.3 M", 300_000),
        ("2e6", 2_000_000),
    ],
)
def test_macs_as_a_person_writes_them(text, number):
    assert macs_of(text) == number


@pytest.mark.parametrize("text", ["", "M", "-2M", "two", "0", "1.5.2M", "nan", "inf", "_", "2e999"])
def test_other_text_is_no_number_of_macs(text):
    with pytest.raises(ValueError, match="expected a number above 0"):
        macs_of(text)


@given(points=_fronts(), chance=st.integers(0, 1000))
def test_points_that_know_no_more_than_chance_are_no_knee(points, chance):
    beyond = [point for point in points if point[1] > chance / 1000]
    found = knee(_document(points, chance=chance / 1000))
    expected = knee(_document(beyond or points))
    assert (found["macs"], found["accuracy"]) == (expected["macs"], expected["accuracy"])
