"""How sure a number is that some images told: intervals, and whether two networks differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planter.front.objectives import OBJECTIVES
from planter.training.answers import Answers

LEVEL = 0.95
"""Of every interval."""
DRAWS, _SEED = 1_000, 0
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)

Interval = tuple[float, float]


def wilson(share: float, images: int) -> Interval:
    """The 95 % interval of a share (0..1) of so many images (Wilson, "Probable inference, the law
    of succession, and statistical inference", JASA 22, 1927). Raises ValueError without images."""
    if images < 1:
        raise ValueError("an interval needs images; expected 1 or more")
    centre = share + _Z**2 / (2 * images)
    reach = _Z * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    scale = 1 + _Z**2 / images
    # Rounding must leave no interval beside its share.
    return min(max((centre - reach) / scale, 0.0), share), max(
        min((centre + reach) / scale, 1.0), share
    )


def resampled(
    measure: Callable[..., ArrayLike], *answers: Answers
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95 % interval of what `measure` tells of answers, a number or an array: percentiles over
    1,000 drawings of as many images with replacement, the same ones for each of the `answers`, by a
    seed of its own (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13)."""
    generator = np.random.default_rng(_SEED)
    images = len(answers[0])
    found = []
    for _ in range(DRAWS):
        drawn = generator.integers(images, size=images)
        found.append(np.asarray(measure(*(one.take(drawn) for one in answers)), dtype=np.float64))
    low, high = np.percentile(np.stack(found), [50 - 50 * LEVEL, 50 + 50 * LEVEL], axis=0)
    return low, high


def interval_of(answers: Answers, metric: str) -> Interval:
    """The 95 % interval of a metric: Wilson's of a share of images, resampled of any other."""
    if OBJECTIVES[metric].proportion:
        return wilson(float(getattr(answers, metric)), len(answers))
    low, high = resampled(attrgetter(metric), answers)
    return float(low), float(high)


def with_interval(name: str, value: float | None, interval: Interval | None) -> dict[str, Any]:
    """A value under its name and its interval under `<name>_low` and `<name>_high`."""
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def interval_in(row: Mapping[str, Any], name: str) -> Interval | None:
    """The interval that a row of pareto.json has of one of its values; None where it has none."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def interval_text(metric: str, interval: Interval | None) -> str:
    """`93.7-98.1`, in the unit in which the metric is shown; empty without an interval."""
    if interval is None:
        return ""
    objective = OBJECTIVES[metric]
    digits = 1 if objective.factor == 100 else 3
    return "-".join(f"{objective.factor * end:.{digits}f}" for end in interval)


def value_text(
    row: Mapping[str, Any], metric: str, prefix: str = "", *, headed: bool = False
) -> str:
    """`96.53 % (93.7-98.1)`: a metric of a row of pareto.json and its interval, where it has them;
    with the prefix `test_` of the test images. `headed`: under its name."""
    name, objective = f"{prefix}{metric}", OBJECTIVES[metric]
    if (value := row.get(name)) is None:
        return ""
    around = interval_text(metric, interval_in(row, name))
    shown = objective.cell(value) if headed else objective.text(value)
    return shown + (f" ({around})" if around else "")


def like_guessing(front: Mapping[str, Any], ids: Collection[str] | None = None) -> str | None:
    """That the most accurate network on the front of a pareto.json, or among those named, is not
    told from one that always answers the class with most validation images, in words; None where it
    is, or where classes are not known."""
    told = (front.get("data") or {}).get("classes", {})
    counts = {name: parts.get("validation", 0) for name, parts in told.items()}
    known = [point for point in front["points"] if point.get("accuracy") is not None]
    known = [p for p in known if (p["on_front"] if ids is None else p["id"] in ids)]
    if not sum(counts.values()) or not known:
        return None
    best = max(known, key=lambda point: float(point["accuracy"]))
    often = max(counts, key=lambda name: counts[name])
    images, share = sum(counts.values()), counts[often] / sum(counts.values())
    if wilson(best["accuracy"], images)[0] > share:
        return None
    return (
        f"{best['id']} is not told from guessing: {value_text(best, 'accuracy')} of {images:,} "
        f"validation images, always {often!r} has {100 * share:.2f} %; more images, longer recipes "
        "or a better teacher help"
    )


class Paired(NamedTuple):
    """Two networks on the same images: on how many the first alone is right, and the second alone;
    the difference of their accuracies, first minus second, and its 95 % interval; `p` of the exact
    test that they are equally often right."""

    images: int
    first_only: int
    second_only: int
    difference: float
    interval: Interval
    p: float


def paired(first: Answers, second: Answers) -> Paired:
    """Whether one network is more accurate than another on the images that both answered.

    `p` is that of McNemar's exact test (two-sided; "Note on the sampling error of the difference
    between correlated proportions or percentages", Psychometrika 12, 1947), the interval the
    adjusted one of Bonett and Price ("Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data", J. Educ. Behav. Stat. 37, 2012). Raises ValueError
    for answers on different images.
    """
    _same_images(first, second)
    images = len(first)
    ahead = int((first.right & ~second.right).sum())
    behind = int((second.right & ~first.right).sum())
    more, less = (ahead + 1) / (images + 2), (behind + 1) / (images + 2)
    reach = _Z * math.sqrt((more + less - (more - less) ** 2) / (images + 2))
    interval = max(more - less - reach, -1.0), min(more - less + reach, 1.0)
    difference = (ahead - behind) / images
    return Paired(images, ahead, behind, difference, interval, _mcnemar(ahead, behind))


def paired_metric(first: Answers, second: Answers, metric: str) -> tuple[float, Interval]:
    """The difference of a metric, first minus second, and its 95 % interval, resampled. Raises
    ValueError for answers on different images."""
    _same_images(first, second)

    measure = attrgetter(metric)
    low, high = resampled(lambda one, two: float(measure(one)) - measure(two), first, second)
    apart = float(measure(first)) - float(measure(second))
    return apart, (float(low), float(high))


def unpaired(first: tuple[float, Interval], second: tuple[float, Interval]) -> Interval:
    """The 95 % interval of the difference, first minus second, of two values that different images,
    or unknown ones, told, each with its own interval: the squares of the ways to their ends add up
    (Newcombe, "Interval estimation for the difference between independent proportions", Statistics
    in Medicine 17, 1998, method 10)."""
    (one, (one_low, one_high)), (other, (other_low, other_high)) = first, second
    apart = one - other
    below = math.hypot(one - one_low, other_high - other)
    above = math.hypot(one_high - one, other - other_low)
    return apart - below, apart + above


def _mcnemar(ahead: int, behind: int) -> float:
    """Twice the chance of so few heads, or fewer, among as many fair coins as images differ."""
    coins, heads = ahead + behind, min(ahead, behind)
    ways, below = 1, 0
    for number in range(heads + 1):
        below += ways
        ways = ways * (coins - number) // (number + 1)
    return min(2 * below / (1 << coins), 1.0)


def _same_images(first: Answers, second: Answers) -> None:
    if len(first) != len(second) or not np.array_equal(first.labels, second.labels):
        raise ValueError(
            f"the answers are on different images ({len(first):,} and {len(second):,}, or with "
            "other labels); expected two networks on the same ones"
        )
