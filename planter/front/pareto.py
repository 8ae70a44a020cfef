"""The front of accuracy against cost, and the hypervolume it covers."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from planter.front.objectives import OBJECTIVES, SEARCHED, directions

_DIRECTIONS = directions(SEARCHED)


def pareto_front(values: ArrayLike, maximise: Sequence[bool] = _DIRECTIONS) -> NDArray[np.bool_]:
    """Which rows of `values` `[points, objectives]` no other row dominates.

    By default the objectives are (accuracy, macs): more and less are better. Rows that are equal
    stay together: all of them are on the front or none. Raises ValueError for values that are not
    numbers.
    """
    table = _table(values, len(maximise))
    if not len(table):
        return np.zeros(0, dtype=bool)
    mask = moocore.is_nondominated(table, maximise=list(maximise), keep_weakly=True)
    return np.asarray(mask, dtype=bool)


def pareto_rank(values: ArrayLike, maximise: Sequence[bool] = _DIRECTIONS) -> NDArray[np.int_]:
    """The rank of each row of `values` `[points, objectives]` in a non-dominated sorting: 0 on the
    front, 1 on the front of the others, and so on; equal rows have equal ranks. Raises ValueError
    for values that are not numbers.
    """
    table = _table(values, len(maximise))
    if not len(table):
        return np.zeros(0, dtype=int)
    ranks = moocore.pareto_rank(table, maximise=list(maximise))
    return np.asarray(ranks, dtype=int)


def hypervolume(
    points: ArrayLike, reference_point: Sequence[float], objectives: Sequence[str] = SEARCHED
) -> float:
    """Volume between the points `[points, objectives]` and the reference point; by default area, of
    (accuracy, macs).

    Accuracy counts from 0 to 1, macs by their decimal logarithm: one unit is ten times fewer
    multiply-adds at an accuracy of 1. Points beyond the reference add nothing. Raises ValueError
    for a value of 0 or less that has no logarithm.
    """
    table = _table(points, len(objectives))
    if not len(table):
        return 0.0
    rows = np.vstack([table, np.asarray(reference_point, dtype=np.float64)])
    columns = []
    for name, column in zip(objectives, rows.T, strict=True):
        objective = OBJECTIVES[name]
        if objective.logarithmic:
            if (column <= 0).any():
                raise ValueError(f"{name} must be above 0 for the hypervolume's logarithm")
            column = np.log10(column)
        # moocore minimises: a higher accuracy is a lower negative one.
        columns.append(-column if objective.maximise else column)
    scaled = np.column_stack(columns)
    return float(moocore.hypervolume(scaled[:-1], ref=scaled[-1]))


def _table(values: ArrayLike, columns: int) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    if not table.size:
        return np.zeros((0, columns))
    if table.ndim != 2 or table.shape[1] != columns:
        raise ValueError(f"expected rows of {columns} values, got an array {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("points must be finite numbers")
    return table
