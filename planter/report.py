"""The report page of a run: one file that needs nothing from the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from planter.course import Step, Stopped
from planter.methods import METHODS, is_searched
from planter.plots import (
    CourseLine,
    course_figure,
    drawing_code,
    figure_part,
    front_figure,
    growth_figure,
    importance_figure,
)
from planter.report_style import SCRIPT, STYLE
from planter.tables import duration

Row = Sequence[object]


@dataclass(frozen=True)
class Importances:
    """How much each parameter decided `target` over `trials` finished sampled trials."""

    shares: Mapping[str, float]
    target: str
    trials: int


@dataclass(frozen=True)
class Facts:
    """A run as a report shows it: its pareto.json with the networks in words, its course, what its
    trainings took by method, which were stopped, how many failed. Of a control, by the reference
    point of the run it stands beside."""

    front: Mapping[str, Any]
    steps: Sequence[Step]
    seconds: Mapping[str, float]
    stopped: Sequence[Stopped]
    failed: int


@dataclass(frozen=True)
class Comparison:
    """How a second run stands to this one: whether it is its random control, has the same images,
    and what the studies differ in, as key, value here, value there."""

    control: bool
    same_images: bool
    differences: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Report:
    """All that the page says. `comparison` is that with `control`, a second run; `standing` tells
    why a run is not finished; `importances` is None below `enough` trials; `growth` are the rows of
    planting.csv."""

    run: Facts
    control: Facts | None
    growth: Sequence[Mapping[str, Any]]
    importances: Importances | None
    enough: int
    standing: str | None
    study: str
    environment: Mapping[str, Any]
    comparison: Comparison | None = None


def page(report: Report) -> str:
    """The whole page as HTML; every text from outside is escaped."""
    name = escape(report.run.front["study"])
    parts = [
        _summary(report),
        _front(report),
        _course(report),
        _control(report),
        _growth(report),
        _importances(report),
        _pipelines(report.run.front),
        _cost(report.run),
        _data(report.run.front.get("data")),
        _section("study", "Study file", f"<pre>{escape(without_password(report.study))}</pre>"),
        _versions(report.environment),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: report'
        '</title>\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n{drawing_code()}</head>\n<body><main>\n<h1>{name}</h1>\n"
        f"{''.join(parts)}</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def without_password(text: str) -> str:
    """A study file's text with the passwords of storage URLs starred out."""
    # To the last @ of the line, as a password may hold one, or blanks.
    text = re.sub(r"(://[^\s:/@'\"]*):[^\n]+@", r"\1:***@", text)
    # As a parameter, to the next one or the end of the line, but for a quote that closes there.
    named = r"([?&;]\w*(?:password|passwd|pwd)=)[^&\n]*?(?=&|['\"]?[ \t]*(?:\n|$))"
    return re.sub(named, r"\1***", text, flags=re.IGNORECASE)


def _section(anchor: str, title: str, *parts: str) -> str:
    return f'<section id="{anchor}"><h2>{title}</h2>\n' + "\n".join(parts) + "</section>\n"


