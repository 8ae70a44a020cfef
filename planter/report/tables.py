"""The tables of a report page, from what its run says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from planter.front.certainty import value_text
from planter.front.choose import best_of, recommended
from planter.front.lineage import edits_text
from planter.front.methods import METHODS, is_searched
from planter.front.objectives import OBJECTIVES, metric_merit
from planter.report.contents import Facts, Row, Table
from planter.study.quantities import duration


def summary(run: Facts) -> list[tuple[str, str]]:
    """The cards on top of the page: what, and how much of it."""
    front = run.front
    cost, objectives = front["cost"], front["objectives"]
    kept = [row for row in front["points"] if row["on_front"]]
    most = "none"
    if kept:
        best = best_of(kept, objectives)
        most = f"{value_text(best, objectives[0])} ({best['id']})"
    return [
        ("on the front", f"{len(kept)} of {len(front['points'])} points"),
        (_best(objectives), most),
        ("hypervolume", f"{front['hypervolume']:.4f}"),
        ("trainings", f"{cost['trials']:,}"),
        ("training multiply-adds", f"{cost['train_macs']:.3g}"),
        ("wall time", duration(run.elapsed)),
        ("time of all workers", duration(cost["seconds"])),
    ]


def _best(objectives: Sequence[str]) -> str:
    metric = objectives[0]
    return "most accurate" if metric == "accuracy" else f"best {OBJECTIVES[metric].short}"


def load_line(place: str | None, row: Mapping[str, Any]) -> str:
    """The line of Python that loads a point's network, after `import planter`; empty where its
    weights are not kept. `place` is the run folder."""
    kept = place is not None and row.get("model") is not None
    return f"planter.open_run({place!r}).load({row['id']!r})" if kept else ""


def front_table(front: Mapping[str, Any], place: str | None = None) -> Table:
    """The points on the front, and what they are compared with; how to load them from the run
    folder at `place`."""
    shown = [r for r in front["points"] if r["on_front"] or not is_searched(r["method"])]
    metric, *costs = front["objectives"]
    beside = [] if metric == "accuracy" else ["accuracy"]
    latency = any(row.get("latency_ms") is not None for row in shown)
    size = "bytes" in costs
    born = any(row.get("parent") for row in shown)
    rows = [
        [
            ("* " if row["on_front"] else "") + row["id"],
            row["method"],
            value_text(row, metric, headed=True),
            value_text(row, metric, "test_", headed=True),
            *(value_text(row, name) for name in beside),
            f"{row['macs']:,}",
            f"{row['params']:,}",
            *([f"{row['bytes']:,}"] if size else []),
            *([f"{row['latency_ms']:.3g}" if row.get("latency_ms") else ""] if latency else []),
            *([_born(row)] if born else []),
            "; ".join(row["network"]),
            *([load_line(place, row)] if place is not None else []),
        ]
        for row in shown
    ]
    named = "" if metric == "accuracy" else f" {OBJECTIVES[metric].short}"
    columns = ["point", "method", f"validation{named}", f"test{named}", *beside]
    columns += ["macs", "parameters"]
    columns += [*(["bytes"] if size else []), *(["latency (ms)"] if latency else [])]
    columns += [*(["made of"] if born else []), "network"]
    columns += ["load it (after import planter)"] if place is not None else []
    words = ("point", "method", "made of", "network")
    return Table(columns, rows, words=words, code=columns[-1:] if place else (), sortable=True)


def _born(row: Mapping[str, Any]) -> str:
    """A point's parent and what was done to it."""
    return f"{row['parent']}: {edits_text(row['edits'])}" if row.get("parent") else ""


def advice_table(front: Mapping[str, Any], place: str | None) -> Table:
    """Which points to take, and why."""
    metric, *costs = front["objectives"]
    rows = [
        [
            row["id"],
            why,
            value_text(row, metric, headed=True),
            *(OBJECTIVES[name].cell(row[name]) for name in costs),
            load_line(place, row),
        ]
        for row, why in recommended(front)
    ]
    short = [OBJECTIVES[name].short for name in costs]
    columns = ["point", "because", f"validation {OBJECTIVES[metric].short}", *short]
    columns.append("load it (after import planter)")
    return Table(columns, rows, words=("point", "because"), code=columns[-1:])


def control_table(run: Facts, control: Facts) -> Table:
    """A run beside a second one."""
    both = (run, control)
    rows: list[Row] = [
        ["hypervolume", *(f"{one.steps[-1].hypervolume:.4f}" for one in both)],
        ["points on the front", *(sum(r["on_front"] for r in one.front["points"]) for one in both)],
        [f"{_best(run.front['objectives'])} searched point", *map(_of_best(run), both)],
        ["trainings", *(f"{one.front['cost']['trials']:,}" for one in both)],
        ["training multiply-adds", *(f"{one.front['cost']['train_macs']:.3g}" for one in both)],
        ["wall time", *(duration(one.elapsed) for one in both)],
        ["time of all workers", *(duration(one.front["cost"]["seconds"]) for one in both)],
    ]
    return Table(["", *(one.front["study"] for one in both)], rows)


