"""Which point of a front to take: under a bound, at its knee; and the points beside it.

Every function takes what pareto.json says (`planter.front.points.read_front`) and gives rows of its
`points`. Only points on the front are chosen: a teacher, a baseline or a dominated point never is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planter.front.objectives import COST, METRIC, OBJECTIVES, cheapest_first
from planter.study.quantities import quantity_of

Front = Mapping[str, Any]
Row = Mapping[str, Any]


class NothingWithinError(ValueError):
    """No point of the front keeps to the bounds; `nearest` is the row that comes closest."""

    def __init__(self, message: str, nearest: Row) -> None:
        super().__init__(message)
        self.nearest = nearest


def on_front(front: Front) -> list[Row]:
    """The rows on the front by rising macs; of equal macs the more accurate first, then by id.
    Raises ValueError where there are none."""
    rows = [row for row in front["points"] if row["on_front"]]
    if not rows:
        raise ValueError(
            f"the front of {front['study']} is empty: no searched network has finished, or none "
            "keeps to the study's bounds; planter show RUN lists its points"
        )
    return sorted(rows, key=lambda row: (*cheapest_first(row), row["id"]))


def best_under(
    front: Front, *, max_macs: int | None = None, min_accuracy: float | None = None
) -> Row:
    """The best point within the bounds: the most accurate one of at most `max_macs`, or, where only
    `min_accuracy` (0..1) is given, the one of fewest macs.

    Raises NothingWithinError where no point keeps to the bounds. Its nearest point is the one of
    fewest macs where that has too many, else the most accurate one of at most `max_macs`.
    """
    if max_macs is None and min_accuracy is None:
        raise ValueError("best_under needs a bound: max_macs, min_accuracy or both")
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise ValueError(f"min_accuracy is between 0 and 1 (0.9 for 90 %), got {min_accuracy}")
    rows = on_front(front)
    small = [row for row in rows if max_macs is None or row["macs"] <= max_macs]
    within = [row for row in small if min_accuracy is None or row["accuracy"] >= min_accuracy]
    if within:
        # The first of equal ones is the one of fewest macs.
        return within[0] if max_macs is None else max(within, key=lambda row: row["accuracy"])
    nearest = max(small, key=lambda row: row["accuracy"]) if small else rows[0]
    bounds = [f"at most {max_macs:,} macs"] if max_macs is not None else []
    bounds += [f"an accuracy of {min_accuracy:.2%} or more"] if min_accuracy is not None else []
    raise NothingWithinError(
        f"no point on the front of {front['study']} has {' and '.join(bounds)}; the nearest is "
        f"{nearest['id']}: {nearest['accuracy']:.2%}, {nearest['macs']:,} macs",
        nearest,
    )


def knee(front: Front) -> Row:
    """The point from which on accuracy costs most: of all points on the front the one farthest
    above the straight line between its ends, in (log10 macs, accuracy), both scaled to 0..1 over
    the front (Das, "On characterizing the 'knee' of the Pareto curve", Structural Optimization 18,
    1999).

    Where no point lies above the line, as on a front of two, it is the end of fewest macs; of
    equally far points it is the one of fewest macs. The line depends on the ends: a front that
    begins or ends elsewhere may have another knee.
    """
    rows = on_front(front)
    first, last = rows[0], rows[-1]
    decades = _cost(last) - _cost(first)
    gain = last[METRIC] - first[METRIC]
    if not decades or not gain:  # all points are equal
        return first

    def above(row: Row) -> float:
        """The distance to the line, times a constant."""
        dearer = (_cost(row) - _cost(first)) / decades
        better: float = (row[METRIC] - first[METRIC]) / gain
        return round(better - dearer, 12)  # rounding must not decide between equal points

    return max(rows, key=above)


def _cost(row: Row) -> float:
    return OBJECTIVES[COST].scaled(row[COST])


def neighbours(front: Front, row: Row) -> tuple[Row | None, Row | None]:
    """The next points on the front of fewer and of more macs; None at an end."""
    rows = on_front(front)
    smaller = [other for other in rows if other[COST] < row[COST]]
    larger = [other for other in rows if other[COST] > row[COST]]
    return (smaller[-1] if smaller else None), (larger[0] if larger else None)


def chosen(
    front: Front,
    *,
    max_macs: str | None = None,
    min_accuracy: float | None = None,
    at_knee: bool = False,
) -> Row:
    """The point that --max-macs, --min-accuracy and --knee ask for. Raises ValueError where they
    ask for none or for two, NothingWithinError where no point keeps to the bounds."""
    bounded = max_macs is not None or min_accuracy is not None
    if at_knee == bounded:
        raise ValueError("give either --knee or bounds: --max-macs, --min-accuracy or both")
    if at_knee:
        return knee(front)
    most = None if max_macs is None else macs_of(max_macs)
    return best_under(front, max_macs=most, min_accuracy=min_accuracy)


def macs_of(text: str) -> int:
    """Multiply-adds as a person writes them: 1500000, 1_500_000, 1.5M, 500k, 2G. Raises ValueError
    for anything else."""
    try:
        return quantity_of(text)
    except ValueError as error:
        raise ValueError(f"macs {text!r}: expected {error}") from None
