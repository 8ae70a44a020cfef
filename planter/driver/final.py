"""Final training: points of a finished search trained alone, further and from scratch."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from planter.data import Data
from planter.driver.backends.divided import run_divided
from planter.driver.backends.local import run_here
from planter.driver.checking.check import worker_count
from planter.driver.proposers.proposer import Proposer
from planter.driver.run_folder.final_file import FINAL, KINDS, REPEATED, FinalFile, Kind, Row
from planter.driver.run_folder.making import jobs_behind
from planter.driver.run_folder.read import images_of, read_points, run_standing
from planter.driver.run_folder.settings import drop_half_written, drop_locks, fitting_as_begun
from planter.driver.schedule import Schedule
from planter.driver.tasks.context import Context
from planter.driver.trackers.tracking import tracked
from planter.driver.trials.jobs import Job, Outcome, Queue, divided
from planter.driver.trials.stacks import shape_of_job
from planter.front.points import Point, front_of, read_front
from planter.machine.commands import command
from planter.machine.disk import when_there_is_space
from planter.machine.torch_state import plain_torch, threads_of_torch
from planter.networks import checkpoint
from planter.networks.normalisation import as_taken
from planter.study.file import names_base, read_study
from planter.study.schema import Study
from planter.training.recipe import Recipe
from planter.training.running.forward import check_precision
from planter.training.scores import evaluate

_SMALLER = 10
"""The recipe's rate over that of further training: at its peak a full rate would undo what the
weights have learned, and further training would be a second training from scratch."""
_PROCESSES = "teacher.processes="
_GUIDE = "guide"
"""Of `final/models`: the copy of the run's teacher that others learn from."""


@plain_torch()
def train_points(
    run: Path,
    names: Sequence[str] = (),
    *,
    front: bool = False,
    kinds: Sequence[Kind] = KINDS,
    seeds: int = 3,
    overrides: Sequence[str] = (),
    guided: bool = False,
    observe: Callable[[str], None] = lambda event: None,
) -> dict[str, Any]:
    """Trains points of a run alone, as `kinds` say, and returns what `final/final.json` says.

    `names` are trials or points; without any, or with `front`, the run's front. `overrides` are
    KEY=VALUE of `recipe`, `continued` (the recipe of further training: by default the same with a
    tenth of its rate) and `resources`. `guided` adds the run's teacher to the labels. The kind
    "repeated" makes the points' trials once more from nothing, as the search made them: of
    `overrides`, it takes `resources` and `teacher.processes`. What is trained already is not
    trained again; the run itself is read only, also while a search is at work on it. Raises
    ValueError where that cannot be done, before anything is trained, SearchStoppedError where the
    disk stays full, KeyboardInterrupt on Ctrl-C.
    """
    study, recipes = _recipes(run, overrides)
    points = _chosen(run, study, names, front=front)
    if guided and study.teacher is None:
        raise ValueError(f"--guided: {run} has no teacher; without it, the labels guide")
    if study.resources.gpu and not torch.cuda.is_available():
        raise ValueError(
            f"resources.gpu {study.resources.gpu}: this machine has no GPU torch can use; "
            "--set resources.gpu=0"
        )
    for kind in set(kinds) - {REPEATED}:
        check_precision(recipes[kind].precision, "cuda" if study.resources.gpu else "cpu")
    data = images_of(run)
    _check_sizes(points, data)
    if (unfinished := run_standing(run)) is not None:
        observe(unfinished)
    machine = ("resources.", _PROCESSES)
    if REPEATED in kinds and not all(text.startswith(machine) for text in overrides):
        raise ValueError("a repetition is as it was: override resources.KEY, teacher.processes")
    repeated = _repetitions(run, study, points) if REPEATED in kinds else {}
    alone = [kind for kind in kinds if kind != REPEATED]
    settings: dict[str, Any] = {
        kind: {"recipe": recipes[kind].model_dump(), "guided": guided} for kind in alone
    }
    with _held(run / FINAL):
        _bring_here(run, points, guided=guided or (bool(repeated) and study.teacher is not None))
        if "continued" in kinds:
            _check_kept(run, points)
            _check_normalised(run, points, data)
        images = {"accuracy": len(data.validation)}
        if data.test is not None:
            images["test_accuracy"] = len(data.test)
        file = FinalFile(run, study.name, points, settings, images)
        for row in _shared(run, points):
            file.add(row)
        jobs = [
            _job(run, point, kind, seed, recipes[kind], guided=guided)
            for seed in range(seeds)
            for point in points
            for kind in alone
            if file.take_up(point.id, kind, seed) is None
        ]
        jobs += [
            _repetition(run, study, trial, names, seed)
            for seed in range(seeds)
            for trial, names in repeated.items()
            if None in [file.take_up(name, REPEATED, seed) for name in names]
        ]
        if study.resources.stack > 1:  # seeds of one point one behind the other
            jobs.sort(key=lambda job: shape_of_job(job, study) or "")
        jobs.sort(key=lambda job: not divided(job, study))  # before the workers start
        file.write()
        # A training that failed is told and tried again by the same command: none ends the others.
        every = seeds * (len(points) * len(alone) + len(repeated))
        schedule = Schedule([_Trainings(jobs, file, every)], max_failures=len(jobs))
        _train(_context(run, study, data), schedule, observe)
        _read_test(run, study, file, data, shared=unfinished is None)
        drop_locks(run / FINAL)
    return file.document()


