"""Which point of a front to take: under a bound, at its knee; and the points beside it.

Every function takes what pareto.json says (`planter.front.points.read_front`) and gives rows of its
`points`. Only points on the front are chosen: a teacher, a baseline or a dominated point never is.
What is best is told by the metric of the run's objectives, what is cheapest by their first cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from planter.front.certainty import interval_in
from planter.front.objectives import OBJECTIVES, cheapest_first, metric_merit
from planter.front.reranked import corners
from planter.study.quantities import quantity_of

Front = Mapping[str, Any]
Row = Mapping[str, Any]


class NothingWithinError(ValueError):
    """No point of the front keeps to the bounds; `nearest` is the row that comes closest."""

    def __init__(self, message: str, nearest: Row) -> None:
        super().__init__(message)
        self.nearest = nearest


def on_front(front: Front) -> list[Row]:
    """The rows on the front by rising cost; of equal cost the better first, then by id. Raises
    ValueError where there are none."""
    rows = [row for row in front["points"] if row["on_front"]]
    if not rows:
        raise ValueError(
            f"the front of {front['study']} is empty: no searched network has finished, or none "
            "keeps to the study's bounds; planter show RUN lists its points"
        )
    return sorted(rows, key=lambda row: (*cheapest_first(row, front["objectives"]), row["id"]))


def best_under(
    front: Front, *, max_macs: int | None = None, min_accuracy: float | None = None
) -> Row:
    """The best point within the bounds: that of the best metric of at most `max_macs`, or, where
    only `min_accuracy` (0..1) is given, the cheapest one.

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
        # The first of equal ones is the cheapest.
        return within[0] if max_macs is None else best_of(within, front["objectives"])
    nearest = min(rows, key=lambda row: row["macs"])
    if small:
        nearest = max(small, key=lambda row: row["accuracy"])
    bounds = [f"at most {max_macs:,} macs"] if max_macs is not None else []
    bounds += [f"an accuracy of {min_accuracy:.2%} or more"] if min_accuracy is not None else []
    raise NothingWithinError(
        f"no point on the front of {front['study']} has {' and '.join(bounds)}; the nearest is "
        f"{nearest['id']}: {nearest['accuracy']:.2%}, {nearest['macs']:,} macs",
        nearest,
    )


def best_of(rows: Sequence[Row], objectives: Sequence[str]) -> Row:
    """The row of the best metric; the first of equal ones."""
    return max(rows, key=lambda row: metric_merit(row, objectives))


def knee(front: Front) -> Row:
    """The point from which on the metric costs most: of all points on the front the one farthest
    above the straight line between its ends, in (log10 macs, accuracy), both scaled to 0..1 over
    the front (Das, "On characterizing the 'knee' of the Pareto curve", Structural Optimization 18,
    1999); or in the logarithm of another first cost, and another metric. Of a front of three
    objectives, those points that these two alone would keep count; points that are no better than
    chance do not, where others are.

    Where no point lies above the line, as on a front of two, it is the cheaper end; of equally far
    points it is the cheapest. The line depends on the ends: a front that begins or ends elsewhere
    may have another knee.
    """
    metric, cost, *_ = objectives = front["objectives"]
    line = set(corners(front["points"], cost, metric))
    rows = [row for row in on_front(front) if (row[cost], row[metric]) in line]
    # What knows no more than chance adds nothing to the hypervolume, and is no end of a front.
    chance = {metric: front["reference_point"][0]}
    beyond = metric_merit(chance, objectives)
    rows = [row for row in rows if metric_merit(row, objectives) > beyond] or rows
    first, last = rows[0], rows[-1]
    scaled = OBJECTIVES[cost].scaled
    decades = scaled(last[cost]) - scaled(first[cost])
    gain = metric_merit(last, objectives) - metric_merit(first, objectives)
    if not decades or not gain:  # all points are equal
        return first

    def above(row: Row) -> float:
        """The distance to the line, times a constant."""
        dearer = (scaled(row[cost]) - scaled(first[cost])) / decades
        better = (metric_merit(row, objectives) - metric_merit(first, objectives)) / gain
        return round(better - dearer, 12)  # rounding must not decide between equal points

    return max(rows, key=above)


class Advice(NamedTuple):
    """A point to take, and why."""

    row: Row
    why: str


def recommended(front: Front) -> list[Advice]:
    """Which points of a front to look at first: the best within the study's bounds, which all
    points on the front keep; the cheapest whose interval holds the best one's value, so that these
    images do not tell it apart; the knee. None of an empty front; a point stands once."""
    if not any(row["on_front"] for row in front["points"]):
        return []
    objectives = front["objectives"]
    metric, cost = objectives[0], OBJECTIVES[objectives[1]]
    rows = on_front(front)
    best = best_of(rows, objectives)
    bounds = [OBJECTIVES[name].text(most) for name, most in front.get("bounds", {}).items()]
    within = f" within the bounds of at most {' and '.join(bounds)}" if bounds else ""
    short = OBJECTIVES[metric].short
    found = {best["id"]: Advice(best, f"best {short}{within}")}

    def alike(row: Row) -> bool:
        ends = interval_in(row, metric)
        return ends is not None and ends[0] <= best[metric] <= ends[1]

    cheapest = next((row for row in rows if alike(row)), best)
    less = f"of fewest {cost.short} among those whose interval holds that {short}"
    found.setdefault(cheapest["id"], Advice(cheapest, less))
    at_knee = knee(front)
    if at_knee["id"] in found:
        before = found[at_knee["id"]]
        found[at_knee["id"]] = before._replace(why=f"{before.why}; the knee")
    else:
        found[at_knee["id"]] = Advice(at_knee, f"the knee: from here on {short} costs most")
    return list(found.values())


def neighbours(front: Front, row: Row) -> tuple[Row | None, Row | None]:
    """The next points on the front of less and of more cost; None at an end."""
    rows, cost = on_front(front), front["objectives"][1]
    smaller = [other for other in rows if other[cost] < row[cost]]
    larger = [other for other in rows if other[cost] > row[cost]]
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


def macs_of(given: str | float) -> int:
    """Multiply-adds as a person writes them: 1500000, 1_500_000, 1.5M, 500k, 2G. Raises ValueError
    for anything else."""
    try:
        return int(given) if _is_amount(given) else quantity_of(str(given))
    except ValueError as error:
        raise ValueError(f"macs {given!r}: expected {error}") from None


def _is_amount(given: str | float) -> bool:
    return isinstance(given, int | float) and math.isfinite(given) and given >= 0
