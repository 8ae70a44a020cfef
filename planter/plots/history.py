"""Figures of a search's course: hypervolume over trainings and their cost, what parameters did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planter.front.history import Step
from planter.front.methods import METHODS
from planter.plots.style import AXIS, DASHES, LAYOUT, RUNS


class HistoryLine(NamedTuple):
    """The steps of a run, to be drawn as one line."""

    run: str
    steps: Sequence[Step]


def history_figure(lines: Sequence[HistoryLine]) -> go.Figure:
    """Hypervolume over finished trainings (above) and over training multiply-adds (below), from the
    first training that covers any."""
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.2, shared_yaxes="all")
    for index, line in enumerate(lines):
        steps = [step for step in line.steps if step.hypervolume > 0]
        for row, key in ((1, "trainings"), (2, "train_macs")):
            figure.add_scatter(
                x=[getattr(step, key) for step in steps],
                y=[step.hypervolume for step in steps],
                mode="lines",
                line={
                    "shape": "hv",
                    "width": 2.5,
                    "color": METHODS["sample"].color if index == 0 else RUNS[index],
                    "dash": DASHES[index % len(DASHES)],
                },
                name=escape(line.run),
                legendgroup=str(index),
                showlegend=row == 1 and len(lines) > 1,
                text=[step.trial for step in steps],
                hovertemplate="%{text}: %{y:.4f}<br>%{x:,}<extra></extra>",
                row=row,
                col=1,
            )
    figure.update_xaxes(**AXIS, rangemode="tozero")
    figure.update_yaxes(**AXIS, title={"text": "hypervolume"})
    figure.update_xaxes(title={"text": "finished trainings"}, row=1, col=1)
    figure.update_xaxes(
        title={"text": "training multiply-adds so far"}, exponentformat="SI", row=2, col=1
    )
    figure.update_layout(
        LAYOUT,
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top"},
        margin={"l": 70, "r": 20, "t": 40, "b": 60},
    )
    return figure


def importance_figure(importances: Mapping[str, float]) -> go.Figure:
    """A bar for each parameter, the most important on top."""
    ordered = sorted(importances.items(), key=lambda pair: pair[1])
    figure = go.Figure()
    figure.add_bar(
        x=[share for _, share in ordered],
        y=[escape(name) for name, _ in ordered],
        orientation="h",
        marker={"color": METHODS["sample"].color},
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    figure.update_xaxes(**AXIS, rangemode="tozero", title={"text": "share of importance"})
    figure.update_yaxes(automargin=True)
    figure.update_layout(
        LAYOUT,
        margin={"l": 20, "r": 20, "t": 10, "b": 50},
        height=90 + 28 * max(len(ordered), 2),
    )
    return figure
