"""`planter table`: runs as the table of a paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from planter.cli.app import app, err, expanded, out
from planter.driver.run_folder.names import run_folder
from planter.front.points import to_csv, write_text
from planter.machine.commands import word_of
from planter.machine.paths import shown_path

if TYPE_CHECKING:
    from planter.front.tabled import Tabled

_PAGE = "table.md"


@app.command(epilog="Example: planter table kflo_1-0 kflo_1-1 kflo_1-2 --csv kflo_1.csv")
def table(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs of one study with a table, e.g. one a seed."),
    ],
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Write table.md, table.csv and claims.json there.",
            callback=expanded,
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write a row for each cell.", callback=expanded)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a page of Markdown.", callback=expanded)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print runs as the table of the paper that their study is of: published figures beside ours.

    A cell's networks are those of all runs, and what planter train --like repeated of them: their
    mean and spread, the difference to the paper's figure and its 95 % interval.
    """
    folders = [run_folder(run) for run in runs]
    with err.status("loading"):
        from planter.driver.run_folder.tabled import tabled
        from planter.report.paper import COLUMNS, claims_json, document, rows
        from planter.report.paper import markdown as page

    found = tabled(folders)
    words: list[str | Path] = [Path(run) for run in runs]
    if out_folder is not None:
        words += ["--out", Path(shown_path(out_folder))]
    # On a page that others read: by the name planter has there.
    given = " ".join(["planter table", *(word_of(word) for word in words)])
    texts = {csv: to_csv(rows(found), COLUMNS), markdown: page(found, given)}
    if out_folder is not None:
        out_folder.mkdir(parents=True, exist_ok=True)
        texts |= {
            out_folder / _PAGE: page(found, given),
            out_folder / "table.csv": to_csv(rows(found), COLUMNS),
            out_folder / "claims.json": claims_json(found),
        }
    for file, text in texts.items():
        if file is not None:
            write_text(file, text)
    if as_json:
        typer.echo(json.dumps(document(found), indent=2))
        return
    _print(found)
    written = [shown_path(file.resolve()) for file in texts if file is not None]
    if written:
        err.print(f"written: {', '.join(written)}", soft_wrap=True, markup=False)


def _print(found: Tabled) -> None:
    from planter.report.paper import cell_text, spread_told, unit

    paper = found.table
    out.print(escape(paper.title), style="bold", soft_wrap=True)
    out.print(f"{escape(paper.source)}; in each cell ours / published", soft_wrap=True)
    if found.shortened is not None:
        told = f"[yellow]{escape(found.shortened)}[/yellow]"
        out.print(told, soft_wrap=True)
    shown = Table("", box=None, pad_edge=False)
    for column in paper.columns:
        measures = sorted({found.cells[row, column].measure for row in paper.rows})
        told = " or ".join(unit(measure) for measure in measures)
        shown.add_column(escape(f"{column}\n{told}"), justify="right")
    for row in paper.rows:
        cells = [cell_text(found.cells[row, column]) for column in paper.columns]
        shown.add_row(escape(row), *map(escape, cells))
    out.print(shown)
    out.print(spread_told(found), soft_wrap=True)
    claims = found.claims()
    for claim in claims:
        if claim["value"] is not None:
            mark = "holds" if claim["holds"] else "does not hold"
            told = f"{claim['name']}: {claim['value']} ({claim['target']}) {mark}"
            out.print(escape(told), soft_wrap=True)
    if open_ := sum(claim["value"] is None for claim in claims):
        out.print(f"{open_} of {len(claims)} claims are not measured")
    facts = "; ".join(f"{name}: {told}" for name, told in found.facts.items())
    out.print(escape(facts), soft_wrap=True)
