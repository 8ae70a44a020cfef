"""What figures are written as: a page, a part of one, a picture."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from planter.front.points import write_text
from planter.plots.pages import rendered

_KINDS = ("png", "svg", "pdf")
_WIDTH_PX, _HEIGHT_PX = 1000, 620


def write_html(figure: go.Figure, file: Path) -> None:
    """A page that needs nothing from the network."""
    # As text of the page it may take several lines, which a figure's title may not.
    drawn = figure_part(go.Figure(figure).update_layout(title=None, margin_t=30))
    page = rendered(
        "planter.plots",
        "figure.html",
        title=unescape(figure.layout.title.text),  # escaped for plotly, which reads it as HTML
        drawing_code=drawing_code(),
        figure=drawn,
    )
    write_text(file, page)


def drawing_code() -> str:
    """The script that the figures of a page need before them, once."""
    return f"<script>{get_plotlyjs()}</script>"


def figure_part(figure: go.Figure, height: str = "100%") -> str:
    """A figure as a part of a page; its own height, where it has one, stands."""
    part: str = figure.to_html(
        include_plotlyjs=False,
        full_html=False,
        default_height=height,
        config={"displaylogo": False, "responsive": True},
    )
    return part


def write_image(figure: go.Figure, file: Path, kind: str | None = None) -> None:
    """A picture of `kind` png, svg or pdf, by default told by the file's ending. Raises ValueError
    for another one, and where the machine cannot draw."""
    kind = kind or file.suffix.removeprefix(".").lower()
    if kind not in _KINDS:
        raise ValueError(f"{file.name}: a picture's ending is one of .{', .'.join(_KINDS)}")
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file")
    light = go.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white")
    height = light.layout.height or _HEIGHT_PX
    try:
        light.write_image(file, format=kind, width=_WIDTH_PX, height=height, scale=2)
    except Exception as error:  # kaleido and the browser it drives raise many kinds
        raise ValueError(
            f"cannot draw {file}: {error}. Pictures need `pip install planter[png]` and a Chrome "
            "or Chromium; the HTML and CSV need neither"
        ) from error
