"""What was read to make a data set, and what was not: for `check`, the report and pareto.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_NAMED = 4


@dataclass(frozen=True)
class Skipped:
    """Files of one ending (lower case, with its dot, or empty) that were not read, and why."""

    ending: str
    files: int
    reason: str


@dataclass(frozen=True)
class Ignored:
    """A folder that was not read, relative to the data set's root, how many files lie in it, and
    why."""

    folder: str
    files: int
    reason: str


@dataclass
class Reading:
    """What a source notes down while it reads."""

    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Files not read, by ending and reason."""
    ignored: list[Ignored] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def skip(self, ending: str, reason: str) -> None:
        self.skipped[ending, reason] += 1

    def skips(self) -> tuple[Skipped, ...]:
        return tuple(Skipped(e, n, reason) for (e, reason), n in sorted(self.skipped.items()))


@dataclass(frozen=True)
class Account:
    """One summary of a data set: images of each class by part, where the parts come from, and all
    that lay there and was not read.

    `image` is (channels, height, width). `notes` tell what is good to know, `warnings` what is
    likely a mistake.
    """

    classes: tuple[str, ...]
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    image: tuple[int, int, int]
    pixels: str
    validation_from: str
    test_from: str
    skipped: tuple[Skipped, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The account as JSON can hold it."""
        counts = zip(self.classes, self.train, self.validation, self.test, strict=True)
        return {
            "classes": {
                name: {"train": train, "validation": validation, "test": test}
                for name, train, validation, test in counts
            },
            "train": sum(self.train),
            "validation": sum(self.validation),
            "test": sum(self.test),
            "image": list(self.image),
            "pixels": self.pixels,
            "validation_from": self.validation_from,
            "test_from": self.test_from,
            "skipped": [vars(one) for one in self.skipped],
            "ignored": [vars(one) for one in self.ignored],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """The account in words, without its warnings: what was read, then a line each for what was
        skipped, ignored and noted."""
        size = " x ".join(map(str, self.image))
        counts = [
            f"{sum(self.train):,} training",
            f"{sum(self.validation):,} validation ({self.validation_from})",
            f"{sum(self.test):,} test images ({self.test_from})",
        ]
        made = [f"{_classes(self.classes)}; {', '.join(counts)}; {size} {self.pixels}"]
        made += [
            f"skipped: {_files(one.files)} {_ending(one.ending)} ({one.reason})"
            for one in self.skipped
        ]
        made += [
            f"ignored: {one.folder}/ with {_files(one.files)} ({one.reason})"
            for one in self.ignored
        ]
        return [*made, *self.notes]


def _classes(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} classes ({', '.join(names[:_NAMED])}{more})"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _ending(ending: str) -> str:
    return ending or "without an ending"
