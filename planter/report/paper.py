"""A filled table of a paper as text: cells, a page of Markdown, rows of CSV, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from planter.front.certainty import Interval
from planter.front.tabled import Cell, Tabled
from planter.study.table import Measure

COLUMNS = [
    "row", "column", "measure", "trainings", "mean", "std", "low", "high", "published",
    "published_std", "difference", "difference_low", "difference_high", "values",
]  # fmt: skip
_UNITS: dict[Measure, tuple[str, int]] = {
    "accuracy": ("accuracy, %", 2),
    "error": ("error, %", 2),
    "loss": ("loss, nats", 4),
    "params": ("parameters", 0),
    "macs": ("multiply-adds", 0),
}
_NOTHING = "-"


def unit(measure: Measure) -> str:
    """What a cell tells, and in which unit."""
    return _UNITS[measure][0]


def own_text(cell: Cell) -> str:
    """`81.33 ± 0.07`: what the networks of a cell reached."""
    return _with_spread(cell, cell.mean, cell.std)


def published_text(cell: Cell) -> str:
    return _with_spread(cell, cell.published, cell.published_std)


def difference_text(cell: Cell) -> str:
    """`-4.93 (-5.10 to -4.76)`: the mean over the paper's figure, and the 95 % interval."""
    if cell.difference is None:
        return ""
    told = _number(cell.measure, cell.difference, signed=True)
    if (around := cell.difference_interval) is not None:
        told += f" ({_interval(cell.measure, around)})"
    return told


def document(found: Tabled) -> dict[str, Any]:
    """All of it as JSON holds it."""
    return {
        "title": found.table.title,
        "source": found.table.source,
        "shortened": found.shortened,
        "facts": dict(found.facts),
        "cells": [
            {**row, "values": [one._asdict() for one in cell.values], "lacks": cell.lacks}
            for row, cell in zip(rows(found), found.cells.values(), strict=True)
        ],
        "claims": found.claims(),
    }


def rows(found: Tabled) -> list[dict[str, Any]]:
    """A row of CSV for each cell."""
    made = []
    for cell in found.cells.values():
        low, high = cell.interval or (None, None)
        apart_low, apart_high = cell.difference_interval or (None, None)
        numbers = (
            cell.mean, cell.std, low, high, cell.published, cell.published_std, cell.difference,
            apart_low, apart_high,
        )  # fmt: skip
        rounded = [None if n is None else round(n, 6) for n in numbers]
        values = " ".join(f"{one.value:.6g}" for one in cell.values)
        told = (cell.row, cell.column, cell.measure, len(cell.values), *rounded, values)
        made.append(dict(zip(COLUMNS, told, strict=True)))
    return made


def claims_json(found: Tabled) -> str:
    """What claims.json says."""
    told: dict[str, Any] = {"claims": found.claims(), "source": found.table.source}
    if found.shortened is not None:
        told["shortened"] = found.shortened
    return json.dumps({**told, "facts": dict(found.facts)}, indent=2) + "\n"


def markdown(found: Tabled, command: str) -> str:
    """The page: the table, its claims, what is to be known of its figures, the `command` that made
    it."""
    table = found.table
    lines = [
        f"# {table.title}",
        "",
        f"{table.source}. In each cell: ours / published, below it the",
    ]
    lines[-1] += " difference of the two with its 95 % interval."
    if found.shortened is not None:
        lines += ["", f"**Tried out only**: {found.shortened}."]
    heads = ["", *(_head(found, column) for column in table.columns)]
    lines += ["", _line(heads), _line(["---"] * len(heads))]
    for row in table.rows:
        cells = [found.cells[row, column] for column in table.columns]
        lines.append(_line([row, *(_joined(cell, "<br>") for cell in cells)]))
    lines += ["", spread_told(found)]
    if table.note:
        lines += ["", table.note.strip()]
    if claims := found.claims():
        lines += ["", "| claim | value | target | seeds | |", "|---|---|---|---|---|"]
        for one in claims:
            value = "not measured" if one["value"] is None else one["value"]
            holds = "holds" if one["holds"] else "does not hold"
            lines.append(_line([one["name"], value, one["target"], one["seeds"], holds]))
    lines += ["", *(f"- **{name}**: {told}" for name, told in found.facts.items())]
    lines += ["", "```sh", command, "```", ""]
    return "\n".join(lines)


def cell_text(cell: Cell) -> str:
    """A cell on a terminal."""
    return _joined(cell, "\n")


def spread_told(found: Tabled) -> str:
    """How means and intervals are to be read."""
    counts = {len(cell.values) for cell in found.cells.values() if cell.values}
    if not counts:
        return "No cell has a network yet."
    several = "mean ± standard deviation over trainings; intervals are Student's"
    alone = "one training a cell; intervals are Wilson's, of the test images alone"
    if counts == {1}:
        return f"Ours: {alone}."
    many = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    return f"Ours: {several}; {many} trainings a cell. The paper's figure is taken as exact."


def _head(found: Tabled, column: str) -> str:
    measures = {found.cells[row, column].measure for row in found.table.rows}
    told = " or ".join(unit(measure) for measure in sorted(measures))
    return f"{column} ({told})" if told != column else column


def _joined(cell: Cell, between: str) -> str:
    own = own_text(cell) or _NOTHING
    both = f"{own} / {published_text(cell) or _NOTHING}"
    apart = difference_text(cell)
    return f"{both}{between}{apart}" if apart else both


def _with_spread(cell: Cell, value: float | None, spread: float | None) -> str:
    if value is None:
        return ""
    told = _number(cell.measure, value)
    if spread is None or cell.measure in ("params", "macs"):
        return told
    return f"{told} ± {_number(cell.measure, spread)}"


def _interval(measure: Measure, around: Interval) -> str:
    return " to ".join(_number(measure, end, signed=True) for end in around)


def _number(measure: Measure, value: float, *, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''},.{_UNITS[measure][1]}f}"


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
