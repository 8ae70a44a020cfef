"""The figure of learning curves: loss and validations over the epochs of some trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planter.plots.style import AXIS, LAYOUT, SERIES


class Curve(NamedTuple):
    """A training: what it is called, and the lines of its metrics.jsonl."""

    name: str
    epochs: Sequence[Mapping[str, Any]]


_PANELS = {
    "val_accuracy": "validation accuracy (%)",
    "val_loss": "validation loss (cross-entropy, nats)",
    "loss": "training loss, as the recipe counts it",
}
"""What a panel shows, where there is any of it."""
_PANEL_PX, _GAP_PX, _TOP_PX, _BOTTOM_PX = 190, 80, 60, 60


def curves_figure(curves: Sequence[Curve]) -> go.Figure | None:
    """Validations above, the training loss below, over epochs, a colour for each training; None
    where nothing is known of any epoch.

    A training loss may hold what a teacher says and is no measure of one recipe against another;
    a validation is of the whole network, after the epoch. Those of a training in several parts are
    numbered through.
    """
    lines = [_numbered(curve) for curve in curves]
    shown = {key: told for key, told in _PANELS.items() if any(_of(one, key) for one in lines)}
    if not shown:
        return None
    inner = _PANEL_PX * len(shown) + _GAP_PX * (len(shown) - 1)
    figure = make_subplots(
        rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=_GAP_PX / inner
    )
    for row, (key, title) in enumerate(shown.items(), start=1):
        factor = 100 if key == "val_accuracy" else 1
        for index, (curve, line) in enumerate(zip(curves, lines, strict=True)):
            found = _of(line, key)
            figure.add_scatter(
                x=[epoch for epoch, _ in found],
                y=[value * factor for _, value in found],
                mode="lines" if key == "loss" else "lines+markers",
                name=escape(curve.name),
                legendgroup=str(index),
                showlegend=row == len(shown),
                line={"color": SERIES[index % len(SERIES)], "width": 2},
                hovertemplate="%{fullData.name}<br>epoch %{x}: %{y:.4~g}<extra></extra>",
                row=row,
                col=1,
            )
        figure.update_xaxes(showticklabels=True, row=row, col=1)
        figure.add_annotation(
            text=title,
            x=0,
            xanchor="left",
            xref="paper",
            y=figure.layout[f"yaxis{row if row > 1 else ''}"].domain[1] + 8 / inner,
            yanchor="bottom",
            yref="paper",
            showarrow=False,
        )
    figure.update_xaxes(**AXIS, rangemode="tozero")
    figure.update_xaxes(title={"text": "epoch"}, row=len(shown), col=1)
    figure.update_yaxes(**AXIS)
    figure.update_layout(
        LAYOUT,
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        margin={"l": 64, "r": 20, "t": _TOP_PX, "b": _BOTTOM_PX + 30},
        height=inner + _TOP_PX + _BOTTOM_PX + 30,
    )
    return figure


Numbered = Sequence[tuple[int, Mapping[str, Any]]]


def _numbered(curve: Curve) -> Numbered:
    """Epochs by their number from the beginning: parts of a training count from 1 each."""
    found: list[tuple[int, Mapping[str, Any]]] = []
    before = last = 0
    for line in curve.epochs:
        if line["epoch"] <= last:
            before += last
        last = line["epoch"]
        found.append((before + last, line))
    return found


def _of(line: Numbered, key: str) -> list[tuple[int, float]]:
    found = [(epoch, told.get(key)) for epoch, told in line]
    return [(epoch, value) for epoch, value in found if value is not None and math.isfinite(value)]
