"""The command line: one function a command; each imports what it needs when it is called."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from planter.cli import (  # noqa: F401 - they register their commands
    comparing,
    counting,
    exporting,
    latency,
    looking,
    searching,
    steering,
    training,
)
from planter.cli.app import app, err, out
from planter.cli.streams import keep_streams
from planter.front.choose import NothingWithinError

_LONGEST_LINE = 1000


def main() -> None:
    """Entry point of `planter`: a user's mistake is one message and exit code 2, a bound that
    no point keeps to one message and exit code 3."""
    keep_streams()
    for console in (out, err):
        if not console.is_terminal:  # a file or a program: lines as long as they are
            console.width = _LONGEST_LINE
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    # The user's own modules (my_pkg.nets:build) stand in the folder planter is called from.
    sys.path.insert(0, str(Path.cwd()))
    try:
        app()
    except NothingWithinError as error:
        err.print(escape(str(error)), soft_wrap=True)
        sys.exit(3)
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        err.print(f"[red]planter:[/red] {escape(str(error))}", soft_wrap=True)
        if not debug:
            err.print("[dim]--debug shows where this was raised[/dim]")
        sys.exit(2)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(f"planter {version('planter')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error was raised (in any place).")
    ] = False,
) -> None:
    """Options of planter itself."""
