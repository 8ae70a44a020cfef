"""The run folder's documents and models, derived from the books: brought up to them while a search
goes on, and reported at its end."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from planter.data import Data, Split
from planter.driver.proposers.proposer import Proposer
from planter.driver.run_folder.report import write_report
from planter.driver.run_folder.settings import drop_checkpoints, drop_locks
from planter.driver.storage.points import PointBook
from planter.front.certainty import interval_of, with_interval
from planter.front.describe import with_networks
from planter.front.points import (
    Point,
    best_family,
    columns,
    document,
    to_csv,
    trained_macs,
    write_text,
)
from planter.machine.disk import is_full, when_there_is_space
from planter.networks import checkpoint
from planter.networks.normalisation import as_taken
from planter.plots import LINKS, front_figure, write_html
from planter.study.schema import Study
from planter.training.answers import TEST_FILE
from planter.training.scores import answers

log = logging.getLogger(__name__)
_SHARE_OF_WRITING = 0.05
"""Of the driver's time, at most, for documents while it searches."""


class Documents:
    """What people and other commands read of a run."""

    def __init__(
        self,
        study: Study,
        run: Path,
        data: Data,
        book: PointBook,
        reference: Sequence[float],
        proposers: Sequence[Proposer],
    ) -> None:
        self._study = study
        self._run = run
        self._data = data
        self._book = book
        self._reference = reference
        self._proposers = proposers
        self._limits = study.objectives.bounds.limits()
        self._objectives = study.objectives.names
        self._family = study.objectives.family
        self._due = 0.0
        self._late = False
        self._dropped: set[str] = set()
        self._failed: Mapping[str, str] = {}
        self._notes: dict[str, str] = {}
        self._ended: Mapping[str, Any] | None = None

    def out_of_date(self) -> None:
        """Says that the books hold more than the documents."""
        self._late = True

    @property
    def due(self) -> bool:
        """Whether the documents are out of date and should be written now. In a long study, writing
        them takes longer than recording a trial, so it is delayed: it gets at most the share
        _SHARE_OF_WRITING of the driver's time.
        """
        return self._late and time.monotonic() >= self._due

    @property
    def late(self) -> bool:
        """Whether the books hold more than the documents."""
        return self._late

    def refresh(self) -> None:
        """Writes what can be read before the end; not on a full disk, as it will be written anew
        after the next job."""
        try:
            self._write()
        except OSError as error:
            if not is_full(error):
                raise
            log.warning("no space left in %s: pareto.json and others are not up to date", self._run)

    def report(
        self,
        *,
        complete: bool,
        failed: Mapping[str, str],
        notes: Mapping[str, str],
        ended: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Reads the test data for what is reported and writes everything, with how the search
        `ended`, why trainings `failed`, by trial, and `notes` of why there are no more, by what
        they are about; of a run that is `complete`, what only a search needs is removed."""
        self._failed, self._notes, self._ended = failed, dict(notes), ended
        if (told := self._study.budget.shortened) is not None:
            self._notes["scale"] = told
        known = self._tested()
        if (test := self._data.test) is not None:
            for point in self._reported():
                there = (self._run / "models" / point.id).is_dir()
                if point.id not in known and there:
                    known[point.id] = self._test(point, test)
        when_there_is_space(lambda: self._write(known), self._run)
        found = self._document(known)
        pages = {"pareto.html": front_figure([with_networks(found, self._book.points)])}
        for proposer in self._proposers:
            pages |= proposer.figures()
        beside = [*pages, *("report.html" for _ in found["points"][:1])]
        beside += [name for name in LINKS if (self._run / name).is_file()]
        for name, figure in pages.items():
            when_there_is_space(partial(write_html, figure, self._run / name, beside), self._run)
        if found["points"]:
            when_there_is_space(partial(write_report, self._run, ended=True), self._run)
        if complete:
            drop_locks(self._run)
            drop_checkpoints(self._run / "trials")
        return found

    def trained_macs(self) -> int:
        """Multiply-adds of all trainings, also of those that were stopped."""
        others = sum(macs for macs, _ in self._unfinished().values())
        return trained_macs(self._book.points) + others

    def _reported(self) -> list[Point]:
        """The front, the best family where one is asked for, the teacher and the baselines; for a
        table of a paper, what was sampled."""
        points = self._book.points
        others = [point for point in points if not point.searched]
        front = self._book.front
        if self._study.table is not None:
            others += [p for p in points if p.method == "sample" and p not in front]
        if self._family:
            family = best_family(points, self._reference, self._limits, self._objectives)
            others += [point for point in family if point not in [*front, *others]]
        return front + others

    def _test(self, point: Point, test: Split) -> dict[str, float]:
        """What a point does on the test images, under `test_...`; its answers stay beside it."""
        folder = self._run / "models" / point.id
        network = checkpoint.load(folder, own_code=True)
        given = answers(network, as_taken(test, checkpoint.read_spec(folder)))
        when_there_is_space(partial(given.save, folder / TEST_FILE), folder)
        found: dict[str, float] = {"test_accuracy": given.accuracy}
        if (metric := self._objectives[0]) != "accuracy":
            interval = interval_of(given, metric)
            found |= with_interval(f"test_{metric}", getattr(given, metric), interval)
        return found

    def _tested(self) -> dict[str, dict[str, float]]:
        """What was read from the test data before, by point; it is not read twice."""
        file = self._run / "pareto.json"
        if not file.is_file():
            return {}
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))["points"]
            read = [row for row in rows if row["test_accuracy"] is not None]
            return {
                row["id"]: {name: row[name] for name in row if name.startswith("test_")}
                for row in read
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is damaged (%r): test accuracies are read anew", file, error)
            return {}

    def _write(self, tested: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Brings the folder's documents and models up to the books."""
        began, self._late = time.monotonic(), False
        points = self._book.points
        self._drop_models(points)
        if not points and self._ended is None:
            return  # nothing to read yet; at the end, why there is nothing
        found = self._document(self._tested() if tested is None else tested)
        write_text(self._run / "pareto.json", json.dumps(found, indent=2) + "\n")
        write_text(self._run / "pareto.csv", to_csv(found["points"], columns(self._objectives)))
        for proposer in self._proposers:
            for name, text in proposer.documents().items():
                write_text(self._run / name, text)
        self._due = time.monotonic() + (time.monotonic() - began) / _SHARE_OF_WRITING

    def _document(self, tested: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        images = {"accuracy": len(self._data.validation)}
        if (test := self._data.test) is not None:
            images["test_accuracy"] = len(test)
        failed = [{"trial": name, "reason": why} for name, why in self._failed.items()]
        found = document(
            self._study.name,
            self._book.points,
            self._reference,
            self._limits,
            {name: values["test_accuracy"] for name, values in tested.items()},
            self._run,
            family=self._family,
            unfinished=self._unfinished(),
            data=self._data.account.document() if self._data.account is not None else None,
            objectives=self._objectives,
            images=images,
            tested=tested,
        )
        notes = [{"about": about, "text": text} for about, text in self._notes.items()]
        ended = None if self._ended is None else dict(self._ended)
        return {**found, "outcome": ended, "failed": failed, "notes": notes}

    def _unfinished(self) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for proposer in self._proposers:
            found |= proposer.unfinished()
        return found

    def _drop_models(self, points: Sequence[Point]) -> None:
        """Removes saved networks that are neither reported nor needed for the search to go on."""
        if self._study.keep == "all":
            return
        kept = {point.id for point in self._reported()}
        needed = set[str]().union(*(proposer.needed() for proposer in self._proposers))
        for point in points:
            if point.id in self._dropped:
                continue
            if point.id not in kept and point.trial not in needed:
                self._dropped.add(point.id)
                folder = self._run / "models" / point.id
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # the trial's other pipelines may be kept
                    folder.parent.rmdir()
