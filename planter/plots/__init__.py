"""Figures of a run, and the pages and pictures they become. Only here Plotly is imported."""

from plotly.graph_objects import Figure

from planter.plots.confusion import confusion_figure
from planter.plots.curves import Curve, curves_figure
from planter.plots.files import (
    drawing_code,
    figure_page,
    figure_part,
    untitled,
    write_html,
    write_image,
)
from planter.plots.front import FrontInfo, Series, front_figure, front_info
from planter.plots.growth import GrowthInfo, growth_figure, growth_info
from planter.plots.history import HistoryLine, history_figure, importance_figure
from planter.plots.lineage import lineage_figure
from planter.plots.pages import LINKS, links_to

__all__ = [
    "LINKS",
    "Curve",
    "Figure",
    "FrontInfo",
    "GrowthInfo",
    "HistoryLine",
    "Series",
    "confusion_figure",
    "curves_figure",
    "drawing_code",
    "figure_page",
    "figure_part",
    "front_figure",
    "front_info",
    "growth_figure",
    "growth_info",
    "history_figure",
    "importance_figure",
    "lineage_figure",
    "links_to",
    "untitled",
    "write_html",
    "write_image",
]
