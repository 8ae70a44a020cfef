"""The section `table` of a study: a table of a paper, and which networks stand in its cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from planter.study.section import Count, Section

Measure = Literal["accuracy", "error", "loss", "params", "macs"]
Published = float | Annotated[list[float], Field(min_length=2, max_length=2)]
"""A figure, or its mean and standard deviation over runs."""


class Where(Section):
    """Which networks a row or a column means; a cell is where both hold."""

    sample: Annotated[
        dict[str, Any],
        Field(description="sampled trials of these values; a point of the table to train"),
    ] = {}
    trial: Annotated[
        str | None, Field(description="the trial of that id: teacher, b-width16, p00-start")
    ] = None
    method: Annotated[
        Literal["plant", "sample", "evolve"] | None,
        Field(description="the network of that method with the best validation accuracy"),
    ] = None
    within: Annotated[
        dict[Literal["params", "macs"], Count],
        Field(description="of those that a method has found, the ones of at most so many"),
    ] = {}
    pipeline: Annotated[
        str | None, Field(description="the pipeline of that name; default: base")
    ] = None
    runs: Annotated[
        dict[str, Any],
        Field(description="runs whose study says so, by dotted keys: {data.resize: 64}"),
    ] = {}
    measure: Annotated[
        Measure | None,
        Field(
            description="what is told: accuracy or error (%) or loss (nats) on the test images, "
            "params, macs; default: accuracy"
        ),
    ] = None

    def joined(self, other: Where) -> Where:
        """Where both hold; of what both name, but for values and bounds, the other's."""
        keys = [*Where.model_fields]
        mine, theirs = ({k: getattr(one, k) for k in keys} for one in (self, other))
        found = {
            key: {**mine[key], **theirs[key]}
            if isinstance(mine[key], dict)
            else mine[key]
            if theirs[key] is None
            else theirs[key]
            for key in keys
        }
        return Where.model_validate(found)


class Row(Where):
    """A row, with what the paper says of its cells."""

    published: Annotated[
        dict[str, Published],
        Field(description="by column: a figure as the paper has it, or [mean, deviation]"),
    ] = {}


class Claim(Section):
    """What the table is to show, in the unit of its cells."""

    row: Annotated[str, Field(description="the row that is claimed of")]
    beside: Annotated[
        str | None,
        Field(description="a row, or published: the claim is of what row has more than that"),
    ] = None
    column: Annotated[
        str | None, Field(description="default: every column, each a claim of its own")
    ] = None
    at_least: Annotated[float | None, Field(description="the least that it is to be")] = None
    at_most: Annotated[float | None, Field(description="the most that it is to be")] = None

    @model_validator(mode="after")
    def _bounded(self) -> Claim:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a claim has at_least or at_most, one of them")
        return self

    @property
    def target(self) -> str:
        return f"<= {self.at_most}" if self.at_least is None else f">= {self.at_least}"

    def holds(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        assert self.at_most is not None
        return value <= self.at_most


class PaperTable(Section):
    """A table of a paper: `planter table` prints it with the figures of runs beside those of the
    paper. Its points of the search space are trained before any other."""

    title: Annotated[str, Field(description="what it shows, and in which unit")]
    source: Annotated[str, Field(description="the paper, and which of its tables")]
    note: Annotated[
        str | None, Field(description="where this study departs from the paper, below the table")
    ] = None
    sample: Annotated[dict[str, Any], Field(description="values of every cell that has some")] = {}
    columns: Annotated[dict[str, Where], Field(min_length=1, description="by their headings")]
    rows: Annotated[dict[str, Row], Field(min_length=1, description="by their headings")]
    first: Annotated[
        str | None,
        Field(
            description="the row or column that is trained before the others of its kind; default: "
            "the first row"
        ),
    ] = None
    claims: Annotated[list[Claim], Field(description="what is to come out")] = []

    @model_validator(mode="after")
    def _names_what_it_has(self) -> PaperTable:
        if self.first is not None:
            _known("first", self.first, {**self.rows, **self.columns})
        for name, row in self.rows.items():
            for column in row.published:
                _known(f"rows.{name}.published", column, self.columns)
        for number, claim in enumerate(self.claims):
            _known(f"claims.{number}.row", claim.row, self.rows)
            if claim.beside not in (None, "published"):
                _known(f"claims.{number}.beside", claim.beside, self.rows)
            if claim.column is not None:
                _known(f"claims.{number}.column", claim.column, self.columns)
        return self

    def cell(self, row: str, column: str) -> Where:
        """Which networks a cell means."""
        found = self.rows[row].joined(self.columns[column])
        means_trial = found.sample and self._means_trial(row)
        sample = {**self.sample, **found.sample} if means_trial else {}
        return found.model_copy(update={"sample": sample})

    def points(self) -> list[dict[str, Any]]:
        """The points of the search space in its cells, each once, in the order of training."""
        return [point for part in self.parts() for point in part]

    def parts(self) -> list[list[dict[str, Any]]]:
        """The same by row or by column, those that have some; each point once."""
        first = self.first or next(iter(self.rows))
        if first in self.rows:
            lines = [[(row, column) for column in self.columns] for row in _led(first, self.rows)]
        else:
            lines = [[(row, column) for row in self.rows] for column in _led(first, self.columns)]
        seen: list[dict[str, Any]] = []
        found = []
        for line in lines:
            part = []
            for row, column in line:
                point = self.cell(row, column).sample
                if point and point not in seen:
                    seen.append(point)
                    part.append(point)
            if part:
                found.append(part)
        return found

    def _means_trial(self, row: str) -> bool:
        """Whether cells of a row are sampled trials: where rows differ by values, of those alone
        that have some."""
        return bool(self.rows[row].sample) or not any(one.sample for one in self.rows.values())

    def cells(self) -> Iterator[tuple[str, str]]:
        """Row and column of each cell."""
        return product(self.rows, self.columns)


def _led(first: str, names: Iterable[str]) -> list[str]:
    """The names, with one of them in front."""
    return sorted(names, key=lambda name: name != first)


def _known(place: str, name: str | None, names: dict[str, Any]) -> None:
    if name not in names:
        raise ValueError(f"{place}: {name!r} is none of {', '.join(names)}")
