"""Fronts by other objectives, against the definition over all pairs."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planter.front.points import COLUMNS
from planter.front.reranked import corners, front_by

_MORE_IS_BETTER = {"accuracy": 1, "macs": -1, "params": -1, "latency_ms": -1}


def _row(number, method, accuracy, macs, params, latency=None):
    known = {"id": f"s{number}/base", "trial": f"s{number}", "pipeline": "base", "model": None}
    known |= {"method": method, "accuracy": accuracy, "macs": macs, "params": params}
    known |= {"latency_ms": latency, "on_front": False, "test_accuracy": None, "train_macs": 1}
    assert set(COLUMNS) - {"within_bounds"} <= set(known)
    return known


def _front(rows):
    return {
        "study": "x", "objectives": ["accuracy", "macs"], "points": rows, "hypervolume": 1.0,
        "reference_point": [0.1, 100], "cost": {},
    }  # fmt: skip


def _brute(rows, objectives, limits):
    """Ids of the searched points within the limits that none of the others dominates."""
    able = [
        row
        for row in rows
        if row["method"] in ("plant", "sample")
        and all(row[name] is not None for name in objectives)
        and all(row[name] is not None and row[name] <= most for name, most in limits.items())
    ]

    def values(row):
        return [_MORE_IS_BETTER[name] * row[name] for name in objectives]

    def dominated(row):
        return any(
            values(other) != values(row)
            and all(a >= b for a, b in zip(values(other), values(row), strict=True))
            for other in able
        )

    return {row["id"] for row in able if not dominated(row)}


# Few values: ties and duplicates are common.
_values = st.tuples(
    st.sampled_from(["plant", "sample", "teacher", "baseline"]),
    st.integers(0, 4).map(lambda n: n / 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 3).map(float)),
)
_objectives = st.sampled_from(
    [
        ["accuracy", "params"],
        ["accuracy", "latency_ms"],
        ["macs", "params"],
        ["accuracy", "macs", "params"],
        ["accuracy", "macs", "latency_ms"],
    ]
)


@settings(deadline=None)
@given(
    drawn=st.lists(_values, min_size=1, max_size=12),
    objectives=_objectives,
    limits=st.sampled_from([{}, {"macs": 3}, {"macs": 2, "params": 3}, {"latency_ms": 2}]),
)
def test_the_front_is_what_no_other_searched_point_within_the_bounds_dominates(
    drawn, objectives, limits
):
    rows = [_row(number, *values) for number, values in enumerate(drawn)]
    if "latency_ms" in objectives:
        rows.append(_row(99, "teacher", 0.5, 9, 9, 9.0))
    found = front_by(_front(rows), objectives, limits)
    kept = {row["id"] for row in found["points"] if row["on_front"]}
    assert kept == _brute(rows, objectives, limits)
    assert [row["id"] for row in found["points"]] == [row["id"] for row in rows]
    assert found["objectives"] == objectives
    assert found["hypervolume"] is None
    # A line's corners fall or climb, and no point of the front lies on its better side.
    across, up = objectives[1], objectives[0]
    line = corners(found["points"], across, up)
    assert line == sorted(set(line))
    for (_, before), (_, after) in pairwise(line):
        assert _MORE_IS_BETTER[up] * after > _MORE_IS_BETTER[up] * before


def test_the_usual_front_stays_as_it_was_told():
    front = _front([{**_row(0, "sample", 0.5, 3, 3), "on_front": True}])
    assert front_by(front, ["accuracy", "macs"], {"macs": 1}) == front


def test_a_front_of_no_point_is_empty():
    assert front_by(_front([]), ["accuracy", "params"], {})["points"] == []
    assert corners([], "macs", "accuracy") == []


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["accuracy", "flops"], "expected different ones of accuracy, macs, params, latency_ms"),
        (["accuracy", "accuracy"], "expected different ones"),
        (["accuracy", "latency_ms"], "no point of x has a latency_ms; planter latency x"),
    ],
)
def test_axes_that_cannot_be_drawn_are_refused(objectives, message):
    with pytest.raises(ValueError, match=message):
        front_by(_front([_row(0, "sample", 0.5, 3, 3)]), objectives, {})


def test_what_a_later_measurement_says_takes_no_point_off_a_front():
    row = _row(1, "sample", 0.5, 10, 10, latency=9.0)
    limits = {"latency_ms": 1.0}  # kept when it was checked
    for kept in (True, False):
        front = _front([{**row, "within_bounds": kept}])
        (found,) = front_by(front, ["accuracy", "params"], limits)["points"]
        assert found["on_front"] == kept
