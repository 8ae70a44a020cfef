"""The figure of planting: how a network grew, round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planter.arch import width_in
from planter.plots.style import AXIS, LAYOUT, SERIES

_START, _PLANTED = "#7d8590", "#1b9e4b"
_TRIES = {
    "accepted": (_PLANTED, "circle"),
    "better": (SERIES[0], "circle-open"),
    "not better": (SERIES[1], "x-thin-open"),
}
"""What is tried in a round, by how it went: colour and symbol."""
_LINE_PX, _GAP_PX, _TOP_PX, _BOTTOM_PX = 30, 130, 95, 60


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
    """How a planted network grew: what each round tried and gained, what each layer came to, the
    course of accuracy and loss over the rounds. `rows` are those of planting.csv."""
    info = growth_info(rows)
    widths = _courses([_widths(network) for network in info.networks])
    panels = {
        f"plants: fall of the loss as area (most: {_most(info):.2g} nats)": len(info.tried),
        "channels by layer": len(widths),
        "validation accuracy (%)": 5,
        "validation loss (cross-entropy, nats)": 5,
    }
    heights = [max(2, lines) * _LINE_PX for lines in panels.values()]
    inner = sum(heights) + _GAP_PX * (len(heights) - 1)
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        row_heights=heights,
        vertical_spacing=_GAP_PX / inner,
    )
    _draw_tries(figure, info, rows)
    _draw_widths(figure, widths)
    _draw_course(figure, info)
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    every = max(1, len(info.rounds) // 12)
    for row in (1, 3, 4):
        figure.update_xaxes(title_text="round", dtick=every, row=row, col=1)
    figure.update_xaxes(title_text="channels", rangemode="tozero", row=2, col=1)
    for row in (1, 2):
        figure.update_yaxes(
            autorange="reversed", type="category", showgrid=False, automargin=True, row=row, col=1
        )
    figure.update_layout(
        LAYOUT,
        title={"text": f"{escape(name)}: growth", "font": {"size": 16}},
        barmode="stack",
        margin={"l": 64, "r": 24, "t": _TOP_PX, "b": _BOTTOM_PX},
        height=inner + _TOP_PX + _BOTTOM_PX,
    )
    for number, title in enumerate(panels):
        top = figure.layout[f"yaxis{number + 1 if number else ''}"].domain[1]
        words = {"x": 0, "xanchor": "left", "xref": "paper", "yref": "paper", "showarrow": False}
        at = top + (34 if number < 2 else 8) / inner
        figure.add_annotation(text=title, y=at, yanchor="bottom", **words)
        legend = {"orientation": "h", "x": 0, "y": top + 4 / inner, "yanchor": "bottom"}
        figure.update_layout({f"legend{number + 1 if number else ''}": legend})
    return figure


def _most(info: GrowthInfo) -> float:
    """The largest change of the loss, whichever way."""
    changes = [abs(fall) for line in info.falls for fall in line if fall is not None]
    return max(changes, default=0.0)


def _draw_tries(figure: go.Figure, info: GrowthInfo, rows: Sequence[Mapping[str, Any]]) -> None:
    """A disc for each plant that was tried, its area the change of the loss."""
    by_place = {(int(row["round"]), row["layer"]): row for row in rows}
    accepted = set(info.accepted)
    kinds: dict[str, list[tuple[int, str, float]]] = {kind: [] for kind in _TRIES}
    for name, line in zip(info.tried, info.falls, strict=True):
        for number, fall in zip(info.rounds, line, strict=True):
            if fall is not None:
                kind = "better" if fall > 0 else "not better"
                kind = "accepted" if (number, name) in accepted else kind
                kinds[kind].append((number, name, fall))
    most = _most(info) or 1.0
    for kind, found in kinds.items():
        color, symbol = _TRIES[kind]
        if not found:
            continue
        figure.add_scatter(
            x=[number for number, _, _ in found],
            y=[name for _, name, _ in found],
            mode="markers",
            name=kind,
            marker={
                "symbol": symbol,
                "size": [6 + 16 * math.sqrt(abs(fall) / most) for _, _, fall in found],
                "color": color,
                "opacity": 1,
                "line": {"width": 2, "color": color},
            },
            customdata=[
                f"loss {'falls' if fall > 0 else 'rises'} by {abs(fall):.4f} nats<br>"
                + _told(by_place[number, name])
                for number, name, fall in found
            ],
            hovertemplate="<b>round %{x}, %{y}</b><br>%{customdata}<extra></extra>",
            row=1,
            col=1,
        )
    # Rows and rounds in their order, also of those in which a kind has nothing.
    figure.update_yaxes(categoryorder="array", categoryarray=info.tried, row=1, col=1)


def _draw_widths(figure: go.Figure, courses: Mapping[str, Sequence[int]]) -> None:
    """What each layer had and what it came to; those that did not grow say so."""
    layers = [escape(name) for name in courses]
    before = [course[0] for course in courses.values()]
    grown = [course[-1] - course[0] for course in courses.values()]
    told = [
        f"{first} \u2192 {first + more}" if more else f"{first}, not grown"
        for first, more in zip(before, grown, strict=True)
    ]
    bars = (("at the start", _START, before, None), ("planted", _PLANTED, grown, told))
    for name, color, lengths, text in bars:
        figure.add_bar(
            x=lengths,
            y=layers,
            orientation="h",
            name=name,
            marker_color=color,
            text=text,
            textposition="outside",
            cliponaxis=False,
            customdata=told,
            hovertemplate="%{y}: %{customdata} channels<extra></extra>",
            legend="legend2",
            row=2,
            col=1,
        )
    most = max((b + g for b, g in zip(before, grown, strict=True)), default=1)
    figure.update_xaxes(range=[0, most * 1.3], row=2, col=1)


def _draw_course(figure: go.Figure, info: GrowthInfo) -> None:
    along = [0, *info.rounds]
    hover = [_told(network) for network in info.networks]
    for row, key, label, color, factor in (
        (3, "val_accuracy", "accuracy", SERIES[0], 100),
        (4, "val_loss", "loss", SERIES[1], 1),
    ):
        figure.add_scatter(
            x=along,
            y=[network[key] * factor for network in info.networks],
            mode="lines+markers",
            name=label,
            showlegend=False,
            line={"color": color, "shape": "hv"},
            customdata=hover,
            hovertemplate="<b>after round %{x}</b><br>%{customdata}<extra></extra>",
            row=row,
            col=1,
        )


def _widths(row: Mapping[str, Any]) -> dict[str, int]:
    pairs = (part.rpartition("=") for part in row["widths"].split())
    return {layer: int(width) for layer, _, width in pairs}


def _courses(networks: Sequence[Mapping[str, int]]) -> dict[str, list[int]]:
    """The widths from network to network, by name: inner ones are their owners' where they are not
    given."""
    names = dict.fromkeys(name for widths in networks for name in widths)
    return {name: [width_in(widths, name) for widths in networks] for name in names}


def _told(row: Mapping[str, Any]) -> str:
    """What a hover says of a row of planting.csv."""
    return (
        f"{escape(row['widths'])}<br>{row['params']:,} parameters, {row['macs']:,} macs<br>"
        f"loss {row['val_loss']:.4f}, accuracy {100 * row['val_accuracy']:.2f} %<br>"
        f"{row['seconds']:.1f} s"
    )