def _of_best(run: Facts) -> Callable[[Facts], str]:
    """What the best searched point of another run has of this one's metric; nothing where its
    points have no such value."""
    metric = run.front["objectives"][0]

    def told(one: Facts) -> str:
        searched = [r for r in one.front["points"] if is_searched(r["method"]) and metric in r]
        return value_text(best_of(searched, [metric]), metric) if searched else ""

    return told


def differences_table(differences: Sequence[tuple[str, ...]]) -> Table:
    """What two studies differ in."""
    columns = ["differs in", "this run", "the second run"]
    return Table(columns, differences, words=columns)


def pipelines_table(front: Mapping[str, Any]) -> Table:
    """The searched points by their pipeline, that of the whole network first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in front["points"]:
        if is_searched(row["method"]):
            drawn = row["method"] == "sample"
            how = "" if drawn else f" ({METHODS[row['method']].label})"
            groups.setdefault(f"{row['pipeline']}{how}", []).append(row)
    objectives = front["objectives"]
    metric, text = objectives[0], OBJECTIVES[objectives[0]].text
    rows = []
    for name in sorted(groups, key=lambda name: (not name.startswith("base"), name)):
        points = groups[name]
        best = max(points, key=lambda row: (metric_merit(row, objectives), -row["macs"]))
        rows.append(
            [
                name,
                len(points),
                sum(row["on_front"] for row in points),
                value_text(best, metric),
                f"{best['macs']:,}",
                text(median(row[metric] for row in points)),
                f"{min(row['macs'] for row in points):,}",
            ]
        )
    short = OBJECTIVES[metric].short
    columns = ["pipeline", "points", "on the front", f"best {short}", "of macs", f"median {short}"]
    columns.append("fewest macs")
    return Table(columns, rows)


def lineage_table(front: Mapping[str, Any]) -> Table:
    """How each evolved point of the front came to be, its first ancestor first."""
    known = {row["id"]: row for row in front["points"]}
    rows: list[Row] = []
    for row in front["points"]:
        if not row["on_front"] or not row.get("parent"):
            continue
        steps, at = [], row
        while at.get("parent"):
            steps.append(edits_text(at["edits"]))
            if at["parent"] not in known:
                break
            at = known[at["parent"]]
        first = at.get("parent") or at["id"]
        rows.append([row["id"], "; ".join([first, *steps[::-1]])])
    return Table(["point", "lineage"], rows, words=("point", "lineage"))


def cost_table(run: Facts) -> Table:
    """What the trainings of each method took."""
    trials: dict[str, dict[str, int]] = {}
    points: dict[str, int] = {}
    for row in run.front["points"]:
        trials.setdefault(row["method"], {})[row["trial"]] = row["train_macs"]
        points[row["method"]] = points.get(row["method"], 0) + 1
    rows: list[Row] = [
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
        named = "stopped early, failed or under way"
        rows.append([named, f"{len(run.stopped):,}", "0", f"{took:.3g}", lasted])
    cost = run.front["cost"]
    total = [f"{cost['trials']:,}", f"{len(run.front['points']):,}", f"{cost['train_macs']:.3g}"]
    rows.append(["all", *total, duration(cost["seconds"])])
    columns = ["method", "trainings", "points", "training multiply-adds", "time of all workers"]
    return Table(columns, rows)


def data_tables(account: Mapping[str, Any]) -> list[Table]:
    """The images of each class, and what was left out, if anything."""
    kinds = ["train", "validation", "test"]
    rows: list[Row] = [
        [name, *(f"{counts[kind]:,}" for kind in kinds)]
        for name, counts in account["classes"].items()
    ]
    rows.append(["all", *(f"{account[kind]:,}" for kind in kinds)])
    skipped = [
        [one["ending"] or "none", f"{one['files']:,}", one["reason"]] for one in account["skipped"]
    ]
    ignored = [[one["folder"], f"{one['files']:,}", one["reason"]] for one in account["ignored"]]
    tables = [
        Table(["class", "training", "validation", "test"], rows),
        Table(["files skipped, by ending", "files", "reason"], skipped, words=["reason"]),
        Table(["folders ignored", "files", "reason"], ignored, words=["reason"]),
    ]
    return [table for table in tables if table.rows]


def versions_table(environment: Mapping[str, Any]) -> Table:
    """What the run ran on."""
    rows = [[name, version] for name, version in environment.get("versions", {}).items()]
    shown_above = ("versions", "class_names")
    rows += [[key, value] for key, value in environment.items() if key not in shown_above]
    return Table(["name", "value"], rows, words=["value"])
