"""Figures of a run, and the pages and pictures they become. Only here Plotly is imported."""

from planter.plots.course import CourseLine, course_figure, importance_figure
from planter.plots.files import drawing_code, figure_part, write_html, write_image
from planter.plots.front import FrontInfo, Series, front_figure, front_info
from planter.plots.growth import GrowthInfo, growth_figure, growth_info

__all__ = [
    "CourseLine",
    "FrontInfo",
    "GrowthInfo",
    "Series",
    "course_figure",
    "drawing_code",
    "figure_part",
    "front_figure",
    "front_info",
    "growth_figure",
    "growth_info",
    "importance_figure",
    "write_html",
    "write_image",
]
