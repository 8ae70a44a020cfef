"""Tables on a terminal, and their JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from planter.front.certainty import DRAWS, interval_in, paired, paired_metric, value_text
from planter.front.choose import neighbours
from planter.front.describe import difference, form_text, network_lines, reference_text
from planter.front.methods import is_searched
from planter.front.objectives import OBJECTIVES, SEARCHED
from planter.front.points import COLUMNS, nothing_trained

if TYPE_CHECKING:
    from planter.costs.macs import Cost, TrainingCost
    from planter.front.lineage import Step
    from planter.front.points import Point
    from planter.tracing.units import Found
    from planter.training.answers import Answers

_LONG = 10_000
"""Characters, more than any table is wide."""
_NOT_NEEDED = ("parameters", "method", "test")
"""Columns of points that a narrow terminal does without, in this order."""


def cost_json(shown: Cost, whole: Cost) -> dict[str, Any]:
    """A network's cost by stage, and that of all pipelines of the whole it belongs to."""
    stages = [
        {
            "name": stage.name,
            "macs": stage.macs,
            "macs_all": stage.macs_all,
            "params": stage.params,
            "output": list(stage.output),
        }
        for stage in shown.stages
    ]
    return {
        **_numbers(shown),
        "stages": stages,
        "pipelines": {
            name: {**_numbers(way), **_extra(way)} for name, way in whole.pipelines.items()
        },
        **_extra(whole),
    }


def _numbers(cost: Cost) -> dict[str, int]:
    return {"macs": cost.macs, "macs_all": cost.macs_all, "params": cost.params}


def _extra(cost: Cost) -> dict[str, int]:
    return {"extra_params": cost.extra_params, "extra_statistics": cost.extra_statistics}


def print_cost(out: Console, shown: Cost, whole: Cost) -> None:
    """A network's cost by stage, that of every pipeline of the whole, and what these store."""
    table = Table("stage", "output", "macs", "macs_all", "parameters", box=None, pad_edge=False)
    for stage in shown.stages:
        numbers = (f"{n:,}" for n in (stage.macs, stage.macs_all, stage.params))
        table.add_row(stage.name, "x".join(map(str, stage.output)), *numbers)
    out.print(table)
    several = len(whole.pipelines) > 1
    columns = ["beside base"] if several else []
    table = Table("pipeline", "macs", "macs_all", "parameters", *columns, box=None, pad_edge=False)
    for name, way in whole.pipelines.items():
        numbers = (f"{n:,}" for n in _numbers(way).values())
        extra = [f"{way.extra_params:,}"] if several else []
        table.add_row(f"[bold]{name}[/bold]", *numbers, *extra)
    out.print()
    out.print(table)
    out.print("\nmacs: multiply-adds of convolutions and linear layers, one image, no bias or norm")
    if several:
        more = whole.extra_params / whole.pipelines["base"].params
        out.print(
            f"all pipelines together store {whole.extra_params:,} parameters ({more:.2%}) and "
            f"{whole.extra_statistics:,} norm statistics beside those of base",
            soft_wrap=True,
        )


def print_widths(out: Console, found: Found) -> None:
    """The widths of a network that was not written for planter, and the layers that have none."""
    widths = ", ".join(f"{group.widths[0]}={group.size}" for group in found.groups)
    out.print(f"\nwidths: {widths or 'none'}", soft_wrap=True)
    for layer, why in found.fixed.items():
        out.print(f"fixed: {escape(layer)}, because of {escape(why)}", soft_wrap=True)


def training_table(form: str | Mapping[str, str], cost: TrainingCost) -> Table:
    """What a training step costs in a form of the kernels, beside the plain network."""
    table = Table(
        f"one training step, {cost.batch} images", "macs", "parameters", box=None, pad_edge=False
    )
    table.add_row("plain", f"{cost.macs_step_plain:,}", f"{cost.params_plain:,}")
    table.add_row(form_text(form), f"{cost.macs_step:,}", f"{cost.params:,}")
    more, trained = cost.macs_step - cost.macs_step_plain, cost.params - cost.params_plain
    share = more / cost.macs_step_plain
    table.add_row("[bold]added[/bold]", f"{more:,} ({share:.1%})", f"{trained:,}")
    return table


