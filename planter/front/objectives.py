"""What networks are compared by: how it is measured, which way is better, how it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planter.training.answers import TOP, Answers

if TYPE_CHECKING:
    from planter.costs.macs import Cost


@dataclass(frozen=True)
class Objective:
    """A number of each point.

    `title` is that of its axis, which shows `factor` times the value with ticks in `tickformat`
    (as D3 says it); `short` is its name in a sentence, `text` writes a value. Of a `logarithmic`
    one the decimal logarithm counts: on axes, in the hypervolume, at the knee. `of` tells it of a
    trained network; None where it is not known when a training ends. One that is `asked` for is
    told of the runs alone that search by it. `chance` is what a metric is, of so many classes, for
    who knows nothing of an image; None of a cost. A `proportion` is a share of images.
    """

    title: str
    short: str
    text: Callable[[float], str]
    maximise: bool = False
    logarithmic: bool = True
    factor: float = 1.0
    tickformat: str = "~s"
    of: Callable[[Answers, Cost], float] | None = None
    asked: bool = False
    chance: Callable[[int], float] | None = None
    proportion: bool = False

    def scaled(self, value: float) -> float:
        """The value as it counts."""
        return math.log10(value) if self.logarithmic else value

    def cell(self, value: float) -> str:
        """The value as text under a heading that names it."""
        return self.text(value).removeprefix(f"{self.short} ")

    def cost_of(self, value: float) -> float:
        """The value such that less is better."""
        return -value if self.maximise else value

    def merit_of(self, value: float) -> float:
        """The value such that more is better."""
        return value if self.maximise else -value


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _share(short: str, of: Callable[[Answers, Cost], float], **further: Any) -> Objective:
    """A metric from 0 to 1, shown in percent."""
    return Objective(
        f"validation {short} (%)",
        short,
        _percent,
        maximise=True,
        logarithmic=False,
        factor=100.0,
        tickformat="~g",
        of=of,
        asked=True,
        **{"chance": lambda classes: 1 / classes, **further},
    )


OBJECTIVES = {
    "accuracy": Objective(
        "validation accuracy (%)",
        "accuracy",
        _percent,
        maximise=True,
        logarithmic=False,
        factor=100.0,
        of=lambda answers, cost: answers.accuracy,
        chance=lambda classes: 1 / classes,
        proportion=True,
    ),
    "macs": Objective(
        "macs (conv + linear, one image)",
        "multiply-adds",
        lambda value: f"{value:,} macs",
        of=lambda answers, cost: cost.macs,
    ),
    "params": Objective(
        "parameters",
        "parameters",
        lambda value: f"{value:,} parameters",
        of=lambda answers, cost: cost.params,
    ),
    "latency_ms": Objective(
        "latency (ms)", "latency", lambda value: f"latency {value:.3g} ms", tickformat="~g"
    ),
    "balanced_accuracy": _share(
        "balanced accuracy", lambda answers, cost: answers.balanced_accuracy
    ),
    # Of guesses, constant, even or by the shares of the classes, the last has most: each class's
    # F1 is then its share, whatever the shares are.
    "f1_macro": _share("macro F1", lambda answers, cost: answers.f1_macro),
    "top5": _share(
        "top-5 accuracy",
        lambda answers, cost: answers.top5,
        chance=lambda classes: min(TOP, classes) / classes,
        proportion=True,
    ),
    "loss": Objective(
        "validation loss (cross-entropy)",
        "loss",
        lambda value: f"loss {value:.4f}",
        logarithmic=False,
        tickformat="~g",
        of=lambda answers, cost: answers.loss,
        asked=True,
        chance=math.log,
    ),
    "bytes": Objective(
        "size of the weights (bytes)",
        "size",
        lambda value: f"{value:,} bytes",
        of=lambda answers, cost: cost.size_bytes,
        asked=True,
    ),
}
"""By the key of a point's values."""

SEARCHED: Sequence[str] = ("accuracy", "macs")
"""What a search is after unless its study says otherwise: how well a network does, the metric, and
one or two costs of that."""


def values_of(values: Mapping[str, Any], names: Sequence[str] = SEARCHED) -> list[Any]:
    """A point's values, a row of `pareto.json` or `Point.values`, by the names of objectives."""
    return [values[name] for name in names]


def directions(names: Sequence[str]) -> tuple[bool, ...]:
    """Of which of these objectives more is better."""
    return tuple(OBJECTIVES[name].maximise for name in names)


def cheapest_first(values: Mapping[str, Any], names: Sequence[str] = SEARCHED) -> tuple[Any, ...]:
    """A key to sort by: the first cost rises, of equal ones the better metric comes first, then the
    smaller second cost."""
    metric, cost, *second = names
    return tuple(OBJECTIVES[name].cost_of(values[name]) for name in (cost, metric, *second))


def metric_merit(values: Mapping[str, Any], names: Sequence[str] = SEARCHED) -> float:
    """How good a point is by the metric: more is better."""
    return OBJECTIVES[names[0]].merit_of(values[names[0]])
