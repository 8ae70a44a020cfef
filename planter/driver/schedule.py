"""Who trains next: the proposers of a study behind one queue, and where the study stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from planter.driver.proposers.proposer import Proposer
from planter.driver.trials.jobs import Job, Outcome, SearchStoppedError
from planter.driver.trials.networks import epochs_of
from planter.front.methods import is_searched
from planter.study.schema import Study

_TRIES = 2


@dataclass
class Schedule:
    """Hands out jobs and takes outcomes back; knows nothing of how they are run.

    The proposers are asked in their order, those that take turns after the others: what one has
    nothing for, as while a round of planting waits for its last candidate, the next one fills, so
    nobody idles.
    """

    proposers: Sequence[Proposer]
    max_failures: int
    spent: Callable[[], str | None] = lambda: None
    running: dict[str, Job] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _again: list[Job] = field(default_factory=list)
    _began: dict[str, float] = field(default_factory=dict)
    _durations: dict[str, list[float]] = field(default_factory=dict)
    _proposed: dict[str, int] = field(default_factory=dict)
    _at_an_end: bool = False

    def __post_init__(self) -> None:
        # A study continued after too many failures gets a fresh allowance.
        self._failed_before = self.failed()

    def next(self) -> Job | None:
        """The next job, or None where all that is left waits for a running one, or where the
        budget is `spent`.

        Raises SearchStoppedError where going on makes no sense.
        """
        self.stop_if_hopeless()
        if self.spent():
            return None
        job = self._again.pop() if self._again else self._propose()
        # Where nothing runs and nobody proposes, nothing will ever change.
        self._at_an_end = job is None and not self.running
        if job is not None:
            self.running[job.id] = job
            self._tries[job.id] = self._tries.get(job.id, 0) + 1
            self._began[job.id] = time.monotonic()
        return job

    def compare(self, job: Job, outcome: Outcome) -> Job | None:
        """Books a partial outcome; what the worker goes on with at once, or None where the job is
        to `finish`."""
        onward = self._proposer(job).compare(job, outcome, go_on=not self.spent())
        if onward is not None:
            self.running[job.id] = onward
            self._tries[job.id] = 1
        return onward

    def finish(self, job: Job, outcome: Outcome) -> bool:
        """Books an outcome, or says that the job, whose worker died, is tried once more."""
        del self.running[job.id]
        if outcome.get("stop"):
            raise SearchStoppedError(outcome["error"])  # the trial stays open, to be taken up again
        if "paused" in outcome:
            del self._tries[job.id]
            self._proposer(job).take_back(job)
            return False
        if outcome.get("retry") and self._tries[job.id] < _TRIES:
            self._again.append(job)
            return True
        if "partial" in outcome:
            del self._tries[job.id]
            self._proposer(job).finish(job, outcome)
            return False
        each = (time.monotonic() - self._began[job.id]) / len(job.trials)
        self._durations.setdefault(job.kind, []).append(each)
        self._proposer(job).finish(job, outcome)
        return False

    def complete(self) -> bool:
        """Whether nothing is left to train, or to train it with."""
        if self.running:
            return False
        if self._at_an_end or self.spent() is not None:
            return True
        return not self._again and not self.left()

    def why_ended(self) -> str | None:
        """Why nothing more is trained though something is left, in words."""
        if (spent := self.spent()) is not None or not self.left():
            return spent
        return (
            "nothing that is left can begin: there is no network to begin with, or it would take "
            "more than is left of budget.train_macs"
        )

    def left(self) -> int:
        """Jobs still to be finished, at most; the running ones are among them."""
        return sum(proposer.left() for proposer in self.proposers)

    def done(self) -> int:
        """Trials that are over, those of earlier runs of the driver among them."""
        return sum(proposer.done() for proposer in self.proposers)

    def failed(self) -> int:
        return sum(proposer.failed() for proposer in self.proposers)

    def failures(self) -> dict[str, str]:
        """Why trainings failed, by trial. See `Proposer.failures`."""
        found: dict[str, str] = {}
        for proposer in self.proposers:
            found |= proposer.failures()
        return found

    def seconds_left(self, workers: int) -> float | None:
        """Time to the end if trainings go on taking what they took; None before the first of their
        like: neither the teacher nor the initial network says what the others take."""
        known = [
            (proposer.left(), [s for kind in kinds for s in self._durations.get(kind, [])])
            for proposer in self.proposers
            if (kinds := proposer.representative)
        ]
        every = [seconds for _, durations in known for seconds in durations]
        if not every:
            return None
        total = sum(left * fmean(durations or every) for left, durations in known)
        return total / max(workers, 1)

    def standing(self, study: Study, workers: int) -> dict[str, Any]:
        """Where the search stands, fit for JSON; `epochs` are those of each running training, and
        `at` the time, in seconds since 1970."""
        return {
            "done": self.done(),
            "failed": self.failed(),
            "left": self.left(),
            "seconds_left": self.seconds_left(workers),
            "epochs": self.epochs(study),
            "at": time.time(),
        }

    def epochs(self, study: Study) -> dict[str, int]:
        """Those of each running training, by trial. See `epochs_of`."""
        running = self.running.values()
        return {name: epochs_of(job, study) for job in running for name in job.trials}

    def is_searched(self, job: Job) -> bool:
        """Whether a job trains what the search proposes, not what that is compared with."""
        return is_searched(self._proposer(job).method)

    def _propose(self) -> Job | None:
        teacher_open = any(p.left() for p in self.proposers if p.method == "teacher")
        for proposer in self._in_order():
            if teacher_open and proposer.after_teacher:
                continue
            if (job := proposer.next()) is not None:
                self._proposed[proposer.method] = self._proposed.get(proposer.method, 0) + 1
                return job
        return None

    def _in_order(self) -> list[Proposer]:
        """The proposers as they are asked: of those that take turns, who has proposed least."""
        turns = [p for p in self.proposers if p.takes_turns]
        turns.sort(key=lambda p: self._proposed.get(p.method, 0))
        return [*(p for p in self.proposers if not p.takes_turns), *turns]

    def _proposer(self, job: Job) -> Proposer:
        (owner,) = (proposer for proposer in self.proposers if job.kind in proposer.kinds)
        return owner

    def stop_if_hopeless(self) -> None:
        """Raises SearchStoppedError where a proposer cannot be done without, or too many trials
        have failed."""
        for proposer in self.proposers:
            proposer.raise_if_hopeless()
        failed = self.failed() - self._failed_before
        if failed > self.max_failures:
            raise SearchStoppedError(
                f"{failed} trials failed, resources.max_failures is {self.max_failures}"
            )
