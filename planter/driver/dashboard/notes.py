"""What the dashboard shows beside Optuna's own pages: the study's note, plots, learning curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from planter.driver.run_folder.read import points_in, read_growth, stopped_in
from planter.driver.storage.reading import run_study
from planter.front.certainty import value_text
from planter.front.describe import with_networks
from planter.front.history import history
from planter.front.methods import METHODS, is_searched
from planter.front.objectives import OBJECTIVES
from planter.front.reranked import corners
from planter.plots import HistoryLine, front_figure, growth_figure, history_figure
from planter.plots.svg import Line, chart


def study_note(front: Mapping[str, Any], picture: str) -> str:
    """The front as Markdown: a picture at its address, a table, what it cost."""
    rows = [row for row in front["points"] if row["on_front"]]
    metric, *costs = front["objectives"]
    further = [name for name in costs if name not in ("macs", "params")]
    table = "\n".join(
        f"| {row['id']} | {row['method']} | {value_text(row, metric, headed=True)} "
        f"| {row['macs']:,} | {row['params']:,} |"
        + "".join(f" {OBJECTIVES[name].cell(row[name])} |" for name in further)
        for row in rows
    )
    cost = front["cost"]
    return (
        f"## {front['study']}\n\n{len(rows)} of {len(front['points'])} points on the front, "
        f"hypervolume {front['hypervolume']:.4f}; {cost['trials']} trainings, "
        f"{cost['train_macs']:.3g} training multiply-adds.\n\n![the front]({picture})\n\n"
        f"| point | method | validation {OBJECTIVES[metric].short} | macs | parameters |"
        + "".join(f" {OBJECTIVES[name].short} |" for name in further)
        + f"\n|{'---|' * (5 + len(further))}\n{table}\n\n"
        "planter's own pages: [report](/planter/report.html), [front](/planter/pareto.html). "
        "Plots with hovers stand under History; each trial has its architecture and learning "
        "curve as artifacts. (`planter dashboard` writes this note until somebody edits it.)\n"
    )


def study_picture(front: Mapping[str, Any]) -> str:
    """The metric against the first cost as SVG, the front as a step line."""
    points = front["points"]
    metric, cost, *_ = front["objectives"]
    factor = OBJECTIVES[metric].factor

    def places(rows: list[Mapping[str, Any]]) -> list[tuple[float, float]]:
        return [(row[cost], factor * row[metric]) for row in rows]

    best = [(x, factor * y) for x, y in corners(points, cost, metric)]
    searched = [row for row in points if is_searched(row["method"])]
    beside = [row for row in points if not is_searched(row["method"])]
    return chart(
        [
            Line("front", best, METHODS["plant"].color, "step"),
            Line("searched", places(searched), METHODS["sample"].color, "points"),
            Line("teacher, baselines", places(beside), METHODS["teacher"].color, "points"),
        ],
        cost,
        OBJECTIVES[metric].title,
        log=True,
    )


def study_plots(run: Path, front: Mapping[str, Any], storage: BaseStorage) -> dict[str, str]:
    """The report's figures as Plotly JSON, by name."""
    study = run_study(run)
    points = points_in(storage, study.name)
    reference, limits = front["reference_point"], study.objectives.bounds.limits()
    stopped = stopped_in(storage, study.name)
    steps = history(points, reference, limits, stopped, front["objectives"])
    line = HistoryLine(study.name, steps)
    figures = {"front": front_figure([with_networks(front, points)])}
    figures["hypervolume"] = history_figure([line])
    if rows := read_growth(run):
        figures["planting"] = growth_figure(study.name, rows).update_layout(title_text="")
    # The dashboard's own paper is white in one theme and dark in the other, ours is neither.
    return {name: figure.to_json() for name, figure in figures.items()}


def learning_curve(metrics: Path) -> str:
    """The training loss over the epochs of a metrics.jsonl as SVG, and the one on the validation
    images where there were validations on the way."""
    found: dict[str, list[tuple[float, float]]] = {"loss": [], "val_loss": []}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # the last one, under the hands of who writes it
            epoch = json.loads(line)
            for key, points in found.items():
                if epoch.get(key) is not None:  # as the loss is of an epoch that has diverged
                    points.append((epoch["epoch"], epoch[key]))
    training, validation = found.values()
    lines = [Line("training" if validation else "", training, METHODS["sample"].color)]
    if validation:
        lines.append(Line("validation", validation, METHODS["teacher"].color))
    return chart(lines, "epoch", "loss" if validation else "training loss")
