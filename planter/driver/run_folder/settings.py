"""The run folder: what a search writes beside its database, and how it recognises itself."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import BaseFileLock, FileLock, Timeout

import planter
from planter.driver.storage.reading import begun_study
from planter.driver.trials.jobs import ANOTHER_NAME, SearchStoppedError, seed_of
from planter.front.points import write_text
from planter.machine.disk import is_full
from planter.study.schema import Problem, Study, StudyError
from planter.training.augment import Augment

log = logging.getLogger(__name__)
_STATISTICS = "norm_statistics"
_PACKAGES = (
    "planter", "torch", "torchvision", "optuna", "ray", "numpy", "scikit-learn", "pillow",
)  # fmt: skip
_MAY_GROW = (("sample", "trials"), ("plant", "rounds"), ("evolve", "trials"))
_MAY_CHANGE = ("resources", "budget", "keep", "tensorboard", "trackers", "table")
_DATA_MAY_CHANGE = ("workers", "cache_gb")
_MAY_STEER = (("sample", "enqueue"), ("sample", "warm_start"), ("teacher", "processes"))
_CHOICES = ("edits", "shrink_rules", "grow_rules", "forms")
_FIXED = ("seed", "data", "teacher")


def lock_run(run: Path, *, take_over: bool = False) -> BaseFileLock:
    """Takes the run for this process until it ends, `take_over` from whoever has it. Raises
    StudyError where another has it."""
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if take_over:
            # The other keeps the lock of a file that is gone: its machine may have died without
            # letting go. If it lives, it stops at its next job: see Lease.
            (run / ".lock").unlink(missing_ok=True)
            return lock_run(run)
        raise StudyError(
            str(run),
            [
                Problem(
                    "run folder",
                    "another search at work in it",
                    "one search a run folder, or --take-over where the other is gone or shall stop",
                )
            ],
        ) from None
    return lock


@contextmanager
def full_disk_told(run: Path) -> Iterator[None]:
    """Ends a search whose disk is full, which says so."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise SearchStoppedError(f"no space left in {run}: free some, then go on") from error


def run_id(run: Path) -> str:
    """What tells a run folder from another of the same path on another machine."""
    file = run / ".id"
    if not file.is_file():
        write_text(file, secrets.token_hex(8) + "\n")
    return file.read_text(encoding="utf-8").strip()


def write_settings(
    run: Path,
    study: Study,
    text: bytes | None,
    fingerprint: str,
    class_names: Sequence[str],
    *,
    accept_changes: bool,
    weights: Mapping[str, str],
) -> None:
    """Writes study.yaml, of the `text` where the study was read from a file, resolved.yaml and
    environment.json.

    Raises StudyError, with the difference, where the folder holds a run of another study. More
    trials or rounds than before, other resources and other models to keep are no difference.
    Other images, classes of other names or in another order, another seed or another teacher are
    never accepted: points of before and after could not stand on one front. Nor are other `weights`
    to begin with, of which it has what tells them apart, by their place in the study.
    """
    resolved = yaml.safe_dump(study.model_dump(), sort_keys=False)
    file = run / "resolved.yaml"
    if file.is_file():
        before = begun_study(file)
        _refuse_changes(run, before, study, fingerprint, class_names, accept_changes=accept_changes)
        _refuse_weights(run, weights)
        if accept_changes and before != study:
            drop_checkpoints(run / "trials")  # halves of trainings under the old settings
    write_text(run / "study.yaml", resolved if text is None else text.decode("utf-8"))
    write_text(file, resolved)
    environment = {**_environment(study), "data": fingerprint, "class_names": list(class_names)}
    if weights:
        environment["weights"] = dict(weights)
    if _scored_as_trained(run):
        environment[_STATISTICS] = "as trained"
    elif _augments(study):
        log.warning(
            "%s was begun by an older planter, which scored networks with batch norm by statistics "
            "of images that were not augmented: its points of before are too low beside those to "
            "come; %s trains all of them alike",
            run,
            ANOTHER_NAME,
        )
    write_text(run / "environment.json", json.dumps(environment, indent=2) + "\n")


