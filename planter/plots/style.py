"""Colours and layout that all figures share."""

from __future__ import annotations

from typing import Any, NamedTuple

from planter.methods import METHODS


class Look(NamedTuple):
    """How a kind of point is named and drawn."""

    label: str
    color: str
    symbol: str


def _looks(*, searched: bool) -> dict[str, Look]:
    return {
        name: Look(method.label, method.color, method.symbol)
        for name, method in METHODS.items()
        if method.searched == searched
    }


LOOKS = {
    **_looks(searched=True),
    "pipeline": Look("sampled, pipeline", "#8a4fd0", "diamond"),
    **_looks(searched=False),
}
"""By method, and of a sampled trial's pipelines beside its base; in the order of legends."""
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
