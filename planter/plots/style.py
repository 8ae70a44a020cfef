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


# Every colour of a mark stands out from white and from the dark paper of pages by a ratio of 3 or
# more (WCAG 2.2, 1.4.11); a test computes it.
RUNS = ("#7d8590", "#c96a00", "#00838f", "#b5467f")
"""Colours of lines, one a run, of the first runs."""
SERIES = ("#2b6cd4", "#d1495b", "#1b9e4b", "#8a4fd0", "#c96a00", "#00838f")
"""Colours of what is drawn beside one another and has none of its own."""
BOUND, BEYOND = "#c44d16", "rgba(196,77,22,0.10)"
"""The line at a bound, and the ground beyond it."""
DASHES = ("solid", "dash", "dot", "dashdot")
INK, GRID = "#7d8590", "rgba(128,136,148,0.25)"  # both readable on white and on black
INK_ON_WHITE = "#1c2128"
"""Of texts where the ground is known: INK is for both, and too faint for reading on either."""
AXIS: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "linecolor": INK}
LAYOUT: dict[str, Any] = {
    "font": {"color": INK, "size": 14},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    # Hovers are read on any page: dark on light, whatever a point's colour is.
    "hoverlabel": {
        "bgcolor": "#ffffff",
        "bordercolor": INK,
        "font": {"color": INK_ON_WHITE, "size": 13},
        "align": "left",
    },
}
