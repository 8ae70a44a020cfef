"""`planter watch`, `enqueue` and `stop`: a search that runs elsewhere, seen and steered."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import RenderableType
from rich.live import Live

from planter.cli.app import RunArgument, app, err, expanded, out
from planter.cli.progress import Picture, count, found_words, training_words
from planter.driver.run_folder.names import run_folder
from planter.machine.commands import command
from planter.study.quantities import duration

if TYPE_CHECKING:
    from planter.driver.run_folder.watched import Watched


@app.command(epilog="Example: planter enqueue quickstart width=16 lr=0.01")
def enqueue(
    run: RunArgument,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PARAM=VALUE...",
            help="One point, by the names that the space draws; what it leaves out is drawn.",
        ),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option("--point", metavar="'PARAM=VALUE ...'", help="Another point. Repeatable."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="A YAML or JSON file: one point, or a list of them.", callback=expanded
        ),
    ] = None,
) -> None:
    """Give a search points to try next, while it runs or before it goes on.

    Each takes one of the trials that are left (sample.trials).
    """
    from planter.driver.steering import enqueue as ask

    given = [_point(values)] if values else []
    given += [_point(shlex.split(text)) for text in points or []]
    given += _points_of(file) if file is not None else []
    if not given:
        raise ValueError("nothing to enqueue: expected PARAM=VALUE ..., --point or --file")
    asked = ask(run_folder(run), given)
    for point in asked.points:
        told = " ".join(f"{name}={value}" for name, value in point.items())
        out.print(f"enqueued: {told}", soft_wrap=True, markup=False)
    when = "at the next draws" if asked.driver else "first, when the same search command goes on"
    free = min(max(asked.left - asked.before, 0), len(given))
    if free:
        out.print(
            f"{asked.left} of {asked.trials} trials are left; tried {when}"
            + (f", behind {asked.before} that wait" if asked.before else ""),
            soft_wrap=True,
        )
    if free < len(given):
        more = asked.trials + asked.before + len(given) - asked.left
        those = f"{len(given) - free} of them" if free else "it" if len(given) == 1 else "them"
        err.print(
            f"no trial is left for {those}: a search with --set sample.trials={more} has enough",
            soft_wrap=True,
        )


def _point(pairs: Sequence[str]) -> dict[str, Any]:
    point = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r}: expected PARAM=VALUE, e.g. width=16")
        point[name] = yaml.safe_load(value)
    if not point:
        raise ValueError("--point '': expected PARAM=VALUE ..., e.g. 'width=16 lr=0.01'")
    return point


def _points_of(file: Path) -> list[dict[str, Any]]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML or JSON: {error}") from None
    except OSError as error:
        raise ValueError(
            f"--file {file} cannot be read: {error.strerror}; expected a YAML or JSON file"
        ) from None
    each = found if isinstance(found, list) else [found]
    if not each or not all(isinstance(one, dict) and one for one in each):
        raise ValueError(f"{file}: expected a mapping of parameters to values, or a list of such")
    return each


@app.command(epilog="Example: planter stop quickstart")
def stop(
    run: RunArgument,
    now: Annotated[
        bool,
        typer.Option("--now", help="End trainings at their next checkpoints, as Ctrl-C would."),
    ] = False,
) -> None:
    """Ask a search that runs elsewhere to finish what it trains and to begin nothing new.

    It reports what it has, as at the end of a budget; the same command goes on later.
    """
    from planter.driver.steering import stop as ask

    held = ask(run_folder(run), "now" if now else "finish")
    if held is None:
        err.print(f"{run}: no search runs; nothing to stop", soft_wrap=True, markup=False)
        return
    then = "its trainings end at their next checkpoints" if now else "what it trains is finished"
    out.print(
        f"asked: process {held['pid']} on {held['host']}; {then}, nothing new begins"
        f"\nnext: {command('watch', run)}",
        soft_wrap=True,
        markup=False,
    )


@app.command(epilog="Example: planter watch quickstart --once")
def watch(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Show where it stands and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Show a search that runs elsewhere, live, until it ends. Ctrl-C ends the watching only."""
    from planter.driver.run_folder.watched import watched

    folder = run_folder(run)
    try:
        now = watched(folder)
        if once or not now.searching:
            out.print(_picture(now))
        elif out.is_terminal:
            with Live(_picture(now), console=out, auto_refresh=False) as live:
                while now.searching:
                    time.sleep(every)
                    now = watched(folder)
                    live.update(_picture(now), refresh=True)
        else:
            _print_lines(folder, now, every)
        if not once and not now.searching and now.left:
            err.print("the same search command goes on", soft_wrap=True)
    except KeyboardInterrupt:
        err.print("watching ended; the search goes on", soft_wrap=True)


def _print_lines(folder: Path, now: Watched, every: float) -> None:
    """A line for each change of what is done and of what runs, until the search ends."""
    from planter.driver.run_folder.watched import watched

    shown = None
    while True:
        trials = [training.trial for training in now.trainings]
        if shown != (seen := (now.done, now.failed, now.points, trials, now.searching)):
            shown = seen
            each = ("  ".join(training_words(one, now.objectives[0])) for one in now.trainings)
            parts = [count(now, left=now.searching), *each, *found_words(now)]
            out.print("; ".join(parts), soft_wrap=True, markup=False)
        if not now.searching:
            return
        time.sleep(every)
        now = watched(folder)


def _picture(now: Watched) -> RenderableType:
    return Picture(now, now.trainings, f"{now.name}: {_state(now)}", left=now.searching)


def _state(now: Watched) -> str:
    if now.driver is None:
        return f"no search runs; {now.points} points"
    who = f"process {now.driver['pid']} on {now.driver['host']}"
    if now.gone:
        return f"its search was killed ({who})"
    silent = f", silent for {duration(now.age)}" if now.age is not None and now.age > 60 else ""
    return f"searching, {who}{silent}"
