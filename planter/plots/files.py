"""What figures are written as: a page, a part of one, a picture."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.io import templates, to_json

from planter.front.points import write_text
from planter.plots.pages import links_to, rendered
from planter.plots.style import INK_ON_WHITE

_KINDS = ("png", "svg", "pdf")
_WIDTH_PX, _HEIGHT_PX = 1000, 620
_TITLE_PX = 30


def write_html(figure: go.Figure, file: Path, beside: Iterable[str] = ()) -> None:
    """A page that needs nothing from the network, with links to those of the files `beside` it, by
    name, that are for people."""
    write_text(file, figure_page(figure, file.name, beside))


def figure_page(figure: go.Figure, name: str, beside: Iterable[str] = ()) -> str:
    """The text of such a page of that name."""
    return rendered(
        "planter.plots",
        "figure.html",
        title=unescape(figure.layout.title.text),  # escaped for plotly, which reads it as HTML
        links=links_to(beside, name),
        drawing_code=drawing_code(),
        figure=figure_part(untitled(figure)),
    )


def untitled(figure: go.Figure) -> go.Figure:
    """A figure without its title, for a page that has it as text: that may take several lines."""
    plain = go.Figure(figure)
    plain.update_layout(title=None, margin_t=max(figure.layout.margin.t - _TITLE_PX, 0))
    if figure.layout.height is not None:
        plain.update_layout(height=figure.layout.height - _TITLE_PX)
    return plain


@cache
def drawing_code() -> str:
    """The script that draws the figures of a page, once a page: plotly.js for cartesian figures,
    packed by gzip, in base64."""
    packed = files("planter.plots") / "vendored" / "plotly-cartesian.min.js.gz"
    return b64encode(packed.read_bytes()).decode()


@cache
def _bare() -> dict[str, Any]:
    template: dict[str, Any] = templates["none"].to_plotly_json()
    return template


def figure_part(figure: go.Figure, height: str = "100%") -> str:
    """A figure as a part of a page, whose script draws it; its own height, where it has one,
    stands."""
    own = figure.layout.height
    height = height if own is None else f"{own:.0f}px"
    drawn = figure.to_dict()  # a figure is checked anew by each copy of it, its template as well
    text = str(to_json({**drawn, "layout": {**drawn["layout"], "template": _bare()}}, False))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    data = f'<script type="application/json">{text}</script>'
    return f'<div class="figure" style="height:{height}">{data}</div>'


def write_image(figure: go.Figure, file: Path, kind: str | None = None) -> None:
    """A picture of `kind` png, svg or pdf, by default told by the file's ending. Raises ValueError
    for another one, and where the machine cannot draw."""
    kind = kind or file.suffix.removeprefix(".").lower()
    if kind not in _KINDS:
        raise ValueError(f"{file.name}: a picture's ending is one of .{', .'.join(_KINDS)}")
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file")
    light = go.Figure(figure)
    light.update_layout(paper_bgcolor="white", plot_bgcolor="white", font_color=INK_ON_WHITE)
    height = light.layout.height or _HEIGHT_PX
    try:
        light.write_image(file, format=kind, width=_WIDTH_PX, height=height, scale=2)
    except Exception as error:  # kaleido and the browser it drives raise many kinds
        raise ValueError(
            f"cannot draw {file}: {error}. Pictures need `pip install planter[png]` and a Chrome "
            "or Chromium; the HTML and CSV need neither"
        ) from error
