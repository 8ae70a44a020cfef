"""What a report says of single classes, from a point's answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planter.front.certainty import resampled, wilson
from planter.report.contents import Table
from planter.training.answers import Answers, ClassCounts

_MANY = 20
_CONFUSED = 3
"""Pairs of classes that are named."""


def classes_table(answers: Answers, names: Sequence[str]) -> Table:
    """A row for each class: its images, recall, precision and F1 with their 95 % intervals; of many
    classes those of the worst F1 first."""
    counts = answers.counts()
    low, high = resampled(lambda drawn: np.nan_to_num(drawn.counts().f1()), answers)
    rows = [
        [
            name,
            f"{counts.images[at]:,}",
            _share(counts.hits[at], counts.images[at]),
            _share(counts.hits[at], counts.answered[at]),
            _f1(counts.f1(), low, high, at, _least_f1(counts, at)),
        ]
        for at, name in enumerate(names)
    ]
    if len(names) > _MANY:
        rows = [rows[at] for at in np.argsort(counts.f1(), kind="stable")]
    return Table(["class", "images", "recall", "precision", "F1"], rows)


def confused(answers: Answers, names: Sequence[str]) -> str:
    """The classes that are confused most often, in words; empty where all is right."""
    wrong = answers.confusion().copy()
    np.fill_diagonal(wrong, 0)
    most = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSED]
    told = []
    for label, answer in zip(*np.unravel_index(most, wrong.shape), strict=True):
        if number := wrong[label, answer]:
            told.append(f"{names[label]} taken for {names[answer]} ({number:,})")
    return ", ".join(told)


def _share(hits: int, images: int) -> str:
    if not images:
        return "none"
    low, high = wilson(hits / images, int(images))
    return _text(hits / images, low, high)


def _least_f1(counts: ClassCounts, at: int) -> float:
    """1, or of a class without errors the F1 of the lower ends of recall and precision: drawn
    again, it has none either, however few its images are."""
    hits = int(counts.hits[at])
    if not hits or hits != counts.images[at] or hits != counts.answered[at]:
        return 1.0
    return wilson(1.0, hits)[0]


def _f1(
    value: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    at: int,
    least: float,
) -> str:
    if np.isnan(value[at]):
        return "none"
    return _text(value[at], min(low[at], least), high[at])


def _text(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % ({100 * low:.0f}-{100 * high:.0f})"