def fitting_as_begun(study: Study, run: Path) -> Study:
    """The study; where it does not say how images are fitted and the run is begun, as that does."""
    file = run / "resolved.yaml"
    if "fit" in study.data.model_fields_set or not file.is_file():
        return study
    data = study.data.model_copy(update={"fit": begun_study(file).data.fit})
    return study.model_copy(update={"data": data})


def _augments(study: Study) -> bool:
    """Whether a recipe of the study changes images (what a space draws is not known here)."""
    recipes = [study.recipe, study.teacher.recipe if study.teacher is not None else None]
    recipes += [baseline.recipe for baseline in study.baselines]
    if (plan := study.plant) is not None:
        recipes += [plan.recipe, plan.finetune, plan.final]
    return any(recipe.augment != Augment() for recipe in recipes if recipe is not None)


def _scored_as_trained(run: Path) -> bool:
    """Whether all points of a run keep the norm statistics they trained with (docs/scoring.md)."""
    file = run / "environment.json"
    return not file.is_file() or _STATISTICS in json.loads(file.read_text(encoding="utf-8"))


def drop_checkpoints(trial: Path) -> None:
    """Removes what a training would be taken up from; a trial may train several times."""
    for part in trial.rglob("checkpoint.pt"):
        part.unlink(missing_ok=True)


