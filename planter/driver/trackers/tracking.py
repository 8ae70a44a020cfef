"""Trainings told to trackers while they run: a queue that passes on, and a thread that reads."""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from planter.driver.trackers.tracker import Status, Tracker, make_tracker
from planter.driver.trials.jobs import Job, Outcome, Queue, SearchStoppedError
from planter.study.schema import Study

log = logging.getLogger(__name__)
_LOOKS_EVERY_S = 1.0
_OF_A_POINT = ("accuracy", "loss", "macs", "params")


class _Event(NamedTuple):
    """What became of a training: it has begun where there is no status."""

    trial: str
    status: Status | None
    told: Mapping[str, Any]


@contextmanager
def tracked(jobs: Queue, run: Path, study: Study) -> Iterator[Queue]:
    """The queue as backends see it, whose trainings the study's trackers are told of while they
    run. Logs of epochs are read in the run folder: workers know nothing of it. Raises
    SearchStoppedError where a tracker cannot be made."""
    names = study.tracked
    if not names:
        yield jobs
        return
    trackers = {}
    for name in names:
        try:
            trackers[name] = make_tracker(name, run, study)
        except Exception as error:  # whatever a tracker's package raises
            raise SearchStoppedError(
                f"trackers: {name} cannot begin: {type(error).__name__}: {error}"
            ) from error
    teller = _Teller(run, trackers)
    teller.start()
    try:
        yield _Tracked(jobs, teller)
    finally:
        teller.end()


class _Tracked(Queue):
    """A queue that tells what is begun and what has ended."""

    def __init__(self, jobs: Queue, teller: _Teller) -> None:
        self._jobs, self._teller = jobs, teller

    def next(self) -> Job | None:
        job = self._jobs.next()
        if job is not None:
            for trial in job.trials:
                self._teller.events.put(_Event(trial, None, _facts(job, trial)))
        return job

    def compare(self, job: Job, outcome: Outcome) -> Job | None:
        return self._jobs.compare(job, outcome)

    def finish(self, job: Job, outcome: Outcome) -> object:
        found = self._jobs.finish(job, outcome)
        for trial, one in job.outcomes(outcome).items():
            self._teller.events.put(_Event(trial, _status(one), _measured(one)))
        return found

    def complete(self) -> bool:
        return self._jobs.complete()


class _Teller(threading.Thread):
    """Tells the trackers, in an order of its own thread: one that waits for a server holds up no
    training."""

    def __init__(self, run: Path, trackers: Mapping[str, Tracker]) -> None:
        super().__init__(name="planter-trackers", daemon=True)
        self.events: queue.Queue[_Event | None] = queue.Queue()
        self._trials = run / "trials"
        self._trackers = dict(trackers)
        self._told: dict[str, dict[Path, int]] = {}

    def end(self) -> None:
        """What is still to be told is told."""
        self.events.put(None)
        self.join()

    def run(self) -> None:
        while True:
            try:
                event = self.events.get(timeout=_LOOKS_EVERY_S)
            except queue.Empty:
                for trial in self._told:
                    self._read(trial)
                continue
            if event is None:
                break
            self._take(event)
        for trial in list(self._told):
            self._take(_Event(trial, "stopped", {}))
        for name in list(self._trackers):
            self._call(name, "close")

    def _take(self, event: _Event) -> None:
        trial, status, told = event
        if status is None:
            self._told[trial] = {}
            self._tell("begin", trial, told)
        elif trial in self._told:
            self._read(trial)
            del self._told[trial]
            self._tell("end", trial, status, told)

    def _read(self, trial: str) -> None:
        """Tells the epochs that were written since the last look."""
        folder = self._trials / trial
        for file in sorted(folder.rglob("metrics.jsonl")):
            part = file.parent.relative_to(folder).as_posix()
            prefix = "training" if part == "." else part.replace("/", "-")
            lines = _lines(file)
            seen = min(self._told[trial].get(file, 0), len(lines))  # fewer: it began again
            for line in lines[seen:]:
                seen += 1
                values = {
                    f"{prefix}/{key}": value
                    for key, value in line.items()
                    if key != "epoch" and _is_number(value)
                }
                self._tell("log", trial, int(line["epoch"]), values)
            self._told[trial][file] = seen

    def _tell(self, what: str, *arguments: Any) -> None:
        for name in list(self._trackers):
            self._call(name, what, *arguments)

    def _call(self, name: str, what: str, *arguments: Any) -> None:
        try:
            getattr(self._trackers[name], what)(*arguments)
        except Exception as error:  # whatever a tracker's package raises ends no search
            del self._trackers[name]
            log.warning(
                "%s is told no more of this search, which goes on: %s: %s",
                name,
                type(error).__name__,
                error,
            )


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, but for one that is being written."""
    found = []
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _facts(job: Job, trial: str) -> dict[str, Any]:
    """What a training is of and what was drawn for it, by dotted names."""
    plants = job.params.get("plants") if job.kind == "plant" else None
    given = job.params
    if plants is not None:
        (given,) = (plant for plant in plants if plant["id"] == trial)
    return {"kind": job.kind, "epochs": job.epochs, **dict(_flat("", given))}


def _flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{place}.{key}" if place else str(key), inner)
    elif value is not None:
        yield place, value if isinstance(value, str | int | float) else json.dumps(value)


def _status(outcome: Outcome) -> Status:
    if "error" in outcome:
        return "failed"
    return "stopped" if "paused" in outcome or "partial" in outcome else "done"


def _measured(outcome: Outcome) -> dict[str, float]:
    """What came of each pipeline."""
    found: dict[str, float] = {}
    for point in outcome.get("points", []):
        known = {**point, **point.get("more", {})}
        names = [*_OF_A_POINT, *point.get("more", {})]
        found |= {
            f"validation/{point['pipeline']}/{name}": float(known[name])
            for name in names
            if _is_number(known.get(name))
        }
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
