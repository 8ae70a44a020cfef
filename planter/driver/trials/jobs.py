"""What is handed to a worker and what comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypedDict

from planter.front.points import Point
from planter.study.schema import Study


class Outcome(TypedDict, total=False):
    """What a worker returns, fit for JSON: of a training that has ended `points` (fields of Point
    without the trial), `train_macs` and `seconds`, and what its kind adds; of one that failed
    `error`, and the same two as far as they are known; of one that is not at its end `partial` or
    `paused`; of several, `trials`."""

    points: list[dict[str, Any]]
    train_macs: int
    seconds: float
    error: str
    """Why it failed."""
    retry: bool
    """Beside an error: another try may help."""
    stop: bool
    """Beside an error: it is none of the trial's, and the search cannot go on."""
    partial: Outcome
    """How far a training has come that is to be compared before it goes on; its `epochs`."""
    epochs: int
    paused: str
    """Where it was ended, at a checkpoint, because its time was over."""
    trials: dict[str, Outcome]
    """Each one's outcome by its id."""
    reseeded: int
    """How many plants were dead, and planted once more."""
    live: int | None
    """Planted channels that answer to some image."""
    widths: dict[str, int]


STACK = "stack"
"""The kind of a job that stands for several, which one worker does together: those in `jobs`."""
ANOTHER_NAME = "another name (--set name=..., and another --out where one is given)"
"""What a study needs that may not go on with a run; a run folder given by hand stays the same."""


class SearchStoppedError(RuntimeError):
    """The study cannot go on: a network all others need failed, or too many trials did.
    `changed` says what it needs to go on when it has changed."""

    def __init__(self, message: str, changed: str = f"--accept-changes, or {ANOTHER_NAME}") -> None:
        super().__init__(message)
        self.changed = changed


@dataclass(frozen=True)
class Job:
    """One training, or of kind "plant" those of a round's candidates that one worker trains
    together, or a stack of jobs. `params` is all its kind needs beside the study, fit for JSON.
    Past `ends`, seconds since 1970, it ends at its next checkpoint. `macs` are the multiply-adds
    that it is expected to take, and `epochs` those of its (first) training, 0 where nobody
    knows."""

    id: str
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    ends: float | None = None
    macs: int = 0
    epochs: int = 0

    @property
    def trials(self) -> list[str]:
        """Ids of the trials it trains."""
        plants = self.params.get("plants") if self.kind == "plant" else None
        if self.kind == STACK:
            return [trial for part in self.parts() for trial in part.trials]
        return [self.id] if plants is None else [plant["id"] for plant in plants]

    def parts(self) -> list[Job]:
        """The jobs of a stack."""
        return [Job(**part) for part in self.params["jobs"]]

    def outcomes(self, outcome: Outcome) -> dict[str, Outcome]:
        """What came back, by trial."""
        if "trials" in outcome:
            return dict(outcome["trials"])
        return dict.fromkeys(self.trials, outcome)


class Queue(Protocol):
    """Jobs to be done, and what becomes of them: what a backend works off (`driver.backends`).
    Whatever a method raises ends the work when the running jobs have ended, and is raised again."""

    def next(self) -> Job | None:
        """A job to do now; None where all that is left waits for one that runs."""

    def compare(self, job: Job, outcome: Outcome) -> Job | None:
        """Takes a partial outcome. What its worker goes on with at once, None where it ends."""
        raise TypeError(f"{job.id} has a partial outcome, which nobody compares")

    def finish(self, job: Job, outcome: Outcome) -> object:
        """Takes the outcome of a job."""

    def complete(self) -> bool:
        """Whether there is nothing left to do. Asked all the time, also while every worker is
        busy."""


def divided(job: Job, study: Study) -> bool:
    """Whether a job's training is divided among processes (`teacher.processes`)."""
    if study.teacher is None or study.teacher.processes == 1:
        return False
    steps = job.params["steps"] if job.kind == "repeat" else []
    return job.kind == "teacher" or any(step["kind"] == "teacher" for step in steps)


def beyond(job: Job) -> Job:
    """A sampled trial's job past the rung it has come to."""
    return replace(job, params={**job.params, "rungs": job.params["rungs"][1:]})


def trial_id(number: int) -> str:
    """The id of a sampled trial, by the number of its row."""
    return f"s{number:04d}"


def number_of(trial: str) -> int:
    """The number of a sampled trial's row, by its id."""
    return int(trial.removeprefix("s"))


def seed_of(study_seed: int, job_id: str) -> int:
    """A trial's own seed: a function of the study's seed and the trial's id alone."""
    digest = hashlib.sha256(f"{study_seed}/{job_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def points_of(job_id: str, method: str, outcome: Outcome) -> list[Point]:
    """The points of a finished training."""
    shared: dict[str, Any] = {"train_macs": outcome["train_macs"], "seconds": outcome["seconds"]}
    return [Point(trial=job_id, method=method, **shared, **fields) for fields in outcome["points"]]