def _recipes(run: Path, overrides: Sequence[str]) -> tuple[Study, dict[str, Recipe]]:
    """The study as overridden, and the recipe of each kind."""
    plain, further = [], []
    for text in overrides:
        section = text.partition("=")[0].partition(".")[0]
        if section not in ("recipe", "continued", "resources") and not text.startswith(_PROCESSES):
            raise ValueError(
                f"--set {text!r}: expected a key of recipe, continued or resources, "
                "e.g. recipe.lr=0.01"
            )
        if section == "continued":
            further.append("recipe" + text.removeprefix("continued"))
        else:
            plain.append(text)
    resolved = run / "resolved.yaml"
    study = fitting_as_begun(read_study(resolved, plain), run)
    begun = read_study(resolved, [*plain, *(text for text in further if names_base(text))]).recipe
    smaller = f"recipe.lr={begun.lr / _SMALLER!r}"
    continued = read_study(resolved, [*plain, smaller, *further]).recipe
    return study, {"continued": continued, "stand-alone": study.recipe}


def _chosen(run: Path, study: Study, names: Sequence[str], *, front: bool) -> list[Point]:
    """The points that are named, by rising macs."""
    read_front(run)  # tells what is wrong where there is nothing to read
    points = read_points(run)
    found: dict[str, Point] = {}
    if front or not names:
        on_front = front_of(points, study.objectives.bounds.limits(), study.objectives.names)
        if not on_front:
            raise ValueError(
                f"{run} has no point on its front yet; {command('show', run)} lists all"
            )
        found |= {point.id: point for point in on_front}
    for name in names:
        matching = {point.id: point for point in points if name in (point.trial, point.id)}
        if not matching:
            raise ValueError(
                f"{run} has no trial or point {name!r}; {command('show', run)} lists them"
            )
        found |= matching
    return sorted(found.values(), key=lambda p: (p.macs, p.id))


def _check_normalised(run: Path, points: Sequence[Point], data: Data) -> None:
    """Raises ValueError for a network of other data: trained on as these data are normalised, it
    would begin as another function than the point has."""
    for point in points:
        taken = as_taken(data.train, checkpoint.read_spec(_copy(run, point)))
        if not torch.equal(taken.mean, data.train.mean) or not torch.equal(
            taken.std, data.train.std
        ):
            raise ValueError(
                f"{point.id} was given as teacher.model, or with teacher.normalise, and takes "
                "images normalised as its own data were: train it further in the run it comes "
                "from, or leave it out"
            )


