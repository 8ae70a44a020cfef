"""The figure of a run's lineages: a line from each parent to its child."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from planter.front.certainty import value_text
from planter.front.lineage import edits_text
from planter.front.objectives import OBJECTIVES, SEARCHED
from planter.plots.style import AXIS, INK, LAYOUT, look_of
from planter.plots.ticks import log_ticks


def lineage_figure(
    rows: Sequence[Mapping[str, Any]], objectives: Sequence[str] = SEARCHED
) -> go.Figure:
    """The points of a pareto.json document that have a parent or a child, the metric against the
    first cost, and a line from each parent to its child, with what was done in the child's hover.
    """
    known = {row["id"]: row for row in rows}
    born = [row for row in rows if row.get("parent") in known]
    shown = {row["id"] for row in born} | {row["parent"] for row in born}
    up, across, *_ = objectives
    metric, cost = OBJECTIVES[up], OBJECTIVES[across]
    xs: list[float | None] = []
    ys: list[float | None] = []
    for row in born:
        parent = known[row["parent"]]
        xs += [parent[across], row[across], None]
        ys += [metric.factor * parent[up], metric.factor * row[up], None]
    figure = go.Figure()
    line = {"color": INK, "width": 1}
    figure.add_scatter(
        x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", name="from parent to child"
    )
    for method in dict.fromkeys(row["method"] for row in rows):
        points = [row for row in rows if row["method"] == method and row["id"] in shown]
        look = look_of(method)
        if not points:
            continue
        figure.add_scatter(
            x=[row[across] for row in points],
            y=[metric.factor * row[up] for row in points],
            mode="markers",
            marker={
                "color": look.color,
                "symbol": [look.symbol + ("" if row["on_front"] else "-open") for row in points],
                "size": 10,
            },
            name=look.label,
            text=[
                f"{escape(_told(row))}<br>{value_text(row, up)} at {cost.text(row[across])}"
                for row in points
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    costs = [known[name][across] for name in shown]
    ticks = log_ticks(min(costs), max(costs)) if costs else []
    scale = {"type": "log", "tickvals": ticks, "tickformat": cost.tickformat}
    figure.update_xaxes(**AXIS, **scale, title={"text": f"{cost.title}, log scale"})
    figure.update_yaxes(**AXIS, title={"text": metric.title})
    figure.update_layout(
        LAYOUT,
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top"},
        margin={"l": 70, "r": 20, "t": 50, "b": 60},
    )
    return figure


def _told(row: Mapping[str, Any]) -> str:
    how = edits_text(row.get("edits", []))
    return f"{row['id']}: {how}, of {row['parent']}" if row.get("parent") else str(row["id"])
