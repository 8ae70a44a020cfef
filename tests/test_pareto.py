"""The front and the hypervolume against their definitions over all pairs and all subsets."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planter.front.pareto import hypervolume, pareto_front

# Small integer grids make ties and duplicates common.
_grid = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=12)
_points = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 12)), min_size=1, max_size=5)
_REFERENCE = (0.2, 1e9)


def _dominates(a, b, maximise):
    better = [x > y if most else x < y for x, y, most in zip(a, b, maximise, strict=True)]
    worse = [x < y if most else x > y for x, y, most in zip(a, b, maximise, strict=True)]
    return any(better) and not any(worse)


def _brute_front(rows, maximise):
    return [not any(_dominates(other, row, maximise) for other in rows) for row in rows]


def _points_of(grid):
    """Accuracies 0..1 and macs 10..10^10: beyond the reference on both axes at times."""
    return [(a / 10, 10.0 ** (1 + 0.75 * m)) for a, m in grid]


def _brute_volume(points, reference):
    """Area of a union of rectangles by inclusion and exclusion over all subsets."""

    def area(accuracy, macs):
        wide = max(0.0, accuracy - reference[0])
        return wide * max(0.0, math.log10(reference[1]) - math.log10(macs))

    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in combinations(points, size):
            common = area(min(a for a, _ in subset), max(m for _, m in subset))
            total += (-1) ** (size + 1) * common
    return total


@settings(deadline=None)
@given(rows=_grid)
def test_front_is_what_no_other_row_dominates(rows):
    assert pareto_front(rows).tolist() == _brute_front(rows, (True, False))


@settings(deadline=None)
@given(rows=_grid, maximise=st.tuples(st.booleans(), st.booleans()))
def test_front_follows_the_direction_of_each_objective(rows, maximise):
    assert pareto_front(rows, maximise).tolist() == _brute_front(rows, maximise)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=10))
def test_front_of_three_objectives(rows):
    directions = (True, False, False)
    assert pareto_front(rows, directions).tolist() == _brute_front(rows, directions)


def test_equal_rows_stay_together_on_the_front_and_off_it():
    rows = [(0.9, 10), (0.8, 10), (0.9, 10), (0.8, 10)]
    assert pareto_front(rows).tolist() == [True, False, True, False]


def test_front_of_nothing_is_empty_and_of_one_row_is_the_row():
    assert pareto_front([]).tolist() == []
    assert pareto_front(np.zeros((0, 2))).tolist() == []
    assert pareto_front([(0.0, 1)]).tolist() == [True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(bad):
    for rows in ([(0.5, 10), (bad, 10)], [(0.5, bad)]):
        with pytest.raises(ValueError, match="finite"):
            pareto_front(rows)
        with pytest.raises(ValueError, match="finite"):
            hypervolume(rows, _REFERENCE)


@pytest.mark.parametrize("rows", [[(1, 2, 3)], [1, 2], [[[1, 2]]]])
def test_rows_of_another_length_are_refused(rows):
    with pytest.raises(ValueError, match="rows of 2"):
        pareto_front(rows)
    with pytest.raises(ValueError, match="rows of 2"):
        hypervolume(rows, _REFERENCE)


def test_hypervolume_of_one_point_is_its_rectangle():
    # 0.7 of accuracy above the reference, three decades of macs below it.
    assert hypervolume([(0.9, 1e6)], (0.2, 1e9)) == pytest.approx(0.7 * 3, rel=1e-12)
    assert hypervolume([], (0.2, 1e9)) == 0


@settings(deadline=None)
@given(grid=_points)
def test_hypervolume_equals_inclusion_and_exclusion(grid):
    points = _points_of(grid)
    # Up to 31 terms of size about 10 cancel: 1e-12 is a few roundings of double precision.
    expected = _brute_volume(points, _REFERENCE)
    assert hypervolume(points, _REFERENCE) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("beyond", [(0.2, 1e3), (0.1, 1e3), (0.9, 1e9), (0.9, 1e10), (0.1, 1e10)])
def test_points_beyond_the_reference_add_nothing(beyond):
    assert hypervolume([beyond], _REFERENCE) == 0
    inside = [(0.5, 1e7), (0.8, 1e8)]
    assert hypervolume([*inside, beyond], _REFERENCE) == pytest.approx(
        _brute_volume(inside, _REFERENCE), rel=1e-12
    )


@settings(deadline=None)
@given(grid=_points, again=st.integers(0, 4))
def test_duplicates_add_nothing(grid, again):
    points = _points_of(grid)
    doubled = [*points, points[again % len(points)]]
    assert hypervolume(doubled, _REFERENCE) == hypervolume(points, _REFERENCE)


@settings(deadline=None)
@given(grid=_points, more=st.tuples(st.integers(0, 10), st.integers(0, 12)))
def test_a_point_more_never_shrinks_the_hypervolume_and_grows_it_where_undominated(grid, more):
    points, (new,) = _points_of(grid), _points_of([more])
    before, after = (hypervolume(p, _REFERENCE) for p in (points, [*points, new]))
    inside = new[0] > _REFERENCE[0] and new[1] < _REFERENCE[1]
    covered = any(a >= new[0] and m <= new[1] for a, m in points)
    if inside and not covered:
        assert after > before
    else:
        assert after == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize(
    ("points", "reference"),
    [([(0.5, 0)], (0.1, 10)), ([(0.5, -3)], (0.1, 10)), ([(0.5, 3)], (0.1, 0))],
)
def test_macs_without_a_logarithm_are_refused(points, reference):
    with pytest.raises(ValueError, match="above 0"):
        hypervolume(points, reference)
