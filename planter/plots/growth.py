"""The figure of planting: how a network grew, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planter.arch import width_in
from planter.plots.style import AXIS, LAYOUT


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
            "fall of the loss by plant (ringed: accepted)",
            "widths that grew",
            "its validation loss and accuracy",
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
    for layer, course in _grown(widths).items():
        figure.add_bar(
            x=along,
            y=course,
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
    figure.update_xaxes(**AXIS, dtick=max(1, len(info.rounds) // 15))
    figure.update_yaxes(**AXIS)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    figure.update_yaxes(title_text="channels", row=2, col=1)
    figure.update_yaxes(title_text="loss", row=3, col=1)
    figure.update_yaxes(
        title_text="accuracy (%)", row=3, col=1, secondary_y=True, showgrid=False, tickmode="auto"
    )
    figure.update_xaxes(title_text="round", row=3, col=1)
    figure.update_layout(
        LAYOUT,
        title={"text": f"{escape(name)}: growth", "font": {"size": 16}},
        barmode="stack",
        legend={"y": 0.5, "yanchor": "middle"},
        margin={"l": 80, "r": 30, "t": 80, "b": 60},
    )
    return figure


def _widths(row: Mapping[str, Any]) -> dict[str, int]:
    pairs = (part.rpartition("=") for part in row["widths"].split())
    return {layer: int(width) for layer, _, width in pairs}


def _grown(networks: Sequence[Mapping[str, int]]) -> dict[str, list[int]]:
    """The widths that grew, from network to network, by name: inner ones are their owners' where
    they are not given."""
    names = dict.fromkeys(name for widths in networks for name in widths)
    courses = {name: [width_in(widths, name) for widths in networks] for name in names}
    return {name: course for name, course in courses.items() if len(set(course)) > 1}


def _told(row: Mapping[str, Any] | None) -> str:
    """What a hover says of a row of planting.csv."""
    if row is None:
        return ""
    return (
        f"{escape(row['widths'])}<br>{row['params']:,} parameters, {row['macs']:,} macs<br>"
        f"loss {row['val_loss']:.4f}, accuracy {100 * row['val_accuracy']:.2f} %<br>"
        f"{row['seconds']:.1f} s"
    )
