"""A front by other objectives than those it was searched for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planter.front.methods import is_searched
from planter.front.objectives import OBJECTIVES, directions
from planter.front.pareto import pareto_front


def front_by(
    front: Mapping[str, Any], objectives: Sequence[str], limits: Mapping[str, float]
) -> dict[str, Any]:
    """A pareto.json document whose `on_front` is told by other objectives (keys of `OBJECTIVES`,
    the vertical axis first). Points of a front keep the study's bounds: as the row says, and by
    `limits` where it is of a planter that did not say.

    Points without one of the values are on no front. The hypervolume, defined for the objectives
    that were searched for, is None for others. Raises ValueError for unknown or equal objectives,
    and where no point has one of the values.
    """
    if list(objectives) == front["objectives"]:
        return dict(front)
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown or len(set(objectives)) < len(objectives):
        raise ValueError(
            f"axes {', '.join(objectives)}: expected different ones of {', '.join(OBJECTIVES)}"
        )
    rows = [dict(row) for row in front["points"]]
    for name in objectives:
        if rows and all(row.get(name) is None for row in rows):
            how = f"; planter latency {front['study']} measures it" if name == "latency_ms" else ""
            if OBJECTIVES[name].asked:
                how = "; a study measures it that names it under objectives.metric or .costs"
            raise ValueError(f"no point of {front['study']} has a {name}{how}")
    judged = [
        row
        for row in rows
        if is_searched(row["method"])
        and all(row.get(name) is not None for name in objectives)
        and row.get("within_bounds", _keeps(row, limits))
    ]
    kept = pareto_front(
        [[row[name] for name in objectives] for row in judged],
        directions(objectives),
    )
    for row in rows:
        row["on_front"] = False
    for row, on_front in zip(judged, kept, strict=True):
        row["on_front"] = bool(on_front)
    return {**front, "objectives": list(objectives), "points": rows, "hypervolume": None}


def _keeps(row: Mapping[str, Any], limits: Mapping[str, float]) -> bool:
    """The rule of `planter.front.points.within`."""
    return all(row.get(name) is not None and row[name] <= most for name, most in limits.items())


def corners(rows: Sequence[Mapping[str, Any]], across: str, up: str) -> list[tuple[float, float]]:
    """Corners (across, up) of the line that the front's rows make in the plane of two objectives,
    from left to right. Of a front of more than two, those that the two alone would keep."""
    values = [
        (row[across], row[up])
        for row in rows
        if row["on_front"] and None not in (row.get(across), row.get(up))
    ]
    kept = pareto_front(values, directions([across, up]))
    return sorted({pair for pair, on_front in zip(values, kept, strict=True) if on_front})
