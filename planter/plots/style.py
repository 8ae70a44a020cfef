"""Colours and layout that all figures share."""

from __future__ import annotations

from typing import Any, NamedTuple

from planter.front.methods import METHODS


class Look(NamedTuple):
    """How a kind of point is named and drawn."""

    label: str
    color: str
    symbol: str


_PIPELINE = Look("sampled, pipeline", "#8a4fd0", "diamond")


def looks() -> dict[str, Look]:
    """By method, and "pipeline" for those of a sampled trial beside its base; in the order of
    legends: what is searched for, then what that is compared with."""
    every = {name: Look(m.label, m.color, m.symbol) for name, m in METHODS.items()}
    searched = {name: look for name, look in every.items() if METHODS[name].searched}
    return {**searched, "pipeline": _PIPELINE, **every}


def look_of(kind: str) -> Look:
    """How points of a kind are drawn; also of a method that is not known here."""
    return looks().get(kind, Look(kind, INK, "circle"))


RUNS = ("#7d8590", "#e07b00", "#00909e", "#b5467f")
"""Colours of the first lines, one a run."""
DASHES = ("solid", "dash", "dot", "dashdot")
INK, GRID = "#7d8590", "rgba(128,136,148,0.25)"  # both readable on white and on black
AXIS: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "linecolor": INK}
LAYOUT: dict[str, Any] = {
    "font": {"color": INK, "size": 14},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    # Hovers are read on any page: dark on light, whatever a point's colour is.
    "hoverlabel": {
        "bgcolor": "#ffffff",
        "bordercolor": INK,
        "font": {"color": "#1c2128", "size": 13},
        "align": "left",
    },
}
