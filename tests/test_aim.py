"""Where another network would add most: closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planter.front.aim import Forecast, Place, Surprises, gain, worth

FRONT = [Place(0.9, 8e6), Place(0.8, 4e6), Place(0.6, 1e6)]
REFERENCE = [0.1, 8e6]


def test_between_two_points_accuracy_follows_the_line_over_the_logarithm():
    forecast = Forecast(FRONT)
    assert forecast.metric(4e6) == pytest.approx(0.8)
    assert forecast.metric(2e6) == pytest.approx(0.7)
    assert forecast.metric(4e6 * math.sqrt(2)) == pytest.approx(0.85)


def test_above_the_dearest_it_rises_more_slowly_than_between_the_dearest_two():
    """So that growing promises something where nothing as large is trained yet."""
    assert Forecast(FRONT).metric(32e6) == pytest.approx(0.9 + 2 * 0.1 / 1.3)
    assert Forecast(FRONT[1:2]).metric(16e6) == pytest.approx(0.8 + 2 * 0.02)


@pytest.mark.parametrize("metric", [0.9, 0.85])
def test_where_dearer_ones_were_no_better_it_stays(metric):
    assert Forecast([*FRONT, Place(metric, 16e6)]).metric(64e6) == pytest.approx(0.9)


def test_below_the_cheapest_it_falls_faster_than_between_the_cheapest_two():
    forecast = Forecast(FRONT)
    assert forecast.metric(0.5e6) == pytest.approx(0.6 - 1.3 * 0.1)
    assert Forecast(FRONT[:1]).metric(4e6) == pytest.approx(0.88)
    assert forecast.metric(1.0) == 0.0


def test_points_below_the_hull_lag_and_say_nothing():
    forecast = Forecast([*FRONT, Place(0.62, 2e6), Place(0.695, 2e6)])
    assert forecast.metric(2e6) == pytest.approx(0.7)
    assert forecast.lags(Place(0.62, 2e6))
    assert not forecast.lags(Place(0.695, 2e6))
    assert not any(map(forecast.lags, FRONT))


def test_dominated_points_say_nothing():
    assert Forecast([*FRONT, Place(0.2, 2e6)]).metric(2e6) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="nothing is trained"):
        Forecast([]).metric(1e6)


def test_a_point_gains_the_rectangle_up_to_its_right_neighbour():
    new = Place(0.7, 2e6)
    expected = (0.7 - 0.6) * math.log10(4e6 / 2e6)
    assert gain(new, FRONT, REFERENCE) == pytest.approx(expected)
    assert gain(Place(0.5, 2e6), FRONT, REFERENCE) == 0
    first = (0.7 - 0.1) * math.log10(8e6 / 2e6)
    assert gain(new, [], REFERENCE) == pytest.approx(first)


def test_worth_is_gain_for_the_share_of_what_is_left():
    assert worth(0.3, 2e12, 8e12, 4) == pytest.approx(0.3 / (0.25 + 0.25))
    assert worth(0.3, 2e12, math.inf, 4) == pytest.approx(1.2)
    assert worth(0.3, 2e12, 0.0, 4) == 0.0


def test_surprises_are_believed_as_they_come():
    seen = Surprises()
    assert seen.expected("go_on", 0.006) == pytest.approx(0.006)
    for _ in range(3):
        seen.add("go_on", 0.03)
    assert seen.expected("go_on", 0.006) == pytest.approx((0.09 + 0.018) / 6)
    assert seen.expected("shrink") == 0


@given(st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(1e3, 1e7)), min_size=1, max_size=8))
def test_a_forecast_rises_with_macs(points):
    forecast = Forecast([Place(*point) for point in points])
    grid = [10 ** (2 + i / 4) for i in range(28)]
    told = [forecast.metric(macs) for macs in grid]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(told))
