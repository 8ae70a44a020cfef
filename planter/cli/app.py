"""The program's parts that every command shares: its name, its two consoles, common arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from planter.machine.paths import user_path

app = typer.Typer(
    name="planter",
    help="Grows CNNs and selects sub-networks: a Pareto front of accuracy against MACs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study. Repeatable."),
]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, or a name in runs/.")
]
MaxMacs = Annotated[
    str | None,
    typer.Option(metavar="N", help="The best point of at most that many: 500k, 2M, 1.5G."),
]
MinAccuracy = Annotated[
    float | None,
    typer.Option(
        metavar="A", help="The cheapest point with that validation accuracy or more, 0..1."
    ),
]
Knee = Annotated[bool, typer.Option("--knee", help="The point from which on accuracy costs most.")]


def expanded(path: Path | None) -> Path | None:
    """A path of the command line as `planter.machine.paths` reads it; a callback of options."""
    return None if path is None else user_path(str(path))
