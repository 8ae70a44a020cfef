"""Figures of a run: the front of accuracy against macs, and how a planted network grew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

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


class GrowthInfo(NamedTuple):
    """All decisions of the growth figure: rounds, names of what was tried in them, the fall of the
    loss `[name][round]` (None: not tried), what was gone on with, and each round's network."""

    rounds: list[int]
    tried: list[str]
    falls: list[list[float | None]]
    accepted: list[tuple[int, str]]
    networks: list[Mapping[str, Any]]


def growth_info(rows: Sequence[Mapping[str, Any]]) -> GrowthInfo:
    """Sorts the rows of planting.csv by round and layer; a round that accepted nothing keeps the
    network before it."""
    rounds = sorted({int(row["round"]) for row in rows if int(row["round"])})
    tried = list(dict.fromkeys(row["layer"] for row in rows if int(row["round"])))
    by_place = {(int(row["round"]), row["layer"]): row for row in rows}
    network = by_place[0, "start"]
    networks, accepted = [network], []
    falls: list[list[float | None]] = [[] for _ in tried]
    for number in rounds:
        for name, line in zip(tried, falls, strict=True):
            row = by_place.get((number, name))
            line.append(None if row is None else network["val_loss"] - row["val_loss"])
        for name in tried:
            row = by_place.get((number, name))
            if row is not None and row["accepted"]:
                network = row
                accepted.append((number, name))
        networks.append(network)
    return GrowthInfo(rounds, tried, falls, accepted, networks)


def growth_figure(name: str, rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """How a planted network grew: what each round tried and gained, the widths, and the course of
    loss and accuracy over the rounds. `rows` are those of planting.csv."""
    info = growth_info(rows)
    by_place = {(int(row["round"]), row["layer"]): row for row in rows}
    figure = make_subplots(
        rows=3,
        cols=1,
        shared_xaxes=True,
        row_heights=[0.36, 0.34, 0.30],
        vertical_spacing=0.07,
        subplot_titles=(
            "fall of the validation loss by each plant (ringed: accepted)",
            "widths of the network",
            "the network's validation loss and accuracy",
        ),
        specs=[[{}], [{}], [{"secondary_y": True}]],
    )
    most = max((abs(fall) for line in info.falls for fall in line if fall is not None), default=1)
    figure.add_heatmap(
        x=info.rounds,
        y=info.tried,
        z=info.falls,
        customdata=[
            [_told(by_place.get((number, name))) for number in info.rounds] for name in info.tried
        ],
        hovertemplate="<b>round %{x}, %{y}</b><br>%{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale="RdYlGn",
        zmid=0,
        zmin=-most,
        zmax=most,
        xgap=3,
        ygap=3,
        colorbar={"len": 0.34, "y": 1, "yanchor": "top", "title": {"text": "fall"}},
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=[number for number, _ in info.accepted],
        y=[layer for _, layer in info.accepted],
        mode="markers",
        marker={"symbol": "circle-open", "size": 17, "color": "black", "line": {"width": 3}},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )
    along = [0, *info.rounds]
    widths = [_widths(network) for network in info.networks]
    grown = [w for w in widths[0] if any(each[w] != widths[0][w] for each in widths)]
    for layer in grown:
        figure.add_bar(
            x=along,
            y=[each[layer] for each in widths],
            name=layer,
            hovertemplate=f"{escape(layer)}: %{{y}}<extra>round %{{x}}</extra>",
            row=2,
            col=1,
        )
    hover = [_told(network) for network in info.networks]
    for key, label, color, second in (
        ("val_loss", "loss", "#d1495b", False),
        ("val_accuracy", "accuracy", "#2b6cd4", True),
    ):
        figure.add_scatter(
            x=along,
            y=[network[key] * (100 if second else 1) for network in info.networks],
            mode="lines+markers",
            name=label,
            line={"color": color, "shape": "hv"},
            customdata=hover,
            hovertemplate="<b>after round %{x}</b><br>%{customdata}<extra></extra>",
            row=3,
            col=1,
            secondary_y=second,
        )
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": _INK}
    figure.update_xaxes(**axis, dtick=max(1, len(info.rounds) // 15))
    figure.update_yaxes(**axis)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    figure.update_yaxes(title_text="channels", row=2, col=1)
    figure.update_yaxes(title_text="loss", row=3, col=1)
    figure.update_yaxes(title_text="accuracy (%)", row=3, col=1, secondary_y=True, showgrid=False)
    figure.update_xaxes(title_text="round", row=3, col=1)
    figure.update_layout(
        title={"text": f"{escape(name)}: growth", "font": {"size": 16}},
        font={"color": _INK, "size": 14},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        barmode="stack",
        legend={"y": 0.5, "yanchor": "middle"},
        margin={"l": 80, "r": 30, "t": 80, "b": 60},
    )
    return figure


def _widths(row: Mapping[str, Any]) -> dict[str, int]:
    pairs = (part.rpartition("=") for part in row["widths"].split())
    return {layer: int(width) for layer, _, width in pairs}


def _told(row: Mapping[str, Any] | None) -> str:
    """What a hover says of a row of planting.csv."""
    if row is None:
        return ""
    return (
        f"{escape(row['widths'])}<br>{row['params']:,} parameters, {row['macs']:,} macs<br>"
        f"loss {row['val_loss']:.4f}, accuracy {100 * row['val_accuracy']:.2f} %<br>"
        f"{row['seconds']:.1f} s"
    )


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
