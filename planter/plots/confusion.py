"""The figure of a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from planter.plots.style import AXIS, LAYOUT

_NUMBERS = 12
"""Classes up to which each cell shows its number."""
_NAMES = 25
"""Names along an axis at most; the others are in the hovers."""
_LONGEST = 14
_BLUE = "43,108,212"
# Faint at once: of a hundred images of a class one that is confused shall be seen.
_SHADES = [(0.0, 0.0), (1e-6, 0.1), (0.05, 0.25), (0.25, 0.5), (1.0, 0.7)]


def confusion_figure(confusion: NDArray[np.int64], names: Sequence[str]) -> go.Figure:
    """Images `[label, predicted]` as shaded cells, the shade being the share of the label's images;
    the first class on top and to the left. `names` are those of the classes."""
    classes = len(confusion)
    images = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(images, 1)
    shown = [escape(_short(name)) for name in names]
    whole = [escape(name) for name in names]
    every = range(0, classes, math.ceil(classes / _NAMES))
    figure = go.Figure()
    figure.add_heatmap(
        z=shares.round(4),
        x=list(range(classes)),
        y=list(range(classes)),
        zmin=0,
        zmax=1,
        colorscale=[[at, f"rgba({_BLUE},{alpha})"] for at, alpha in _SHADES],
        showscale=False,
        xgap=1 if classes <= _NAMES else 0,
        ygap=1 if classes <= _NAMES else 0,
        text=[
            [
                f"{whole[label]}: {number:,} of {images[label, 0]:,} taken for {whole[answer]} "
                f"({shares[label, answer]:.1%})"
                if number
                else ""  # of many classes most are, and a page holds them all
                for answer, number in enumerate(row)
            ]
            for label, row in enumerate(confusion)
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    if classes <= _NUMBERS:
        # All at once: plotly looks at all that are there for each one that is added.
        figure.update_layout(
            annotations=[
                {
                    "x": answer,
                    "y": label,
                    "text": f"{number:,}",
                    "showarrow": False,
                    "font": {"size": 13},
                }
                for label, row in enumerate(confusion)
                for answer, number in enumerate(row)
                if number
            ]
        )
    ticks = {"tickvals": list(every), "ticktext": [shown[at] for at in every]}
    axis = {**AXIS, **ticks, "showgrid": False, "ticks": "", "range": [-0.5, classes - 0.5]}
    figure.update_xaxes(**axis, title={"text": "answer"}, tickangle=0 if classes < 5 else -90)
    figure.update_yaxes(**{**axis, "range": [classes - 0.5, -0.5]}, title={"text": "label"})
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    height = min(max(34 * classes + 130, 260), 560)
    figure.update_layout(LAYOUT, margin={"l": 10, "r": 10, "t": 10, "b": 10}, height=height)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