def _check_sizes(points: Sequence[Point], data: Data) -> None:
    """Raises ValueError for a network that takes images in another size than these data have."""
    for point in points:
        image = point.architecture["options"].get("image", list(data.image))
        if tuple(image) != data.image:
            shown = "x".join(map(str, image))
            raise ValueError(f"{point.id} takes images of {shown} (teacher.resize): leave it out")


def _check_kept(run: Path, points: Sequence[Point]) -> None:
    """Raises ValueError for points whose weights are gone."""
    gone = [point.id for point in points if not _copy(run, point).is_dir()]
    if gone:
        raise ValueError(
            f"the weights of {', '.join(gone)} were not kept (keep: front), so they cannot be "
            "trained further; --from-scratch needs none, and a search with --set keep=all keeps all"
        )


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keeps a second final training of the same run out. Raises ValueError where one is at work."""
    folder.mkdir(exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another planter train is at work in {folder}: wait until it has ended"
        ) from None
    with lock:
        for part in ("models", "trials"):
            drop_half_written(folder / part)
        yield


def _copy(run: Path, point: Point) -> Path:
    """Where a point's weights of the run lie for training: a search that goes on drops what it
    finds dominated."""
    return run / FINAL / "models" / point.id / "shared"


def _bring_here(run: Path, points: Sequence[Point], *, guided: bool) -> None:
    """Copies the networks of the run that the trainings start from or learn from, those that are
    there: a search at work drops what it finds dominated."""
    wanted = {run / "models" / point.id: _copy(run, point) for point in points}
    if guided:
        # Not under the teacher's own name: that is where its own final trainings lie.
        wanted[run / "models" / "teacher" / "base"] = run / FINAL / "models" / _GUIDE / "base"
    for source, place in wanted.items():
        if place.is_dir():
            continue
        try:
            checkpoint.copy(source, place)
        except FileNotFoundError:
            continue
        try:
            checkpoint.load(place, own_code=True)  # a damaged one is told now, not by every job
        except ValueError as error:
            shutil.rmtree(place)
            raise ValueError(str(error).replace(str(place), str(source))) from None


def _shared(run: Path, points: Sequence[Point]) -> list[Row]:
    """The points as the search left them, with what it has read from the test data."""
    tests = {row["id"]: row["test_accuracy"] for row in read_front(run)["points"]}
    rows = []
    for point in points:
        place = _copy(run, point)
        model = str(place.relative_to(run)) if place.is_dir() else None
        row = Row(point.id, "shared", None, point.accuracy, tests.get(point.id), None, None, model)
        rows.append(row)
    return rows


def _job(run: Path, point: Point, kind: Kind, seed: int, recipe: Recipe, *, guided: bool) -> Job:
    start = str(_copy(run, point).relative_to(run / FINAL)) if kind == "continued" else None
    params = {
        "point": point.id,
        "kind": kind,
        "seed": seed,
        "pipeline": point.pipeline,
        "architecture": point.architecture,
        "recipe": recipe.model_dump(),
        "guided": guided,
        "start": start,
    }
    return Job(f"{point.id}/{kind}-{seed}", "final", params)


def _repetitions(run: Path, study: Study, points: Sequence[Point]) -> dict[str, list[str]]:
    """The points that repeating the trials of some gives, by trial. Raises ValueError for a trial
    that cannot be repeated."""
    every = read_points(run)
    found: dict[str, list[str]] = {}
    for trial in dict.fromkeys(point.trial for point in points):
        jobs_behind(run, study, every, trial, lambda name: name)
        found[trial] = [point.id for point in points if point.trial == trial]
    return found


def _repetition(run: Path, study: Study, trial: str, names: Sequence[str], seed: int) -> Job:
    """The job that makes a trial once more, with its ancestors."""
    own = f"{trial}/{REPEATED}-{seed}"

    def name(other: str) -> str:
        return own if other == trial else f"{trial}/lineage-{seed}/{other}"

    steps = [
        {"id": job.id, "kind": job.kind, "params": job.params}
        for job in jobs_behind(run, study, read_points(run), trial, name)
    ]
    return Job(own, "repeat", {"points": list(names), "seed": seed, "steps": steps})


def _context(run: Path, study: Study, data: Data) -> Context:
    """A context whose run folder is the one of final training: the run's own is left alone."""
    return Context(
        study,
        run / FINAL,
        replace(data, test=None),
        data.fingerprint(),
        run.parent / ".teachers",
        device="cuda" if study.resources.gpu else "cpu",
        teacher_trial=_GUIDE,
    )


