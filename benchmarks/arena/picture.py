"""The arena's fronts as a picture: a step line for each way and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from ways import WAYS

from planter.plots.style import AXIS, INK, LAYOUT
from planter.plots.ticks import log_ticks

# planter's own stand out; the others are told apart by their dashes as well.
_COLOURS = {
    "planter-evolve": "#00838f", "planter-small": "#1b9e4b", "planter-evolve-less": "#2b6cd4",
    "planter-sample": "#8a4fd0", "chain": "#c96a00", "torch-pruning": "#d1495b",
    "torch-pruning-chain": "#b5467f", "fastnas": "#7d8590", "gromo": "#5d6dae",
    "scratch": "#8a6d3b",
}  # fmt: skip
_DASHES = {"chain": "dash", "torch-pruning": "dot", "torch-pruning-chain": "dashdot"}


def fronts_figure(lines: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Test accuracy against multiply-adds: of each way and seed the networks that are more accurate
    on the validation images, by which people would choose, than all that cost no more."""
    figure = go.Figure()
    for way, of_way in ((way, [x for x in lines if x["way"] == way]) for way in WAYS):
        for line in sorted(of_way, key=lambda one: one["seed"]):
            chosen = _chosen(line["points"])
            figure.add_scatter(
                x=[point["macs"] for point in chosen],
                y=[100 * point["test"] for point in chosen],
                mode="lines+markers",
                line={"shape": "hv", "width": 2, "dash": _DASHES.get(way, "solid")},
                marker={"size": 7},
                line_color=_COLOURS.get(way, INK),
                name=f"{WAYS[way].label} ({len(of_way)} seed{'s' if len(of_way) > 1 else ''})",
                legendgroup=way,
                showlegend=line is min(of_way, key=lambda one: one["seed"]),
            )
    every = [point["macs"] for line in lines for point in line["points"]]
    ticks = {"tickvals": log_ticks(min(every), max(every)), "tickformat": "~s"}
    macs = "macs (conv + linear, one image), log scale"
    figure.update_xaxes(**AXIS, **ticks, type="log", title={"text": macs})
    figure.update_yaxes(**AXIS, title={"text": "test accuracy (%)"})
    margin = {"l": 70, "r": 20, "t": 20, "b": 60}
    figure.update_layout(LAYOUT, legend={"orientation": "h", "y": -0.18}, margin=margin)
    return figure


def _chosen(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The front by validation accuracy, by rising macs."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda one: (one["macs"], -one["validation"])):
        if not front or point["validation"] > front[-1]["validation"]:
            front.append(point)
    return front
