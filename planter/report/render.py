"""Fills the report page's template: its figures, its tables, its texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from planter.front.certainty import interval_in
from planter.front.describe import reference_text
from planter.front.objectives import OBJECTIVES
from planter.plots import (
    HistoryLine,
    confusion_figure,
    curves_figure,
    drawing_code,
    figure_part,
    front_figure,
    growth_figure,
    history_figure,
    importance_figure,
    lineage_figure,
    links_to,
    untitled,
)
from planter.plots.pages import rendered
from planter.report.classes import classes_table, confused
from planter.report.contents import Chosen, Report, Table
from planter.report.tables import (
    advice_table,
    control_table,
    cost_table,
    data_tables,
    differences_table,
    front_table,
    lineage_table,
    pipelines_table,
    summary,
    versions_table,
)
from planter.study.quantities import duration


def page(report: Report) -> str:
    """The whole page as HTML; every text from outside is escaped."""
    return rendered(
        "planter.report",
        "report.html",
        report=replace(report, study=without_password(report.study)),
        front=report.run.front,
        title=f"{report.run.front['study']}: report",
        links=links_to(report.beside, "report.html"),
        cards=summary(report.run),
        wall=duration(report.run.elapsed),
        drawing_code=drawing_code(),
        figures=_figures(report),
        tables=_tables(report),
        data_tables=data_tables(account) if (account := report.run.front.get("data")) else [],
        over=_over(report.run.front["objectives"]),
        reference=reference_text(report.run.front),
        intervals=any(interval_in(row, "accuracy") for row in report.run.front["points"]),
        classes=[_classes(one, report.class_names) for one in report.chosen],
    )


def _over(objectives: Sequence[str]) -> str:
    """`accuracy (0 to 1) and log10 macs`: what a hypervolume counts."""
    told = [name.replace("_", " ") for name in objectives]
    for at, name in enumerate(objectives):
        if OBJECTIVES[name].logarithmic:
            told[at] = f"log10 {name}"
        elif OBJECTIVES[name].maximise:
            told[at] += " (0 to 1)"
    return " and ".join([", ".join(told[:-1]), told[-1]])


class Classes(NamedTuple):
    """What the page says of a chosen point's classes on some images."""

    images: str
    size: int
    figure: str
    table: Table
    confused: str


def _classes(chosen: Chosen, names: Sequence[str]) -> tuple[Chosen, list[Classes]]:
    shown = []
    for images, answers in chosen.answers.items():
        named = names if len(names) == answers.classes else [*map(str, range(answers.classes))]
        figure = figure_part(confusion_figure(answers.confusion(), named))
        table, told = classes_table(answers, named), confused(answers, named)
        shown.append(Classes(images, len(answers), figure, table, told))
    return chosen, shown


def without_password(text: str) -> str:
    """A study file's text with the passwords of storage URLs starred out."""
    # To the last @ of the line, as a password may hold one, or blanks.
    text = re.sub(r"(://[^\s:/@'\"]*):[^\n]+@", r"\1:***@", text)
    # As a parameter, to the next one or the end of the line, but for a quote that closes there.
    named = r"([?&;]\w*(?:password|passwd|pwd)=)[^&\n]*?(?=&|['\"]?[ \t]*(?:\n|$))"
    return re.sub(named, r"\1***", text, flags=re.IGNORECASE)


def _figures(report: Report) -> dict[str, str]:
    """The figures that there are, by section, as HTML."""
    runs = [report.run] if report.control is None else [report.run, report.control]
    front = untitled(front_figure([one.front for one in runs]))
    course = history_figure([HistoryLine(one.front["study"], one.steps) for one in runs])
    drawn = {"front": figure_part(front, "540px"), "course": figure_part(course, "600px")}
    if report.growth:
        growth = growth_figure(report.run.front["study"], report.growth)
        drawn["planting"] = figure_part(untitled(growth))
    if (curves := curves_figure(report.curves)) is not None:
        drawn["curves"] = figure_part(curves)
    if any(row.get("parent") for row in report.run.front["points"]):
        lineages = lineage_figure(report.run.front["points"], report.run.front["objectives"])
        drawn["lineage"] = figure_part(lineages, "540px")
    if report.importances is not None:
        drawn["parameters"] = figure_part(importance_figure(report.importances.shares))
    return drawn


def _tables(report: Report) -> dict[str, Table]:
    """The tables that there are, by section."""
    tables = {
        "advice": advice_table(report.run.front, report.place),
        "front": front_table(report.run.front, report.place),
        "pipelines": pipelines_table(report.run.front),
        "cost": cost_table(report.run),
        "versions": versions_table(report.environment),
        "lineage": lineage_table(report.run.front),
    }
    if report.control is not None:
        tables["control"] = control_table(report.run, report.control)
    if report.comparison is not None:
        tables["differences"] = differences_table(report.comparison.differences)
    return tables