def print_front(out: Console, front: Mapping[str, Any], every: bool = False) -> None:
    """The front as a table; with `every`, all points, those of the front marked. Of a run without
    a point, why it has none."""
    if nothing := nothing_trained(front):
        for line in nothing:
            out.print(line, soft_wrap=True, markup=False)
        return
    shown = [p for p in front["points"] if every or p["on_front"] or not is_searched(p["method"])]
    print_points(out, shown, front["objectives"])
    told = f"{front['study']}: * on the front of {len(front['points'])} points"
    if front["hypervolume"] is None:
        told += f" by {', '.join(front['objectives'])}"
    else:
        told += f"; hypervolume {front['hypervolume']:.4f} from ({reference_text(front)})"
    if any(interval_in(point, "accuracy") for point in front["points"]):
        told += "; (low-high): 95 % intervals"
    out.print(told, soft_wrap=True, markup=False)
    if not any(point["on_front"] for point in front["points"]):
        out.print(
            "The front is empty: no searched network has finished, or none keeps to the study's "
            "bounds.",
            soft_wrap=True,
        )
    if (family := front.get("family")) is not None:
        members = ", ".join(family["points"])
        told = f"best family: {members}; hypervolume {family['hypervolume']:.4f}"
        out.print(told, soft_wrap=True, markup=False)


def print_points(
    out: Console, points: Sequence[Mapping[str, Any]], objectives: Sequence[str] = SEARCHED
) -> None:
    """A row for each point: its metric, on validation and test images with 95 % intervals, and its
    costs. Elsewhere than on a terminal each has a line of its own, however long; a terminal that is
    too narrow for whole numbers has fewer columns."""
    metric = objectives[0] if OBJECTIVES[objectives[0]].chance is not None else "accuracy"
    beside = [] if metric == "accuracy" else ["accuracy"]
    known = [name for name in COLUMNS if name in OBJECTIVES]
    further = [name for name in objectives if name not in (metric, "accuracy", "macs", "params")]
    further += [
        n for n, o in OBJECTIVES.items() if not o.asked and n not in (*known, *further)
    ]  # from outside
    columns = {
        "": ["*" if point["on_front"] else "" for point in points],
        "id": [escape(point["id"]) for point in points],
        "method": [escape(point["method"]) for point in points],
        metric: [value_text(point, metric, headed=True) for point in points],
        "test": [value_text(point, metric, "test_", headed=True) for point in points],
        **{name: [value_text(point, name) for point in points] for name in beside},
        "macs": [f"{point['macs']:,}" for point in points],
        "parameters": [f"{point['params']:,}" for point in points],
    }
    for name in further:
        values = (point.get(name) for point in points)
        columns[name] = ["" if v is None else OBJECTIVES[name].cell(v) for v in values]
    gone: list[str] = []
    table, least, whole = _sized(out, columns)
    while out.is_terminal and least > out.width and len(gone) < len(_NOT_NEEDED):
        gone.append(_NOT_NEEDED[len(gone)])
        del columns[gone[-1]]
        table, least, whole = _sized(out, columns)
    out.print(table, width=None if out.is_terminal else max(out.width, whole), crop=False)
    if gone:
        out.print(f"without {', '.join(gone)}: the terminal is {out.width} characters wide")


def _sized(out: Console, columns: Mapping[str, Sequence[str]]) -> tuple[Table, int, int]:
    """A table of these columns, and the characters it takes: with cells that wrap between words,
    and without."""
    table = Table(*columns, box=None, pad_edge=False)
    for number, column in enumerate(table.columns):
        column.justify = "right" if number and column.header not in ("id", "method") else "left"
        column.no_wrap = column.header in ("", "id", "method", "macs", "parameters")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table, *Measurement.get(out, out.options.update(max_width=_LONG), table)


