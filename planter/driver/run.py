"""A search from a study to a front: check, train, keep the books, read the test data, report."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from planter.backbones import BUILDERS
from planter.backbones.outside.own import Made, register
from planter.driver.backends.divided import run_divided
from planter.driver.backends.local import run_here
from planter.driver.checking.check import Prepared, prepare, worker_count
from planter.driver.checking.given import check_not_itself
from planter.driver.found import Run
from planter.driver.outcome import SearchFailedError, ending, worse_teacher
from planter.driver.progress import Event, Observer, Progress, points_in_words
from planter.driver.proposers.proposer import SearchContext
from planter.driver.proposers.registry import proposers_for
from planter.driver.run_folder.documents import Documents
from planter.driver.run_folder.images import with_images
from planter.driver.run_folder.logs import taken_by
from planter.driver.run_folder.settings import (
    drop_checkpoints,
    drop_half_written,
    fitting_as_begun,
    full_disk_told,
    lock_run,
    run_id,
    write_settings,
)
from planter.driver.schedule import Schedule
from planter.driver.storage.lease import Lease
from planter.driver.storage.points import PointBook, database_url, open_storage
from planter.driver.storage.retrying import RetryingStorage
from planter.driver.tasks.context import Context
from planter.driver.trackers.tracking import tracked
from planter.driver.trials.budget import Account
from planter.driver.trials.jobs import Job, Outcome, Queue, SearchStoppedError
from planter.front.points import covered
from planter.machine.paths import user_path
from planter.machine.torch_state import plain_torch
from planter.study.file import StudyFile, study_of
from planter.study.schema import Study

log = logging.getLogger(__name__)
_ASKED = "the search was asked to stop"
_SHOWN_EVERY_S = 1.0


@plain_torch()
def search(
    study: Study | StudyFile | Mapping[str, Any] | str | Path,
    *,
    data: Any = None,
    networks: Mapping[str, Made] | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
    take_over: bool = False,
    ray_address: str | None = None,
    observe: Observer = lambda progress: None,
) -> Run:
    """Runs a study, or what is left of it, and returns what was found: a mapping of what
    `pareto.json` says, with the networks behind it (docs/python.md).

    `study` is a file (or what was read of one), the name of a shipped study, a mapping of the same
    keys or a `Study`; the run folder is `out` or `runs/NAME`. `data` are images in memory in the
    place of those of the study: (images [n, channels, height, width], labels [n]), parts of such by
    name, torch data sets or what `load_data` returns (docs/data.md); they are kept in the run
    folder, so that what goes on with the run needs them no more. `networks` are plain ones by the
    name that the study has as `builder`: classes or functions that return a module, or modules, of
    which copies are trained. They stay known in this process, so that `planter.load` builds what
    was trained of them; to go on with the run they are given again. Raises StudyError for a study
    that cannot be run, also where another driver is at work on it (`take_over` takes it from that
    one); nothing was trained then. Raises SearchStoppedError where the teacher or too many trials
    failed, the storage stayed away, the disk stayed full or another driver took over,
    KeyboardInterrupt on Ctrl-C or `planter stop --now`; the same call goes on from what is
    finished. Raises SearchFailedError, a SearchStoppedError, at the end of a search of which
    nothing came: all that was searched for failed, or, of a study of baselines alone, every
    baseline, or no draw of the space gave a network to train; what else was trained is reported,
    and in its `front`. Where nothing keeps to the bounds, or the budget is used up before anything
    that was asked for is trained, `outcome` of what is returned says so (docs/spaces.md).
    Single trainings that failed are listed under `failed`, with the reason.
    """
    if networks:
        register(networks, BUILDERS)
    text = None
    if isinstance(study, Mapping):
        study = study_of(study, overrides)
    elif not isinstance(study, Study):
        file = study if isinstance(study, StudyFile) else StudyFile.of(study)
        text, study = file.content, file.study(overrides)
    run = user_path(out if out is not None else Path("runs") / study.name).resolve()
    begun = (run / "resolved.yaml").is_file()
    if data is not None:
        with full_disk_told(run):
            study, text = with_images(study, data, run, begun=begun), None
    study = fitting_as_begun(study, run)
    check_not_itself(study, run)
    prepared = prepare(study, elsewhere=ray_address is not None, begun=begun)
    for warning in prepared.warnings:
        log.warning("%s", warning)
    with full_disk_told(run), lock_run(run, take_over=take_over):
        write_settings(
            run,
            study,
            text,
            prepared.fingerprint,
            prepared.data.class_names,
            accept_changes=accept_changes,
            weights=prepared.weights,
        )
        storage = open_storage(database_url(run, study.storage), alone=True)
        try:
            lease = Lease(storage, study.name, run, run_id(run), study.objectives.names)
            try:
                going = _Search(study, run, prepared, storage, lease, observe)
                going.train(ray_address)
                return Run(run, going.report())
            finally:
                storage.wait_no_longer()  # it may be on the full disk that ends the search
                lease.release()
        finally:
            storage.close()


class _Search(Queue):
    """One search at work: its books and its folder, and the queue that its workers work off."""

    def __init__(
        self,
        study: Study,
        run: Path,
        prepared: Prepared,
        storage: RetryingStorage,
        lease: Lease,
        observe: Observer,
    ) -> None:
        self._wait_no_longer = storage.wait_no_longer
        self._study = study
        self._lease = lease
        self._run = run
        self._observe = observe
        self._data = prepared.data
        self._limits = study.objectives.bounds.limits()
        self._objectives = study.objectives.names
        self._book = PointBook(storage, study.name, self._limits, self._objectives)
        self._reference = self._book.reference(prepared.reference)
        self._workers = worker_count(study)
        self._worse_teacher: str | None = None
        latencies = prepared.latencies
        latencies.learn_points(self._book.points)
        self._proposers = proposers_for(
            SearchContext(
                study,
                storage,
                prepared,
                self._book,
                self._reference,
                latencies,
                self._workers,
                run,
                self._macs_left,
            )
        )
        self._account = Account(study.budget, self._book.study)
        self._schedule = Schedule(
            self._proposers,
            study.resources.max_failures,
            self._spent,
        )
        self._shown_at = -math.inf
        self._context = Context(
            study,
            run,
            # Workers have no use for the test images, and so cannot misuse them.
            replace(prepared.data, test=None),
            prepared.fingerprint,
            run.parent / ".teachers",
            "cuda" if study.resources.gpu else "cpu",
        )
        self._documents = Documents(
            study, run, prepared.data, self._book, self._reference, self._proposers
        )

    def _macs_left(self) -> float:
        """See `SearchContext.macs_left`."""
        most = self._study.budget.train_macs
        if most is None:
            return math.inf
        running = sum(job.macs for job in self._schedule.running.values())
        return most - self._documents.trained_macs() - running

    def _spent(self) -> str | None:
        """Why nothing more is begun, in words."""
        if self._lease.asked is not None:
            return _ASKED
        return self._account.spent(self._documents.trained_macs)

    def _check(self) -> None:
        """See `Lease.check`; passes on what the search is asked for."""
        self._lease.check()
        if self._lease.asked == "now":
            self._context.stop_file.touch()

    def train(self, ray_address: str | None) -> None:
        """Runs every job that is left."""
        self._context.stop_file.unlink(missing_ok=True)
        for part in ("models", "trials"):
            drop_half_written(self._run / part)
        self._documents.refresh()
        if (account := self._data.account) is not None:
            self._tell(f"data: {'; '.join(account.lines())}")
        self._tell_notices()
        if self._schedule.complete():
            return
        try:
            with tracked(self, self._run, self._study) as queue:
                here = replace(self._context, tick=self._count_time)
                if self._workers == 0:
                    run_here(here, queue)
                elif not (rest := run_divided(here, queue)).complete():
                    from planter.driver.backends.ray_session import run_on_ray

                    self._tell(f"{self._workers} workers start", "start")
                    run_on_ray(self._context, rest, self._workers, ray_address)
        except BaseException:
            self._wait_no_longer()
            raise
        finally:
            with suppress(SearchStoppedError):  # another driver may have the folder by now
                self._lease.check()
                self._context.stop_file.unlink(missing_ok=True)
                self._account.write()
                self._show()
                if self._documents.late:
                    self._documents.refresh()
        self._schedule.stop_if_hopeless()
        if (open_ := self._schedule.left()) and (spent := self._schedule.why_ended()):
            if self._lease.asked == "now":
                raise KeyboardInterrupt
            then = "the same command" if spent == _ASKED else "with more it"
            self._tell(f"{spent}: {open_} trainings at most were not begun; {then} goes on")

    def complete(self) -> bool:
        """Whether all is trained; writes what is due, as it is asked all the time."""
        self._count_time()
        self._write_if_due()
        return self._schedule.complete()

    def _count_time(self) -> None:
        """Writes the time into the books where it is due, also in the middle of a training: a
        driver that is killed then has used it all the same."""
        if self._account.due:
            self._check()
            self._account.write()
            self._show()

    def next(self) -> Job | None:
        self._check()
        self._count_time()
        job = self._schedule.next()
        self._tell_notices()
        if job is not None:
            job = replace(job, ends=self._account.ends())
            self._tell(f"{', '.join(job.trials)} starts", "start")
        return job

    def compare(self, job: Job, outcome: Outcome) -> Job | None:
        """Books the partial outcome of a sampled trial; what its worker goes on with at once."""
        self._check()
        onward = self._schedule.compare(job, outcome)
        then = "waits to be compared" if onward is None else "goes on"
        shown = points_in_words(outcome["partial"]["points"], self._objectives)
        at = f"{job.id} after {outcome['partial']['epochs']} epochs"
        self._tell(f"{at}: {shown}; it {then}", "compared")
        return onward

    def finish(self, job: Job, outcome: Outcome) -> None:
        self._check()
        self._count_time()
        if "error" in outcome:
            macs, seconds = taken_by(self._run / "trials" / job.id)
            outcome = {**outcome, "train_macs": macs, "seconds": seconds}
        again = self._schedule.finish(job, outcome)
        if "paused" in outcome:
            self._account.close()
            why = "the time is over" if self._lease.asked is None else _ASKED
            self._tell(f"{', '.join(job.trials)} {outcome['paused']}: {why}", "paused")
            return
        if "error" in outcome and not again and self._schedule.is_searched(job):
            for trial in job.trials:  # the others are tried again when the study goes on
                drop_checkpoints(self._run / "trials" / trial)
        self._documents.out_of_date()
        self._write_if_due()
        for name, one in job.outcomes(outcome).items() if "partial" not in outcome else []:
            kind: Event = "failed" if "error" in one else "done"
            self._tell(self._told(name, one, again=again), kind)
        self._tell_notices()
        self._tell_of_teacher()

    def _tell_of_teacher(self) -> None:
        """Once, as soon as it is so: each further training learns from the same teacher."""
        if self._worse_teacher is None:
            self._worse_teacher = worse_teacher(self._book.points, len(self._data.validation))
            if self._worse_teacher is not None:
                log.warning("%s", self._worse_teacher)
                self._tell(self._worse_teacher)

    def _told(self, name: str, outcome: Outcome, *, again: bool) -> str:
        """What became of a trial, in words."""
        if "error" in outcome:
            then = "it is tried again" if again else f"see trials/{name}/log.txt"
            return f"{name} failed: {outcome['error']}; {then}"
        shown = points_in_words(outcome["points"], self._objectives)
        return f"{name} done: {shown}" + (" (re-seeded)" if outcome.get("reseeded") else "")

    def _tell_notices(self) -> None:
        for notice in [notice for each in self._proposers for notice in each.notices()]:
            for trial in notice.closed:
                drop_checkpoints(self._run / "trials" / trial)
            self._tell(notice.text, "failed" if notice.failed else "told")

    def report(self) -> dict[str, Any]:
        """Reads the test data for what is reported and writes the run's documents."""
        self._lease.check()
        failed = self._schedule.failures()
        notes = {p.method: gone.why for p in self._proposers if (gone := p.exhausted())}
        if self._schedule.left() and (spent := self._schedule.why_ended()):
            about, more = ("stop", "") if spent == _ASKED else ("budget", "with more of it ")
            notes[about] = f"{spent}: {more}the same command goes on"
        if (worse := worse_teacher(self._book.points, len(self._data.validation))) is not None:
            notes["teacher"] = worse
        why = notes.get("budget", notes.get("stop"))
        ended = ending(self._study, self._book.points, self._proposers, spent=why)
        found = self._documents.report(
            complete=not self._schedule.left(), failed=failed, notes=notes, ended=ended.document()
        )
        if ended.kind == "failed":
            assert ended.reason is not None
            raise SearchFailedError(ended.reason, found)
        return found

    def _write_if_due(self) -> None:
        if self._documents.due:
            self._lease.check()
            self._documents.refresh()

    def _tell(self, event: str, kind: Event = "told") -> None:
        front = self._book.front
        self._observe(
            Progress(
                kind,
                event,
                self._schedule.done(),
                self._schedule.failed(),
                tuple(self._schedule.running),
                self._schedule.left(),
                tuple(front),
                covered(front, self._reference, self._limits, self._objectives),
                self._schedule.seconds_left(self._workers),
                self._objectives,
                self._schedule.epochs(self._study),
            )
        )
        if time.monotonic() - self._shown_at > _SHOWN_EVERY_S:
            self._show()

    def _show(self) -> None:
        """Writes where the search stands into the books, for those who watch it from elsewhere."""
        self._shown_at = time.monotonic()
        self._lease.tell(self._schedule.standing(self._study, self._workers))