def drop_half_written(folder: Path, name: str = "*") -> None:
    """Removes what of that name was half written below a folder when its writer was killed."""
    for pattern in (f"{name}.????????.new", f".{name}.????????.new", f".{name}.????????.old"):
        for left in list(folder.rglob(pattern)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def drop_locks(run: Path) -> None:
    """Removes the locks of trials that are all finished."""
    for file in (run / "trials").rglob("*.lock"):
        file.unlink(missing_ok=True)


def _refuse_changes(
    run: Path,
    before: Study,
    study: Study,
    fingerprint: str,
    class_names: Sequence[str],
    *,
    accept_changes: bool,
) -> None:
    problems = []
    begun = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("data")
    names = names_of(run)
    if names is not None and names != list(class_names):
        problems.append(
            Problem(
                "data",
                _other_classes(names, class_names),
                f"the classes the run was begun with, or {ANOTHER_NAME}",
            )
        )
    if begun != fingerprint:
        problems.append(
            Problem(
                "data",
                f"images or labels with fingerprint {fingerprint}",
                f"those the run was begun with ({begun}), or {ANOTHER_NAME}",
            )
        )
    changes = _changes(before, study)
    if changes and any(getattr(before, key) != getattr(study, key) for key in _FIXED):
        problems.append(
            Problem(
                "study",
                f"other data, another seed or another teacher than begun here\n{changes}",
                f"the study as it was, or {ANOTHER_NAME}",
            )
        )
    elif changes and not accept_changes:
        problems.append(
            Problem(
                "study",
                f"another study than the one begun here\n{changes}",
                f"the study as it was, {ANOTHER_NAME}, "
                "or --accept-changes to go on with the new one",
            )
        )
    if before.objectives.names != study.objectives.names:
        problems.append(
            Problem(
                "objectives",
                f"a search for {', '.join(study.objectives.names)}",
                f"{', '.join(before.objectives.names)}, by which this run was begun, or "
                f"{ANOTHER_NAME}; planter pareto --x --y shows a run by others",
            )
        )
    problems += _other_choices(before, study)
    if _timed(study) not in (None, _timed(before)):
        problems.append(
            Problem(
                "objectives.bounds.latency_ms",
                "other threads, another device or no such bound when this run was begun",
                f"networks timed alike: resources.cpu and gpu as they were, or {ANOTHER_NAME}",
            )
        )
    if problems:
        raise StudyError(str(run), problems)


def _refuse_weights(run: Path, weights: Mapping[str, str]) -> None:
    begun = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("weights", {})
    problems = [
        Problem(
            place,
            f"weights of content {key}",
            f"those the run was begun with ({begun[place]}), or {ANOTHER_NAME}",
        )
        for place, key in weights.items()
        if begun.get(place, key) != key
    ]
    if problems:
        raise StudyError(str(run), problems)


def _other_choices(before: Study, now: Study) -> list[Problem]:
    """What a sampler chooses of stays as it was: Optuna knows one list of choices by a name."""
    if before.evolve is None or now.evolve is None:
        return []
    return [
        Problem(
            f"evolve.{key}",
            f"other choices than when this run was begun: {', '.join(getattr(now.evolve, key))}",
            f"{', '.join(getattr(before.evolve, key))}, or {ANOTHER_NAME} with --continue-from",
        )
        for key in _CHOICES
        if getattr(before.evolve, key) != getattr(now.evolve, key)
    ]


def _other_classes(before: Sequence[str], now: Sequence[str]) -> str:
    """How the names of two lists of classes differ, in words."""
    new, gone = ([n for n in a if n not in b] for a, b in ((now, before), (before, now)))
    told = [f"{', '.join(new)} new"] if new else []
    told += [f"{', '.join(gone)} gone"] if gone else []
    return f"other classes: {'; '.join(told)}" if told else "its classes in another order"


def names_of(run: Path) -> list[str] | None:
    """The names of the classes that a run was begun with, in the order of the labels; None where it
    does not tell."""
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    if names := environment.get("class_names"):
        return [str(name) for name in names]
    # Runs of an older planter tell them with their saved networks only.
    for file in sorted((run / "models").glob("*/*/arch.json")):
        try:
            names = json.loads(file.read_text(encoding="utf-8")).get("class_names")
        except (ValueError, AttributeError, OSError):
            continue  # told by whoever needs that network
        if isinstance(names, list):
            return [str(name) for name in names]
    return None


def _timed(study: Study) -> tuple[int, bool] | None:
    """Threads and device of what is timed, if anything is."""
    every = [study.objectives.bounds, *([study.plant.bounds] if study.plant else [])]
    asked = "latency_ms" in study.objectives.names
    if not asked and all(bounds.latency_ms is None for bounds in every):
        return None
    return study.resources.cpu, study.resources.gpu > 0


def _changes(before: Study, now: Study) -> str:
    """A readable difference of two studies; empty where the second may go on with the first."""
    old, new = before.model_dump(), now.model_dump()
    for key in _MAY_CHANGE:
        old.pop(key, None)
        new.pop(key, None)
    for key in _DATA_MAY_CHANGE:
        old["data"].pop(key)
        new["data"].pop(key)
    for section, key in _MAY_GROW:
        if old[section] and new[section] and new[section][key] >= old[section][key]:
            old[section][key] = new[section][key]
    for section, key in _MAY_STEER:
        for one in (old, new):
            (one[section] or {}).pop(key, None)
    begun, given = (yaml.safe_dump(d, sort_keys=False).splitlines() for d in (old, new))
    lines = difflib.unified_diff(begun, given, "as begun", "as given", lineterm="", n=1)
    return "\n".join(f"    {line}" for line in lines)


def _environment(study: Study) -> dict[str, Any]:
    cuda = study.resources.gpu > 0 and torch.cuda.is_available()
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpus": os.cpu_count(),
        "threads_per_worker": study.resources.cpu,
        "seed": study.seed,
        "seeds": "a trial's seed is planter.driver.trials.jobs.seed_of(seed, id)",
        "teacher_seed": seed_of(study.seed, "teacher"),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout planter runs from, if it runs from one."""
    top = Path(planter.__file__).resolve().parents[1]
    if not (top / ".git").exists():
        return None
    command = ["git", "-C", str(top), "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