def print_choice(
    out: Console, front: Mapping[str, Any], row: Mapping[str, Any], points: Sequence[Point]
) -> None:
    """The point `row` of a front, its network, and how the next smaller and the next larger point
    of the front differ from it. `points` are those of the database, which know the networks."""
    known = {point.id: point for point in points}
    print_points(out, [row], front["objectives"])
    metric, *costs = front["objectives"]
    this = known.get(row["id"])
    for line in network_lines(this) if this else []:
        out.print(f"   {line}", soft_wrap=True, markup=False)
    for where, other in zip(("smaller", "larger"), neighbours(front, row), strict=True):
        if other is None:
            out.print(f"\nnext {where} on the front: none")
            continue
        out.print(
            f"\nnext {where} on the front: [bold]{escape(other['id'])}[/bold], "
            + ", ".join([_better(other, row, metric), *_dearer(other, row, costs)]),
            soft_wrap=True,
        )
        if this and other["id"] in known:
            told = difference(this, known[other["id"]])
            out.print(f"   {told}", soft_wrap=True, markup=False)


def print_lineage(
    out: Console,
    steps: Sequence[Step],
    rows: Mapping[str, Mapping[str, Any]],
    objectives: Sequence[str] = SEARCHED,
) -> None:
    """The ancestors of a point and itself, the first on top; `rows` are those of pareto.json by
    their ids, which know intervals."""
    metric, cost, *_ = objectives
    table = Table("id", "came to be", metric, cost, "training macs", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for number, step in enumerate(steps):
        name = f"{'  ' * number}{escape(step.id)}"
        if step.point is None:
            table.add_row(name, step.how, "", "", "")
            continue
        known = rows.get(step.id, step.point.values)
        reached = value_text(known, metric, headed=True)
        costs, took = f"{step.point.values[cost]:,}", f"{step.point.train_macs:.3g}"
        table.add_row(name, escape(step.how), reached, costs, took)
    out.print(table)


def print_difference(
    out: Console, names: Sequence[str], pairs: Mapping[str, Sequence[Answers]], metric: str
) -> None:
    """How the first of two points differs from the second, by their answers on the validation
    images and, where both have them, on the test images."""
    first, second = names
    for images, (one, other) in pairs.items():
        found = paired(one, other)
        out.print(f"\n{first} against {second} on {found.images:,} {images} images", style="bold")
        lines = [
            _apart("accuracy", (one, other), found.difference, found.interval),
            f"right on {found.first_only:,} images that {second} has wrong, wrong on "
            f"{found.second_only:,} that it has right: p = {found.p:.3g} (exact McNemar test)",
        ]
        if metric != "accuracy":
            told = _apart(metric, (one, other), *paired_metric(one, other, metric))
            lines.append(f"{told} ({DRAWS:,} resamplings)")
        for line in lines:
            out.print(f"   {line}", soft_wrap=True, markup=False)
    out.print(
        "\nA point that was selected among many on the validation images looks better on them than "
        "it is.",
        soft_wrap=True,
    )


def _apart(
    metric: str, both: Sequence[Answers], difference: float, interval: tuple[float, float]
) -> str:
    """Two values of a metric, their difference and its interval, in percent or as they are."""
    objective = OBJECTIVES[metric]
    first, second = (objective.cell(getattr(one, metric)) for one in both)
    unit, digits = (" points", 2) if objective.factor == 100 else ("", 4)
    apart, low, high = (
        f"{objective.factor * value:+.{digits}f}" for value in (difference, *interval)
    )
    return (
        f"{objective.short} {first} against {second}: {apart}{unit}, 95 % interval {low} to {high}"
    )


def _better(other: Mapping[str, Any], this: Mapping[str, Any], metric: str) -> str:
    objective, more = OBJECTIVES[metric], other[metric] - this[metric]
    if objective.factor == 100:
        return f"{100 * more:+.2f} points of {objective.short}"
    return f"{more:+.4f} of {objective.short}"


def _dearer(
    other: Mapping[str, Any], this: Mapping[str, Any], costs: Sequence[str]
) -> Iterator[str]:
    """What another row costs more, by what its study has as costs, macs and parameters."""
    for name in dict.fromkeys([*costs, "macs", "params"]):
        more = other[name] - this[name]
        shown = f"{more:+,}" if isinstance(more, int) else f"{more:+.3g}"
        unit = {"params": "parameters", "latency_ms": "ms"}.get(name, name)
        yield f"{shown} ({more / this[name]:+.0%}) {unit}"
