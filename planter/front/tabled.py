"""The figures of a paper's table beside those of runs: means, spreads, differences, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

from planter.front.certainty import LEVEL, Interval, wilson
from planter.study.table import Claim, Measure, PaperTable

PUBLISHED = "published"


class Value(NamedTuple):
    """What a network reached, in the unit of its cell: percent, nats, parameters, multiply-adds. Of
    which run it is, and which of its points; `images` of which it is a share, if it is one."""

    value: float
    run: str
    point: str
    images: int | None = None


@dataclass(frozen=True)
class Cell:
    """A cell: the networks of its own, each a training, and what the paper says."""

    row: str
    column: str
    measure: Measure
    values: Sequence[Value]
    published: float | None = None
    published_std: float | None = None
    lacks: str | None = None
    """Why there is no value, where there is none."""

    @property
    def mean(self) -> float | None:
        return fmean(one.value for one in self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the trainings; None of fewer than two."""
        return stdev(one.value for one in self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean: Student's over the trainings, Wilson's of a single share
        of images; None where there is neither."""
        if self.mean is None or self.measure in ("params", "macs"):
            return None
        if self.std is not None:
            reach = student(len(self.values) - 1) * self.std / math.sqrt(len(self.values))
            return self.mean - reach, self.mean + reach
        (only,) = self.values
        if only.images is None:
            return None
        low, high = wilson(min(max(only.value / 100, 0.0), 1.0), only.images)
        return 100 * low, 100 * high

    @property
    def difference(self) -> float | None:
        """The mean over what the paper says."""
        if self.mean is None or self.published is None:
            return None
        return self.mean - self.published

    @property
    def difference_interval(self) -> Interval | None:
        """The 95 % interval of the difference, the paper's figure taken as exact."""
        if self.interval is None or self.published is None:
            return None
        low, high = self.interval
        return low - self.published, high - self.published


@dataclass(frozen=True)
class Tabled:
    """A table with its cells, by row and column, and what is to be said of the runs behind it."""

    table: PaperTable
    cells: Mapping[tuple[str, str], Cell]
    facts: Mapping[str, str] = field(default_factory=dict)
    shortened: str | None = None

    def claims(self) -> list[dict[str, Any]]:
        """What the table's claims have come to, as benchmarks print them: `value` is None, and
        nothing holds, where a cell has no network; `seeds` counts the trainings of the fewer."""
        found = []
        for claim in self.table.claims:
            for column in [claim.column] if claim.column else self.table.columns:
                if (one := self._claim(claim, column)) is not None:
                    found.append(one)
        return found

    def _claim(self, claim: Claim, column: str) -> dict[str, Any] | None:
        cell = self.cells[claim.row, column]
        own, beside = cell.mean, None
        counts = [len(cell.values)]
        if claim.beside == PUBLISHED:
            beside = cell.published
            if beside is None:
                return None
        elif claim.beside is not None:
            other = self.cells[claim.beside, column]
            beside = other.mean
            counts.append(len(other.values))
        value: float | None = None
        if own is not None and (claim.beside is None or beside is not None):
            value = round(own - (beside or 0.0), 4)
        name = claim.row if claim.beside is None else f"{claim.row} - {claim.beside}"
        if len(self.table.columns) > 1:
            name += f", {column}"
        return {
            "name": name,
            "value": value,
            "target": claim.target,
            "holds": value is not None and claim.holds(value),
            "seeds": min(counts),
        }


def student(freedom: int) -> float:
    """The half-width, in standard errors, of Student's 95 % interval: the quantile of its
    distribution with so many degrees of freedom.

    The distribution is summed in closed form (Abramowitz and Stegun, "Handbook of Mathematical
    Functions", 26.7.3 and 26.7.4). Raises ValueError below one degree.
    """
    if freedom < 1:
        raise ValueError(f"an interval needs two values or more, got {freedom + 1}")
    low, high = 0.0, math.tan(math.pi * LEVEL / 2)  # that of one degree, the widest
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < LEVEL else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The share of Student's distribution between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    total, term = 0.0, cos if odd else 1.0
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cos**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sin * total) if odd else sin * total
