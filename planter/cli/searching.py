"""`planter search` and `planter check`: a study, run or looked over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from planter.cli.app import Set, StudyArgument, app, err, expanded, out
from planter.cli.tables import print_front
from planter.driver.run_folder.names import run_folder
from planter.front.certainty import like_guessing
from planter.machine.commands import command
from planter.machine.importing import uncollected
from planter.machine.paths import shown_path
from planter.study.quantities import duration

if TYPE_CHECKING:
    from planter.driver.checking.estimate import Estimate

_SHOWN = 10
_KEYS = 3
"""Keys of which it is told what half of them saves."""


@app.command(epilog="Example: planter search quickstart --set recipe.epochs=10 --workers 2")
def search(
    study: StudyArgument,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder. Default: runs/NAME.", callback=expanded),
    ] = None,
    overrides: Set = None,
    workers: Annotated[
        int | None, typer.Option(help="Trainings at a time; 0 trains in this process.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL. Default: study.db in the run folder.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard as well.")
    ] = False,
    trackers: Annotated[
        list[str] | None,
        typer.Option(
            "--tracker",
            metavar="NAME",
            help="Tell mlflow, wandb, tensorboard or MODULE:FUNCTION of each training as well. "
            "Repeatable.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster, host:port. Default: Ray started here."),
    ] = None,
    continue_from: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Begin with the front of another run: evolve.start."),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on with a run whose study has changed.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Take the run from a driver that is gone or shall stop."),
    ] = False,
) -> None:
    """Run a study: teacher, baselines, planting rounds and sampled trials, to one Pareto front.

    The same command continues a run that was interrupted, to exactly the trials asked for.
    """
    with err.status("loading"), uncollected():
        from planter.cli.progress import ProgressDisplay
        from planter.driver.outcome import SearchFailedError
        from planter.driver.run import search as run_search
        from planter.driver.trials.jobs import SearchStoppedError
        from planter.machine.memory import keep_memory
        from planter.study.file import StudyFile

    given = _overrides(overrides, workers, storage)
    given += ["tensorboard=true"] if tensorboard else []
    given += [f"trackers={json.dumps(trackers)}"] if trackers else []
    file = StudyFile.of(study)
    asked = file.study(given)
    run = (out_folder if out_folder is not None else Path("runs") / asked.name).resolve()
    if continue_from is not None:
        other = run_folder(continue_from).resolve()
        if other == run:
            raise ValueError(
                f"--continue-from {continue_from} is this run itself, which the same command "
                "without it resumes; expected another run, or another --set name=..."
            )
        given.append(f"evolve.start={json.dumps(str(other))}")
    if asked.resources.workers == 0:  # this process trains
        keep_memory()
    try:
        with ProgressDisplay(out, run) as display:
            front = run_search(
                file,
                out=run,
                overrides=given,
                accept_changes=accept_changes,
                take_over=take_over,
                ray_address=ray_address,
                observe=display.show,
            )
    except KeyboardInterrupt:
        err.print(
            f"\ninterrupted; what is finished stays in {shown_path(run)}; "
            "the same command goes on from there",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    except SearchFailedError as error:
        if error.front["points"]:
            print_front(out, error.front)
        err.print(
            f"[red]failed:[/red] {escape(str(error))}\nlogs: {shown_path(run)}/trials/ID/log.txt",
            soft_wrap=True,
        )
        raise typer.Exit(4) from None
    except SearchStoppedError as error:
        err.print(
            f"[red]stopped:[/red] {escape(str(error))}\n"
            f"logs: {shown_path(run)}/trials/ID/log.txt; the same command goes on; a study that "
            f"has changed needs {error.changed}",
            soft_wrap=True,
        )
        raise typer.Exit(4) from None
    if front["points"]:
        print_front(out, front)
    shown = shown_path(run)
    written = [
        "pareto.html",
        "pareto.csv",
        "pareto.json",
        "report.html",
        "planting.html",
        "planting.csv",
        "models",
    ]
    there = [f for f in written if (run / f).exists()]
    out.print(f"\nwritten to {shown}: {', '.join(there)}", soft_wrap=True)
    if front["points"]:
        onward = [command(c, Path(shown)) for c in ("show", "dashboard")]
        if any(point["on_front"] for point in front["points"]):
            onward.append(f"{command('export', Path(shown))} --knee -o small.py")
        out.print(f"next: {' · '.join(onward)}", soft_wrap=True)
        if (told := like_guessing(front)) is not None:
            err.print(told, soft_wrap=True, markup=False)
    _say_what_failed(front, shown)
    if front["outcome"]["exit_code"]:
        err.print(front["outcome"]["reason"].partition(":")[0], soft_wrap=True, markup=False)
        raise typer.Exit(front["outcome"]["exit_code"])


def _say_what_failed(front: Mapping[str, Any], run: str) -> None:
    """The trainings that failed beside others that did not, and why there are no more."""
    failed = front["failed"]
    for one in failed[:_SHOWN]:
        err.print(f"failed: {one['trial']}: {one['reason']}", soft_wrap=True, markup=False)
    if failed:
        more = f"and {len(failed) - _SHOWN} more; " if len(failed) > _SHOWN else ""
        err.print(f"{more}logs: {run}/trials/ID/log.txt", soft_wrap=True, markup=False)
    for note in front["notes"]:
        err.print(note["text"], soft_wrap=True, markup=False)


@app.command(epilog="Example: planter check studies/quickstart.yaml --json")
def check(
    study: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study."),
    ] = None,
    overrides: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of study files and stop.")
    ] = False,
) -> None:
    """Find every mistake in a study, and say what it would cost, without training anything."""
    from planter.study.file import read_study
    from planter.study.schema import Study, StudyError

    if schema:
        typer.echo(json.dumps(Study.model_json_schema(), indent=2))
        return
    if study is None:
        raise ValueError("check needs a STUDY (or --schema)")
    with uncollected():
        from planter.driver.checking.check import prepare, worker_count
        from planter.driver.checking.estimate import estimated
        from planter.driver.checking.memory import needs_of, too_little

    try:
        checked = read_study(study, overrides or [])
        prepared = prepare(checked)
    except StudyError as error:
        if not as_json:
            raise
        problems = [
            {"place": p.place, "got": p.got, "expected": p.expected} for p in error.problems
        ]
        empty: dict[str, Any] = {"estimate_s": None, "macs": {}, "params": {}}
        typer.echo(json.dumps({"ok": False, "problems": problems, **empty}, indent=2))
        raise typer.Exit(2) from None
    costs, account = prepared.costs(), prepared.data.account
    estimate = estimated(checked, prepared)
    needs = [] if checked.resources.gpu else needs_of(checked, prepared)  # there it is the GPU's
    short = too_little(checked, needs)
    warnings = [*prepared.warnings, *([short] if short is not None else [])]
    for warning in warnings:
        err.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    if as_json:
        found = {
            "ok": True,
            "problems": [],
            "estimate_s": round(estimate.seconds, 1),
            "macs": {name: cost.macs for name, cost in costs.items()},
            "params": {name: cost.params for name, cost in costs.items()},
            "warnings": warnings,
            "data": account.document() if account is not None else None,
            "parts": {name: part._asdict() for name, part in estimate.parts.items()},
            "half_saves_s": {key: saved for key, (saved, _) in estimate.halved.items()},
            "memory_gb": round(needs[0].bytes / 1e9, 2) if needs else None,
        }
        if prepared.drawn is not None and prepared.drawn.within is not None:
            found["within_bounds"] = prepared.drawn.within / prepared.drawn.weighed
        if prepared.drawn is not None:
            found["train_macs_of_a_draw"] = prepared.drawn.mean_train_macs
        typer.echo(json.dumps(found, indent=2))
        return
    for line in account.lines() if account is not None else []:
        out.print(escape(line), soft_wrap=True)
    table = Table("network", "macs", "parameters", "pipelines", box=None, pad_edge=False)
    for name, cost in costs.items():
        shown = f"random draw {name.removeprefix('sample')}" if name.startswith("sample") else name
        ways = ", ".join(f"{way} {c.macs:,}" for way, c in cost.pipelines.items() if way != "base")
        table.add_row(shown, f"{cost.macs:,}", f"{cost.params:,}", ways)
    out.print(table)
    drawn = prepared.drawn
    if drawn is not None and drawn.within is not None:
        out.print(f"\n{drawn.within} of {drawn.weighed} random draws keep to the bounds.")
    if drawn is not None:
        mean = f"{drawn.mean_train_macs:.3g}"
        told = f"\nA random draw takes {mean} multiply-adds of training on average"
        if (most := checked.budget.train_macs) is not None:
            told += f", {drawn.mean_train_macs / most:.1%} of the budget"
        out.print(f"{told}.", soft_wrap=True)
    _print_parts(estimate)
    if needs:
        out.print(
            f"\nA training takes up to about {needs[0].bytes / 1e9:.1f} GB of memory "
            f"({needs[0].network}, {needs[0].images} images at a time).",
            soft_wrap=True,
        )
    workers = worker_count(checked)
    out.print(
        f"\n{study} is sound. About {duration(estimate.seconds)} of training on this machine "
        f"with {workers} worker{'s' * (workers != 1)}.\nnext: {_search_of(study, overrides)}",
        soft_wrap=True,
    )


def _print_parts(estimate: Estimate) -> None:
    """What takes the time, and what to turn down for less of it."""
    guided = any(part.guide_macs for part in estimate.parts.values())
    table = Table(
        "section",
        "time",
        "share",
        "training macs",
        *["guidance"] * guided,
        box=None,
        pad_edge=False,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, part in estimate.parts.items():
        share = part.seconds / estimate.seconds if estimate.seconds else 0.0
        cells = [name, duration(part.seconds), f"{share:.0%}", f"{part.train_macs:.3g}"]
        table.add_row(*cells, *[f"{part.guide_macs:.3g}"] * guided)
    out.print()
    out.print(table)
    if guided:
        out.print(
            "guidance: the teacher's part of these, for logits of images that change",
            soft_wrap=True,
        )
    most = list(estimate.halved.items())[:_KEYS]
    told = [f"{key} ({value:g}) saves {duration(saved)}" for key, (saved, value) in most]
    if told:
        out.print(
            f"half of {', of '.join(told)}; --set budget.scale=0.1 tries all of it out",
            soft_wrap=True,
        )


def _search_of(study: str, overrides: Sequence[str] | None) -> str:
    """The command that searches what was checked."""
    sets = [part for text in overrides or [] for part in ("--set", text)]
    return command("search", Path(study), *sets)


def _overrides(given: Sequence[str] | None, workers: int | None, storage: str | None) -> list[str]:
    every = list(given or [])
    if workers is not None:
        every.append(f"resources.workers={workers}")
    if storage is not None:
        every.append(f"storage={json.dumps(storage)}")
    return every