class _Trainings(Proposer):
    """Trainings that are left of `every` one that is asked for, proposed in order; what became of
    them goes into the file."""

    method = "final"
    kinds = representative = ("final", "repeat")
    after_teacher = False

    def __init__(self, jobs: Sequence[Job], file: FinalFile, every: int) -> None:
        self._waiting = deque(jobs)
        self._open, self._every = len(jobs), every
        self._file = file

    def next(self) -> Job | None:
        return self._waiting.popleft() if self._waiting else None

    def finish(self, job: Job, outcome: Outcome) -> None:
        self._open -= 1
        kind = job.params.get("kind", REPEATED)
        for point in job.params.get("points") or [job.params["point"]]:
            if "error" in outcome:
                self._file.fail(point, kind, job.params["seed"], outcome["error"])
            else:
                self._file.take_up(point, kind, job.params["seed"])
        self._file.write()

    def left(self) -> int:
        return self._open

    def done(self) -> int:
        return self._every - self._open


class _Told(Queue):
    """A schedule whose progress is told."""

    def __init__(self, schedule: Schedule, observe: Callable[[str], None]) -> None:
        self._schedule = schedule
        self._all = schedule.done() + schedule.left()
        self._observe = observe

    def next(self) -> Job | None:
        return self._schedule.next()

    def finish(self, job: Job, outcome: Outcome) -> None:
        if self._schedule.finish(job, outcome):
            self._observe(f"{job.id} failed: {outcome['error']}; it is tried again")
            return
        if "error" in outcome:
            told = f"failed: {outcome['error']}; see {FINAL}/trials/{job.id}/log.txt"
        else:
            told = ", ".join(f"{100 * point['accuracy']:.2f} %" for point in outcome["points"])
        self._observe(f"[{self._schedule.done()}/{self._all}] {job.id} {told}")

    def complete(self) -> bool:
        return self._schedule.complete()


def _train(context: Context, schedule: Schedule, observe: Callable[[str], None]) -> None:
    with tracked(_Told(schedule, observe), context.run, context.study) as queue:
        workers = min(worker_count(context.study), schedule.left())
        if workers and not (queue := run_divided(context, queue)).complete():
            from planter.driver.backends.ray_session import run_on_ray

            run_on_ray(context, queue, workers)
        elif not workers:
            run_here(context, queue)


def _read_test(run: Path, study: Study, file: FinalFile, data: Data, *, shared: bool) -> None:
    """Scores every network on the test images that was not scored before; the `shared` ones, which
    are the search's, not while it goes on: it reads the test images once, at its end."""
    if data.test is not None:
        with threads_of_torch(study.resources.cpu):
            for row in file.rows:
                wanted = shared or row.kind != "shared"
                if wanted and row.test_accuracy is None and row.model is not None:
                    network = checkpoint.load(run / row.model, own_code=True)
                    spec = checkpoint.read_spec(run / row.model)
                    score = evaluate(network, as_taken(data.test, spec))
                    file.add(replace(row, test_accuracy=score.accuracy))
    when_there_is_space(file.write, run / FINAL)
