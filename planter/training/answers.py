"""What a network answers on a split, image by image, and the measures that follow from it."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from planter.machine.disk import write_whole

TOP = 5
"""Answers of which one is to be right, for `top5`."""
VALIDATION_FILE, TEST_FILE = "predictions.npz", "predictions-test.npz"
"""Beside a saved network."""


class ClassCounts(NamedTuple):
    """Of each class `[classes]`: its images, how often it was answered, how often rightly."""

    images: NDArray[np.int64]
    answered: NDArray[np.int64]
    hits: NDArray[np.int64]

    def recall(self) -> NDArray[np.float64]:
        """Share of a class's images that are told; not a number for a class without images."""
        return _ratio(self.hits, self.images)

    def precision(self) -> NDArray[np.float64]:
        """Share of a class's answers that are right; not a number where it is never answered."""
        return _ratio(self.hits, self.answered)

    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of recall and precision, 0 where nothing is right; not a number for a class
        that has neither images nor answers."""
        return _ratio(2 * self.hits, self.images + self.answered)

    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        return float(np.mean(self.recall()[self.images > 0]))

    def f1_macro(self) -> float:
        """Mean F1 of the classes that have images or answers."""
        return float(np.mean(self.f1()[self.images + self.answered > 0]))


@dataclass(frozen=True, eq=False)
class Answers:
    """Of each image `[images]`: its label, the class answered, whether the label is among the
    five likeliest classes, the cross-entropy in nats. `loss` is their mean."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    among_top: NDArray[np.bool_]
    losses: NDArray[np.float64]
    classes: int
    loss: float

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image `[images]` is classified correctly."""
        return np.equal(self.labels, self.predicted)

    @property
    def accuracy(self) -> float:
        """Share of images classified correctly, 0..1."""
        return int(self.right.sum()) / len(self)

    @property
    def top5(self) -> float:
        """Share of images whose label is among the five likeliest classes, 0..1."""
        return int(self.among_top.sum()) / len(self)

    @property
    def balanced_accuracy(self) -> float:
        """As of `sklearn.metrics.balanced_accuracy_score`, 0..1."""
        return self.counts().balanced_accuracy()

    @property
    def f1_macro(self) -> float:
        """As of `sklearn.metrics.f1_score(average="macro", zero_division=0)`, 0..1."""
        return self.counts().f1_macro()

    def take(self, index: NDArray[np.int64]) -> Answers:
        """Those on some of the images, each as often as `index` names it."""
        return replace(
            self,
            labels=self.labels[index],
            predicted=self.predicted[index],
            among_top=self.among_top[index],
            losses=self.losses[index],
            loss=float(self.losses[index].mean()),
        )

    def confusion(self) -> NDArray[np.int64]:
        """Images `[label, predicted]`."""
        cells = self.labels * self.classes + self.predicted
        cells = np.bincount(cells, minlength=self.classes**2)
        return cells.reshape(self.classes, self.classes)

    def counts(self) -> ClassCounts:
        """What the measures of classes are made of."""
        every = (self.labels, self.predicted, self.labels[self.right])
        return ClassCounts(*(np.bincount(of, minlength=self.classes) for of in every))

    def save(self, file: Path) -> None:
        """Writes a file of numpy's (`labels`, `predicted`, `among_top`, `losses`) that appears
        whole or not at all."""
        narrow = np.min_scalar_type(max(self.classes - 1, 1))
        content = io.BytesIO()
        np.savez_compressed(
            content,
            labels=self.labels.astype(narrow),
            predicted=self.predicted.astype(narrow),
            among_top=self.among_top,
            losses=self.losses.astype(np.float32),
            classes=np.int64(self.classes),
            loss=np.float64(self.loss),
        )
        write_whole(file, content.getbuffer())

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `save` wrote. Raises FileNotFoundError where there is nothing, ValueError where it
        is damaged."""
        try:
            # From memory: of a damaged file numpy leaves open what it has opened.
            with np.load(io.BytesIO(file.read_bytes())) as kept:
                return cls(
                    kept["labels"].astype(np.int64),
                    kept["predicted"].astype(np.int64),
                    kept["among_top"],
                    kept["losses"].astype(np.float64),
                    int(kept["classes"]),
                    float(kept["loss"]),
                )
        except (BadZipFile, KeyError, EOFError, ValueError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error


def _ratio(over: NDArray[np.int64], under: NDArray[np.int64]) -> NDArray[np.float64]:
    """Quotients; not a number, and no warning, where there is nothing to divide by."""
    found = np.full(len(over), np.nan)
    np.divide(over, under, out=found, where=under > 0)
    return found
