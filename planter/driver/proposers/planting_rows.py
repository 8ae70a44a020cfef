"""Rows of the study `<name>/planting`: what they are called, the network of each, their table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial

from planter.driver.storage.points import read_result
from planter.driver.trials.jobs import points_of
from planter.front.points import Point


def row_id(row: FrozenTrial) -> str:
    """The id of a row's trial."""
    return str(row.user_attrs["id"])


def point_of(row: FrozenTrial) -> Point | None:
    """The network of a row; None while it has none, or where its training failed or its loss is no
    number."""
    outcome = read_result(row)
    if outcome is None or "error" in outcome:
        return None
    (point,) = points_of(row_id(row), "plant", outcome)
    return point if math.isfinite(point.loss) else None


def planting_table(rows: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """A row for each finished candidate, as planting.csv shows it."""
    table = []
    for row in sorted(rows, key=lambda row: row.number):
        point = point_of(row)
        if point is None or not row.state.is_finished():
            continue
        table.append(
            {
                "round": row.params["round"],
                "layer": row.params["layer"],
                "channels": row.params["channels"],
                "accepted": row.user_attrs["accepted"],
                "widths": " ".join(
                    f"{name}={width}" for name, width in point.architecture["widths"].items()
                ),
                "params": point.params,
                "macs": point.macs,
                "val_loss": point.loss,
                "val_accuracy": point.accuracy,
                "seconds": point.seconds,
            }
        )
    return table