def _table(columns: Sequence[str], rows: Sequence[Row], words: Sequence[str] = ()) -> str:
    """A table whose first column and those named `words` are text; the others are numbers, set to
    the right."""
    looks = ["" if at == 0 or name in words else " class=n" for at, name in enumerate(columns)]

    def cells(row: Row, tag: str) -> str:
        return "".join(
            f"<{tag}{look}>{escape(str(cell))}</{tag}>"
            for cell, look in zip(row, looks, strict=True)
        )

    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(columns, 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>\n{body}</tbody></table></div>'


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _summary(report: Report) -> str:
    front, cost = report.run.front, report.run.front["cost"]
    kept = [row for row in front["points"] if row["on_front"]]
    best = max(kept, key=lambda row: row["accuracy"], default=None)
    cards = [
        ("on the front", f"{len(kept)} of {len(front['points'])} points"),
        (
            "most accurate",
            "none" if best is None else f"{_percent(best['accuracy'])} ({best['id']})",
        ),
        ("hypervolume", f"{front['hypervolume']:.4f}"),
        ("trainings", f"{cost['trials']:,}"),
        ("training multiply-adds", f"{cost['train_macs']:.3g}"),
        ("time of all workers", duration(cost["seconds"])),
    ]
    shown = "".join(
        f"<div><dt>{label}</dt><dd>{escape(value)}</dd></div>" for label, value in cards
    )
    standing = f'<p class="note">{escape(report.standing)}</p>' if report.standing else ""
    return f"{standing}<dl>{shown}</dl>\n"


def _front(report: Report) -> str:
    fronts = [report.run.front]
    if report.control is not None:
        fronts.append(report.control.front)
    figure = front_figure(fronts).update_layout(title=None, margin_t=20)
    front = report.run.front
    shown = [r for r in front["points"] if r["on_front"] or not is_searched(r["method"])]
    latency = any(row.get("latency_ms") is not None for row in shown)
    rows = [
        [
            ("* " if row["on_front"] else "") + row["id"],
            row["method"],
            _percent(row["accuracy"]),
            _percent(row["test_accuracy"]),
            f"{row['macs']:,}",
            f"{row['params']:,}",
            *([f"{row['latency_ms']:.3g}" if row.get("latency_ms") else ""] if latency else []),
            "; ".join(row["network"]),
        ]
        for row in shown
    ]
    columns = ["point", "method", "validation", "test", "macs", "parameters"]
    columns += [*(["latency (ms)"] if latency else []), "network"]
    empty = (
        ""
        if any(row["on_front"] for row in front["points"])
        else (
            '<p class="note">The front is empty: no searched network has finished, or none keeps '
            "to the study's bounds.</p>"
        )
    )
    return _section(
        "front",
        "Front",
        empty,
        figure_part(figure, "540px"),
        "<p>* on the front; teacher and baselines stand beside it. Validation images select; test "
        "images were read once, at the end. macs: multiply-adds of convolutions and linear layers "
        "for one image.</p>",
        _table(columns, rows, words=("point", "method", "network")),
    )


def _course(report: Report) -> str:
    lines = [CourseLine(report.run.front["study"], report.run.steps)]
    if report.control is not None:
        lines.append(CourseLine(report.control.front["study"], report.control.steps))
    accuracy, macs = report.run.front["reference_point"]
    return _section(
        "course",
        "Hypervolume",
        figure_part(course_figure(lines), "600px"),
        f"<p>Over accuracy (0 to 1) and log10 macs, from the reference point ({accuracy:.3g}, "
        f"{macs:,.0f} macs). Trainings in the order in which they were written, teacher and "
        "baselines among them, and those that were stopped early when they had taken what they "
        "took; a round of planting is written when it is decided. Trainings that failed "
        f"({report.run.failed}) count only with what they took up to a comparison.</p>",
    )


def _control(report: Report) -> str:
    name = escape(report.run.front["study"])
    if report.control is None:
        how = (
            f"<p>None found. A second run, <code>--set name={name}-random --set "
            "sample.sampler=random</code>, is laid beside this one when the report is written "
            f"anew: <code>planter report {name}</code>.</p>"
        )
        return _section("control", "Random control", how)
    both = (report.run, report.control)
    rows: list[list[object]] = [
        ["hypervolume", *(f"{one.steps[-1].hypervolume:.4f}" for one in both)],
        ["points on the front", *(sum(r["on_front"] for r in one.front["points"]) for one in both)],
        ["most accurate searched point", *(_percent(_best(one.front)) for one in both)],
        ["trainings", *(f"{one.front['cost']['trials']:,}" for one in both)],
        ["training multiply-adds", *(f"{one.front['cost']['train_macs']:.3g}" for one in both)],
        ["time of all workers", *(duration(one.front["cost"]["seconds"]) for one in both)],
    ]
    columns = ["", *(one.front["study"] for one in both)]
    title, notes = _standing_of(report)
    return _section(
        "control",
        title,
        *notes,
        _table(columns, rows),
        "<p>Both hypervolumes from this run's reference point. One run each: a difference may be "
        "chance.</p>",
    )


def _standing_of(report: Report) -> tuple[str, list[str]]:
    """The title of the section on a second run, and what it differs in unless it is a control."""
    comparison = report.comparison
    if comparison is None or comparison.control:
        return "Random control", []
    notes = [
        "<p>No random control: it would differ in nothing but the sampler, which is random.</p>"
    ]
    if not comparison.same_images:
        notes.append(
            '<p class="note">The two runs have different images or labels: an accuracy, or a '
            "hypervolume, of one says nothing about that of the other.</p>"
        )
    if not comparison.differences:
        notes.append("<p>It is the same study once more.</p>")
    else:
        columns = ["differs in", "this run", "the second run"]
        notes.append(_table(columns, list(comparison.differences), words=columns))
    return "Second run", notes


def _best(front: Mapping[str, Any]) -> float | None:
    searched = [r["accuracy"] for r in front["points"] if is_searched(r["method"])]
    return max(searched, default=None)


def _growth(report: Report) -> str:
    if not report.growth:
        return ""
    figure = growth_figure(report.run.front["study"], report.growth)
    figure.update_layout(title=None, margin_t=30)
    return _section("planting", "Planting", figure_part(figure, "820px"))


def _importances(report: Report) -> str:
    found = report.importances
    if found is None:
        return _section(
            "parameters",
            "Parameter importances",
            f"<p>Shown from {report.enough} finished sampled trials on, where they share "
            "parameters and their values differ.</p>",
        )
    rough = " With so few, a rough guide." if found.trials < 50 else ""
    return _section(
        "parameters",
        "Parameter importances",
        figure_part(importance_figure(found.shares)),
        f"<p>Share of the variance of {escape(found.target)} that each parameter explains "
        f"(fANOVA, {found.trials} finished sampled trials; only parameters that every trial has)."
        f"{rough}</p>",
    )


def _pipelines(front: Mapping[str, Any]) -> str:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in front["points"]:
        if is_searched(row["method"]):
            drawn = row["method"] == "sample"
            how = "" if drawn else f" ({METHODS[row['method']].label})"
            groups.setdefault(f"{row['pipeline']}{how}", []).append(row)
    rows = []
    for name in sorted(groups, key=lambda name: (not name.startswith("base"), name)):
        points = groups[name]
        best = max(points, key=lambda row: (row["accuracy"], -row["macs"]))
        rows.append(
            [
                name,
                len(points),
                sum(row["on_front"] for row in points),
                _percent(best["accuracy"]),
                f"{best['macs']:,}",
                _percent(median(row["accuracy"] for row in points)),
                f"{min(row['macs'] for row in points):,}",
            ]
        )
    columns = [
        "pipeline", "points", "on the front", "best accuracy", "of macs", "median accuracy",
        "fewest macs",
    ]  # fmt: skip
    return _section("pipelines", "Pipelines", _table(columns, rows))


def _cost(run: Facts) -> str:
    trials: dict[str, dict[str, int]] = {}
    points: dict[str, int] = {}
    for row in run.front["points"]:
        trials.setdefault(row["method"], {})[row["trial"]] = row["train_macs"]
        points[row["method"]] = points.get(row["method"], 0) + 1
    rows: list[list[object]] = [
        [
            method,
            f"{len(costs):,}",
            f"{points[method]:,}",
            f"{sum(costs.values()):.3g}",
            duration(run.seconds.get(method, 0.0)),
        ]
        for method, costs in trials.items()
    ]
    if run.stopped:
        took = sum(one.train_macs for one in run.stopped)
        lasted = duration(sum(one.seconds for one in run.stopped))
        named = "sample, stopped early or under way"
        rows.append([named, f"{len(run.stopped):,}", "0", f"{took:.3g}", lasted])
    cost = run.front["cost"]
    total = [f"{cost['trials']:,}", f"{len(run.front['points']):,}", f"{cost['train_macs']:.3g}"]
    rows.append(["all", *total, duration(cost["seconds"])])
    columns = ["method", "trainings", "points", "training multiply-adds", "time of all workers"]
    return _section(
        "cost",
        "What the search cost",
        _table(columns, rows),
        f"<p>{run.failed} trainings failed; they count only with what they took up to a comparison "
        "with others.</p>"
        if run.failed
        else "",
    )


def _data(account: Mapping[str, Any] | None) -> str:
    """What was read to make the images; empty for runs of a planter that did not tell."""
    if account is None:
        return ""
    size = " x ".join(map(str, account["image"]))
    parts = [
        f"<p>{len(account['classes'])} classes, images of {size} ({escape(account['pixels'])}). "
        f"Validation: {escape(account['validation_from'])}. "
        f"Test: {escape(account['test_from'])}.</p>",
        *(f'<p class="note">{escape(text)}</p>' for text in account["warnings"]),
        *(f"<p>{escape(text)}</p>" for text in account["notes"]),
    ]
    kinds = ["train", "validation", "test"]
    rows: list[list[object]] = [
        [name, *(f"{counts[kind]:,}" for kind in kinds)]
        for name, counts in account["classes"].items()
    ]
    rows.append(["all", *(f"{account[kind]:,}" for kind in kinds)])
    parts.append(_table(["class", "training", "validation", "test"], rows))
    left = [
        [one["ending"] or "none", f"{one['files']:,}", one["reason"]] for one in account["skipped"]
    ]
    if left:
        parts.append(
            _table(["files skipped, by ending", "files", "reason"], left, words=["reason"])
        )
    left = [[one["folder"], f"{one['files']:,}", one["reason"]] for one in account["ignored"]]
    if left:
        parts.append(_table(["folders ignored", "files", "reason"], left, words=["reason"]))
    return _section("data", "Data", *parts)


def _versions(environment: Mapping[str, Any]) -> str:
    rows = [[name, version] for name, version in environment.get("versions", {}).items()]
    shown_above = ("versions", "class_names")
    rows += [[key, value] for key, value in environment.items() if key not in shown_above]
    return _section("versions", "Versions", _table(["name", "value"], rows, words=["value"]))
