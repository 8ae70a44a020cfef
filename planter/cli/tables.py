"""Tables on a terminal, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planter.front.choose import neighbours
from planter.front.describe import difference, form_text, network_lines
from planter.front.methods import is_searched
from planter.front.objectives import COST, METRIC, OBJECTIVES
from planter.front.points import COLUMNS, columns, nothing_trained

if TYPE_CHECKING:
    from planter.costs.macs import Cost, TrainingCost
    from planter.front.lineage import Step
    from planter.front.points import Point
    from planter.tracing.units import Found


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
    print_points(
        out, [p for p in front["points"] if every or p["on_front"] or not is_searched(p["method"])]
    )
    told = f"{front['study']}: * on the front of {len(front['points'])} points"
    if front["hypervolume"] is None:
        told += f" by {', '.join(front['objectives'])}"
    else:
        accuracy, macs = front["reference_point"]
        told += f"; hypervolume {front['hypervolume']:.4f} from ({accuracy:.3g}, {macs:,.0f} macs)"
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


def print_points(out: Console, points: Sequence[Mapping[str, Any]]) -> None:
    further = [name for name in columns() if name not in COLUMNS]
    heads = ["id", "method", METRIC, "test", COST, "parameters", *further]
    table = Table("", *heads, box=None, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for point in points:
        test = point["test_accuracy"]
        table.add_row(
            "*" if point["on_front"] else "",
            escape(point["id"]),
            escape(point["method"]),
            OBJECTIVES[METRIC].text(point[METRIC]),
            "" if test is None else OBJECTIVES[METRIC].text(test),
            f"{point[COST]:,}",
            f"{point['params']:,}",
            *(OBJECTIVES[name].text(point[name]) if name in point else "" for name in further),
        )
    out.print(table)


def print_choice(
    out: Console, front: Mapping[str, Any], row: Mapping[str, Any], points: Sequence[Point]
) -> None:
    """The point `row` of a front, its network, and how the next smaller and the next larger point
    of the front differ from it. `points` are those of the database, which know the networks."""
    known = {point.id: point for point in points}
    print_points(out, [row])
    this = known.get(row["id"])
    for line in network_lines(this) if this else []:
        out.print(f"   {line}", soft_wrap=True, markup=False)
    for where, other in zip(("smaller", "larger"), neighbours(front, row), strict=True):
        if other is None:
            out.print(f"\nnext {where} on the front: none")
            continue
        out.print(
            f"\nnext {where} on the front: [bold]{escape(other['id'])}[/bold], "
            f"{100 * (other['accuracy'] - row['accuracy']):+.2f} points of accuracy, "
            f"{_more(other['macs'], row['macs'])} macs, "
            f"{_more(other['params'], row['params'])} parameters",
            soft_wrap=True,
        )
        if this and other["id"] in known:
            told = difference(this, known[other["id"]])
            out.print(f"   {told}", soft_wrap=True, markup=False)


def print_lineage(out: Console, steps: Sequence[Step]) -> None:
    """The ancestors of a point and itself, the first on top."""
    table = Table("id", "came to be", METRIC, COST, "training macs", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for number, step in enumerate(steps):
        name = f"{'  ' * number}{escape(step.id)}"
        if step.point is None:
            table.add_row(name, step.how, "", "", "")
            continue
        accuracy = OBJECTIVES[METRIC].text(step.point.values[METRIC])
        macs, took = f"{step.point.values[COST]:,}", f"{step.point.train_macs:.3g}"
        table.add_row(name, escape(step.how), accuracy, macs, took)
    out.print(table)


def _more(other: int, this: int) -> str:
    return f"{other - this:+,} ({(other - this) / this:+.0%})"
