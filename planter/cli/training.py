"""`planter train`: the front's networks trained alone, with several seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from planter.cli.app import RunArgument, app, err, out
from planter.driver.run_folder.names import run_folder
from planter.front.certainty import value_text
from planter.machine.commands import command
from planter.machine.paths import shown_path


@app.command(epilog="Example: planter train quickstart --front --seeds 3")
def train(
    run: RunArgument,
    points: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Trials or points. Default: the run's front."),
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="The front, beside the points that are named.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind and point.")] = 3,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train fresh weights only.")
    ] = False,
    continued: Annotated[
        bool, typer.Option("--continued", help="Train the run's weights further only.")
    ] = False,
    like: Annotated[
        list[str] | None,
        typer.Option(
            "--like",
            metavar="ID",
            help="Instead, make that trial or point anew as the search made it: its recipe, form, "
            "pipelines and teacher, a child with its lineage. Repeatable.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each training. Default: the study's.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override recipe.KEY, continued.KEY (the recipe of further training: the same "
            "with lr / 10) or resources.KEY. Repeatable.",
        ),
    ] = None,
    guided: Annotated[
        bool, typer.Option("--guided", help="Learn from the run's teacher as well as labels.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Trainings at a time; 0 trains in this process.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what final.json says.")] = False,
) -> None:
    """Train points of a run alone: their weights further, and their architectures from scratch.

    Three accuracies of each point, of several seeds: with the weights the search left, with these
    trained further, and of the architecture alone. The run itself is not changed; results and
    networks are in RUN/final. The same command goes on where it was interrupted, and trains what
    is missing.
    """
    if like and (points or front or from_scratch or continued or guided or epochs is not None):
        raise ValueError(
            "--like repeats what the search did: give it alone, with --seeds, --workers or "
            "--set resources.KEY=VALUE or --set teacher.processes=N"
        )
    folder = run_folder(run).resolve()
    with err.status("loading"):
        from planter.driver.final import train_points
        from planter.driver.run_folder.final_file import KINDS, REPEATED, Kind
        from planter.driver.trials.jobs import SearchStoppedError
        from planter.machine.memory import keep_memory

    given = list(overrides or [])
    if epochs is not None:
        given.append(f"recipe.epochs={epochs}")
    if workers is not None:
        given.append(f"resources.workers={workers}")
    asked = {"continued": continued, "stand-alone": from_scratch}
    kinds: list[Kind] = [kind for kind in KINDS if asked[kind] or not any(asked.values())]
    keep_memory()  # with workers: 0 it is this process that trains
    try:
        found = train_points(
            folder,
            like or points or [],
            front=front,
            kinds=[REPEATED] if like else kinds,
            seeds=seeds,
            overrides=given,
            guided=guided,
            observe=lambda event: err.print(event, markup=False, soft_wrap=True),
        )
    except KeyboardInterrupt:
        err.print(
            f"\ninterrupted; what is finished stays in {shown_path(folder)}/final; "
            "the same command goes on from there",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(130) from None
    except SearchStoppedError as error:
        err.print(f"[red]stopped:[/red] {escape(str(error))}; the same command goes on")
        raise typer.Exit(4) from None
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(found["points"], found["rows"])
        shown = shown_path(folder)
        last = found["rows"][-1]["model"] if found["rows"] else None
        first = Path(shown, last or "final/models/ID/KIND-SEED")
        out.print(
            f"\nwritten to {shown}/final: final.json, final.csv, models\n"
            f"next: {command('latency', first)} · {command('show', Path(shown))}",
            soft_wrap=True,
            markup=False,
        )
    if found["failed"]:
        err.print(f"{len(found['failed'])} trainings failed; the same command tries them again")
        raise typer.Exit(4)


def _print(points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    from planter.driver.run_folder.final_file import KINDS, REPEATED

    kinds = [*KINDS, *([REPEATED] if any(REPEATED in point for point in points) else [])]
    names = {"accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
    for measure, title in names.items():
        if measure == "test_accuracy":
            if all(point["shared"][measure] is None for point in points):
                continue
            out.print()
        table = Table(title, "macs", "shared", *kinds, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for point in points:
            prefix = measure.removesuffix("accuracy")
            table.add_row(
                point["id"],
                f"{point['macs']:,}",
                value_text(point["shared"], "accuracy", prefix),
                *(_shown(point.get(kind), measure) for kind in kinds),
            )
        out.print(table)
    for point in points:
        own = {row["macs"] for row in rows if row["id"] == point["id"] and "macs" in row}
        if own - {point["macs"]}:
            told = f"{point['id']} came out with {min(own):,} to {max(own):,} macs when repeated"
            out.print(told, soft_wrap=True, markup=False)
    counts = {point[kind]["seeds"] for point in points for kind in kinds if kind in point}
    if counts:
        number = " to ".join(map(str, sorted({min(counts), max(counts)})))
        spread = f"; mean ± standard deviation of {number} seeds" if max(counts) > 1 else ""
        out.print(f"\n(low-high): 95 % intervals of single networks{spread}")


def _shown(summary: Mapping[str, Any] | None, measure: str) -> str:
    """Mean and standard deviation in percent, of one training its interval; nothing where there is
    none."""
    if summary is None or summary[measure] is None:
        return ""
    mean, std = summary[measure]["mean"], summary[measure]["std"]
    if std is None:
        ends = {f"accuracy_{end}": summary[measure].get(end) for end in ("low", "high")}
        return value_text({"accuracy": mean, **ends}, "accuracy")
    return f"{100 * mean:.2f} ± {100 * std:.2f} %"
