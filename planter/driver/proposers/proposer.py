"""What a proposer is: a source of jobs that keeps its own book of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from optuna.storages import BaseStorage

from planter.driver.storage.points import PointBook
from planter.driver.trials.bounds import Latencies
from planter.driver.trials.jobs import Job, Outcome
from planter.front.points import Point
from planter.study.schema import Study

if TYPE_CHECKING:
    from planter.driver.checking.check import Prepared
    from planter.plots import Figure


@dataclass(frozen=True)
class SearchContext:
    """What a proposer is made from: the study as checked, the books of its run, and the trainings
    that run side by side."""

    study: Study
    storage: BaseStorage
    prepared: Prepared
    book: PointBook
    reference: Sequence[float]
    latencies: Latencies
    workers: int
    run: Path
    macs_left: Callable[[], float]
    """Multiply-adds of trainings that the budget has left, beside what runs; infinite where the
    study sets no such budget."""

    @property
    def limits(self) -> dict[str, float]:
        """The study's bounds, by the quantity they bound."""
        return self.study.objectives.bounds.limits()


class Notice(NamedTuple):
    """What a proposer has decided, in words, whether a trial `failed` by that, and the trials it
    closed: they are done, and their checkpoints of no more use."""

    text: str
    closed: Sequence[str] = ()
    failed: bool = False


class Exhausted(NamedTuple):
    """Why a proposer proposes no more though not all that was asked for is trained, in words, and
    whether networks beyond the bounds are among the reasons."""

    why: str
    by_bounds: bool


class Proposer(Protocol):
    """A proposer subclasses this and takes its defaults where it has nothing to add."""

    method: str
    """Of its points: a key of `planter.front.methods.METHODS`."""
    kinds: Collection[str]
    """Of its jobs: keys of `planter.driver.tasks.run_job.TASKS`, each of one proposer."""
    representative: Collection[str]
    """Those kinds whose duration tells how long what is left will take."""
    after_teacher: bool = True
    """Whether it proposes nothing while the study's teacher is still to be trained."""
    takes_turns: bool = False
    """Whether it and others that do so are asked in turn, the one first that has proposed least;
    the others come before, in their order."""

    def next(self) -> Job | None:
        """A job to train now; None while there is none, for good or until another has finished."""

    def compare(self, job: Job, outcome: Outcome, *, go_on: bool) -> Job | None:
        """Books a partial outcome, of a proposer whose jobs have such. The job that its worker goes
        on with at once; None where it ends there, also because nothing is to `go_on`."""
        raise TypeError(f"{job.id} has a partial outcome, {self.method} compares none")

    def finish(self, job: Job, outcome: Outcome) -> None:
        """Books the outcome of a job, and the points that are certain by it. Raises
        SearchStoppedError where the search makes no sense without it."""

    def take_back(self, job: Job) -> None:
        """Leaves a job open that was handed out and has not been trained to its end, of a search
        whose time is over."""
        raise TypeError(f"{job.id} was ended by time, {self.method} takes none back")

    def left(self) -> int:
        """How many jobs, at most, are still to be finished; 0 ends this proposer."""

    def done(self) -> int:
        """How many trials are over: trained, failed or stopped, in this run of the driver or, by
        the books, an earlier one."""

    def failed(self) -> int:
        """Failed trials that count against `resources.max_failures`."""
        return len(self.failures())

    def failures(self) -> dict[str, str]:
        """Why trials failed, by id: all that the books hold, and of trials that have no book those
        of this run of the driver."""
        return {}

    def raise_if_hopeless(self) -> None:
        """Raises SearchStoppedError where no other proposer can go on after what has failed."""
        return

    def exhausted(self) -> Exhausted | None:
        """Why it proposes no more before its end; None as long as it does, and after its end."""
        return None

    def results(self, points: Sequence[Point]) -> list[Point]:
        """Those of all points that are what it was asked for."""
        return [point for point in points if point.method == self.method]

    def remedy(self) -> str:
        """What a person can do when all its trials have failed, as a clause."""
        return "the same command tries them again"

    def needed(self) -> set[str]:
        """Trials whose saved networks it will still read."""
        return set()

    def unfinished(self) -> dict[str, tuple[int, float]]:
        """Multiply-adds and seconds of trainings that have no point, by trial."""
        return {}

    def notices(self) -> list[Notice]:
        """What was decided since the last call."""
        return []

    def documents(self) -> dict[str, str]:
        """Text files of the run folder that show its book, by name."""
        return {}

    def figures(self) -> Mapping[str, Figure]:
        """HTML pages of the run folder that show its book, by name."""
        return {}
