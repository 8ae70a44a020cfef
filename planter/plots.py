"""Figures of a run: the front of accuracy against macs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go

from planter.front import write_text

_METHODS = {
    "plant": ("planted", "#1b9e4b", "circle"),
    "sample": ("sampled", "#2b6cd4", "circle"),
    "pipeline": ("sampled, pipeline", "#8a4fd0", "diamond"),
    "teacher": ("teacher", "#d1495b", "star"),
    "baseline": ("baseline", "#8a8f98", "square"),
}
_INK, _GRID = "#7d8590", "rgba(128,136,148,0.25)"  # both readable on white and on black
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ color-scheme: light dark }} html, body {{ height: 100%; margin: 0 }}</style>
</head><body>{figure}</body></html>
"""


class Series(NamedTuple):
    """Points of one run and one kind, drawn together."""

    run: str
    kind: str
    points: list[Mapping[str, Any]]


class FrontInfo(NamedTuple):
    """All decisions of the front's figure; drawing it takes no more."""

    series: list[Series]
    steps: dict[str, list[tuple[float, float]]]


def front_info(fronts: Sequence[Mapping[str, Any]]) -> FrontInfo:
    """Sorts the points of one or more pareto.json documents into series, and the fronts into the
    corners (macs, accuracy in percent) of their step lines."""
    series: list[Series] = []
    steps: dict[str, list[tuple[float, float]]] = {}
    for front in fronts:
        by_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in _METHODS}
        for point in front["points"]:
            cut = point["method"] == "sample" and point["pipeline"] != "base"
            by_kind["pipeline" if cut else point["method"]].append(point)
        run = front["study"]
        if again := sum(s == run or s.startswith(f"{run} (") for s in steps):
            run = f"{run} ({again + 1})"
        series += [Series(run, kind, points) for kind, points in by_kind.items() if points]
        best = sorted({(p["macs"], 100 * p["accuracy"]) for p in front["points"] if p["on_front"]})
        steps[run] = best
    return FrontInfo(series, steps)


def front_figure(fronts: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Accuracy against macs of one or more runs: fronts as step lines, dominated points faint."""
    return _draw(front_info(fronts))


def write_html(figure: go.Figure, file: Path) -> None:
    """A page that needs nothing from the network."""
    drawn = figure.to_html(
        include_plotlyjs=True,
        full_html=False,
        default_height="100%",
        config={"displaylogo": False, "responsive": True},
    )
    page = _PAGE.format(title=escape(figure.layout.title.text), figure=drawn)
    write_text(file, page)


def write_image(figure: go.Figure, file: Path) -> None:
    """A PNG, SVG or PDF by the file's ending. Raises ValueError where the machine cannot."""
    light = go.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white")
    try:
        light.write_image(file, width=1000, height=620, scale=2)
    except Exception as error:  # kaleido and the browser it drives raise many kinds
        raise ValueError(
            f"cannot draw {file}: {error}. Pictures need `pip install planter[png]` and a Chrome "
            "or Chromium; the HTML and CSV need neither"
        ) from error


def _draw(info: FrontInfo) -> go.Figure:
    figure = go.Figure()
    several = len(info.steps) > 1
    dashes = ["solid", "dash", "dot", "dashdot"]
    for index, (run, corners) in enumerate(info.steps.items()):
        figure.add_scatter(
            x=[x for x, _ in corners],
            y=[y for _, y in corners],
            mode="lines",
            line={"shape": "hv", "width": 2, "dash": dashes[index % 4], "color": _INK},
            name=f"front of {escape(run)}" if several else "front",
            hoverinfo="skip",
        )
    for group in info.series:
        label, color, symbol = _METHODS[group.kind]
        compared = group.kind in ("teacher", "baseline")
        name = f"{label} ({escape(group.run)})" if several else label
        # The legend's own marker: that of the points would be as faint as the first of them.
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=name,
            legendgroup=name,
            marker={"color": color, "symbol": symbol, "size": 11},
        )
        figure.add_scatter(
            x=[p["macs"] for p in group.points],
            y=[100 * p["accuracy"] for p in group.points],
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=False,
            marker={
                "color": color,
                "symbol": symbol,
                "size": [11 if compared or p["on_front"] else 8 for p in group.points],
                "opacity": [1.0 if compared or p["on_front"] else 0.35 for p in group.points],
            },
            customdata=[
                [p["id"], p["params"], _percent(p["test_accuracy"]), p["method"]]
                for p in group.points
            ],
            hovertemplate=(
                "<b>%{customdata[0]}</b> (%{customdata[3]})<br>validation %{y:.2f} %<br>"
                "test %{customdata[2]}<br>%{x:,} macs<br>%{customdata[1]:,} parameters"
                "<extra></extra>"
            ),
        )
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": _INK, "ticks": "outside"}
    figure.update_layout(
        title={
            "text": escape(" and ".join(info.steps)) + ": accuracy against multiply-adds",
            "font": {"size": 16},
        },
        font={"color": _INK, "size": 14},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -0.18},
        xaxis={
            **axis,
            "type": "log",
            "title": {"text": "macs (conv + linear, one image)"},
            "tickvals": _ticks([p["macs"] for group in info.series for p in group.points]),
            "tickformat": "~s",
        },
        yaxis={**axis, "title": {"text": "validation accuracy (%)"}},
        margin={"l": 70, "r": 30, "t": 60, "b": 90},
    )
    return figure


def _ticks(macs: Sequence[float]) -> list[float]:
    """1, 2 and 5 times the powers of ten around the values: plotly labels logarithmic axes with
    bare digits otherwise."""
    if not macs:
        return []
    low, high = math.floor(math.log10(min(macs))), math.ceil(math.log10(max(macs)))
    return [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 5)]


def _percent(share: float | None) -> str:
    return "not read" if share is None else f"{100 * share:.2f} %"
