"""`planter compare`: two runs beside each other; `planter table`: runs beside a paper's table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from planter.cli.app import RunArgument, app, err, expanded, out
from planter.driver.run_folder.names import run_folder
from planter.front.objectives import OBJECTIVES
from planter.front.points import to_csv, write_text
from planter.machine.commands import word_of
from planter.machine.paths import shown_path

if TYPE_CHECKING:
    from planter.driver.run_folder.compare import Difference, Versus
    from planter.front.tabled import Tabled

_SHOWN = 8
_PAGE = "table.md"
_COLUMNS = (
    "kind", "most", "first", "second", "images", "first_value", "second_value", "difference",
    "difference_low", "difference_high", "paired",
)  # fmt: skip


@app.command(epilog="Example: planter compare quickstart runs/control")
def compare(
    first: RunArgument,
    second: Annotated[str, typer.Argument(metavar="RUN", help="The other run.")],
    csv: Annotated[
        Path | None, typer.Option(help="Write the differences as a table.", callback=expanded)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how two runs differ: their fronts at equal cost, their best points and the networks that
    both have trained, each with an interval.

    Where both runs have the same images and kept their networks' answers, networks are compared
    image by image. `planter report RUN RUN` draws both.
    """
    from planter.driver.run_folder.compare import versus
    from planter.front.points import to_csv, write_text

    found = versus(run_folder(first).resolve(), run_folder(second).resolve())
    if as_json:
        typer.echo(json.dumps(found.document(), indent=2))
    else:
        _print(found)
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        rows = [_flat(row) for row in found.rows]
        write_text(csv, to_csv(rows, _COLUMNS))
        err.print(f"written: {csv}", soft_wrap=True, markup=False)


def _print(found: Versus) -> None:
    if not found.same_images:
        err.print(
            "these runs have other images or labels, or do not say which: an accuracy of one says "
            "little about those of the other",
            soft_wrap=True,
        )
    for key, *values in found.studies[:_SHOWN]:
        told = " against ".join(_short(value) for value in values)
        out.print(f"{key}: {told}", soft_wrap=True, markup=False)
    if (more := len(found.studies) - _SHOWN) > 0:
        out.print(f"and {more} more keys")
    volumes, point = found.hypervolumes, ", ".join(map(_number, found.reference_point))
    out.print(
        f"hypervolume: {volumes[0]:.4f} against {volumes[1]:.4f} "
        f"({volumes[0] - volumes[1]:+.4f}), both from ({point})",
        soft_wrap=True,
        markup=False,
    )
    for images in ("validation", "test"):
        rows = [row for row in found.rows if row.images == images]
        if rows:
            _print_table(found, rows, images)
    if not found.rows:
        out.print("\nnothing to compare: a front is empty, and no network was trained in both")
        return
    how = {row.paired for row in found.rows}
    told = "compared image by image" if how == {True} else "from each one's own interval"
    if len(how) == 2:
        told += ", image by image where both have kept their answers"
    out.print(
        f"\ndifference: {found.runs[0]} minus {found.runs[1]}, and its 95 % interval, {told}; "
        "* it does not contain 0. With many rows, some do by chance.",
        soft_wrap=True,
        markup=False,
    )


def _print_table(found: Versus, rows: Sequence[Difference], images: str) -> None:
    metric, cost, *_ = found.objectives
    title = f"{OBJECTIVES[metric].short} on {images} images"
    table = Table(title, *found.runs, "difference", box=None, pad_edge=False)
    table.columns[3].justify = "right"
    lines = []
    for row in rows:
        what = row.kind if row.most is None else f"at most {OBJECTIVES[cost].text(row.most)}"
        both = [
            f"{name} {OBJECTIVES[metric].cell(value)}"
            for name, value in zip((row.first, row.second), row.values, strict=True)
        ]
        apart = _apart(row, metric)
        shown = f"[bold]{apart}[/bold]" if row.sure else apart
        table.add_row(what, *map(escape, both), shown)
        lines += [f"  {what}: {apart}".rstrip(), f"    {both[0]} · {both[1]}"]
    out.print()
    wide = Measurement.get(out, out.options.update(max_width=10_000), table).maximum
    if not out.is_terminal or wide <= out.width:
        out.print(table, width=wide, crop=False)
        return
    out.print(f"{title}, {found.runs[0]} against {found.runs[1]}", style="bold", soft_wrap=True)
    for line in lines:
        out.print(line, markup=False)


def _apart(row: Difference, metric: str) -> str:
    objective = OBJECTIVES[metric]
    digits, wide = (2, 1) if objective.factor == 100 else (4, 3)
    told = f"{objective.factor * row.difference:+.{digits}f}"
    if row.interval is None:
        return f"{told}  "
    low, high = (f"{objective.factor * end:+.{wide}f}" for end in row.interval)
    return f"{told} ({low} to {high}) {'*' if row.sure else ' '}"


def _number(value: float) -> str:
    return f"{int(value) if float(value).is_integer() else value:,}"


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:37]}..."


def _flat(row: Difference) -> dict[str, Any]:
    """A row as one of a table."""
    low, high = row.interval or (None, None)
    one, other = row.values
    more = {"first_value": one, "second_value": other}
    return {**row._asdict(), **more, "difference_low": low, "difference_high": high}


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
    _print_paper(found)
    written = [shown_path(file.resolve()) for file in texts if file is not None]
    if written:
        err.print(f"written: {', '.join(written)}", soft_wrap=True, markup=False)


def _print_paper(found: Tabled) -> None:
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
