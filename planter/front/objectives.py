"""What networks are compared by: how it is measured, which way is better, how it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planter.costs.macs import Cost
    from planter.training.scores import Score


@dataclass(frozen=True)
class Objective:
    """A number of each point.

    `title` is that of its axis, which shows `factor` times the value with ticks in `tickformat`
    (as D3 says it); `short` is its name in a sentence, `text` writes a value. Of a `logarithmic`
    one the decimal logarithm counts: on axes, in the hypervolume, at the knee. `of` tells it of a
    trained network; None where it is not known when a training ends.
    """

    title: str
    short: str
    text: Callable[[float], str]
    maximise: bool = False
    logarithmic: bool = True
    factor: float = 1.0
    tickformat: str = "~s"
    of: Callable[[Score, Cost], float] | None = None

    def scaled(self, value: float) -> float:
        """The value as it counts."""
        return math.log10(value) if self.logarithmic else value

    def cost_of(self, value: float) -> float:
        """The value such that less is better."""
        return -value if self.maximise else value


OBJECTIVES = {
    "accuracy": Objective(
        "validation accuracy (%)",
        "accuracy",
        lambda value: f"{100 * value:.2f} %",
        maximise=True,
        logarithmic=False,
        factor=100.0,
        of=lambda score, cost: score.accuracy,
    ),
    "macs": Objective(
        "macs (conv + linear, one image)",
        "multiply-adds",
        lambda value: f"{value:,} macs",
        of=lambda score, cost: cost.macs,
    ),
    "params": Objective(
        "parameters",
        "parameters",
        lambda value: f"{value:,} parameters",
        of=lambda score, cost: cost.params,
    ),
    "latency_ms": Objective(
        "latency (ms)", "latency", lambda value: f"latency {value:.3g} ms", tickformat="~g"
    ),
}
"""By the key of a point's values."""

SEARCHED = METRIC, COST = "accuracy", "macs"
"""What a search is after: how well a network does, and what that costs."""


def values_of(values: Mapping[str, Any], names: Sequence[str] = SEARCHED) -> list[Any]:
    """A point's values, a row of `pareto.json` or `Point.values`, by the names of objectives."""
    return [values[name] for name in names]


def cheapest_first(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """A key to sort by: the cost rises, and of equal costs the better metric comes first."""
    return tuple(OBJECTIVES[name].cost_of(values[name]) for name in (COST, METRIC))
