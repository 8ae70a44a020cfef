"""planter's own ways: `planter.search` on the studies of this folder, nothing else of planter.

What the studies leave open is the task's: images, seed, teacher, recipes and what is left of the
budget once the teacher is paid. The search runs in this process, one training at a time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from counting import flop_counter_macs
from task import Arena

import planter
from planter.data import Data, Split

STUDIES = Path(__file__).parent / "studies"
_given: list[Data] = []
"""The images that `images` hands out: a study draws its split from its own seed, here all seeds
have one split."""


def images() -> dict[str, Any]:
    """What the studies' `data.name` names."""
    (data,) = _given
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    made = {name: _pair(split) for name, split in parts.items() if split is not None}
    return {**made, "class_names": list(data.class_names)}


def _pair(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.batch(slice(None)), split.labels


def run(arena: Arena, variant: str) -> None:
    task = arena.task
    total = task.less if variant == "evolve-less" else task.budget
    _given[:] = [arena.data]
    settings: dict[str, Any] = {
        "seed": arena.seed,
        "data.name": "planter_ways:images",
        "teacher.model": str(arena.teacher_folder),
        "recipe": task.scratch_recipe.model_dump(),
        "budget.train_macs": total - arena.teacher_train_macs,
    }
    if variant != "sample":
        recipe = task.child_recipe.model_dump()
        if variant != "evolve-asked":
            # The teacher answers once for a pool of views, not in every step of every child.
            recipe["augment"]["views"] = task.views
        settings["evolve.recipe"] = recipe
    if variant == "small":
        settings |= _small_end(arena)
    between = Between()
    study = variant.partition("-")[0]
    document = planter.search(
        STUDIES / f"{study}.yaml",
        out=arena.out / "run",
        overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()],
        observe=between.note,
    )
    _take(arena, document, between)


def _small_end(arena: Arena) -> dict[str, Any]:
    """The smallest network of the way `scratch` is where growth begins; the teacher guides, its
    weights are not used."""
    widths = arena.task.architecture(arena.data, arena.task.scratch[-1]).widths
    distilled = {"weight": 1.0, "temperature": arena.task.temperature}
    start = {
        "name": "start",
        "builder": "resnet",
        "options": {"depth": 8, "shortcut": "conv"},
        "widths": dict(widths),
        "kd": distilled,
    }
    return {"baselines": [start]}


def _take(arena: Arena, document: dict[str, Any], between: Between) -> None:
    """The points of the front, which validation accuracies chose, and baselines: those whose test
    accuracy a run reads, but the teacher's."""
    run = arena.out / "run"
    read = [p for p in document["points"] if p["test_accuracy"] is not None]
    trials: set[str] = set()
    for point in read:
        if point["method"] == "teacher":
            continue
        counted = flop_counter_macs(planter.load(run / point["model"]), arena.data.image)
        arena.points.append(
            {
                "macs": point["macs"],
                "flop_counter_macs": counted,
                "params": point["params"],
                "validation": point["accuracy"],
                "test": point["test_accuracy"],
                # Of the trial: pipelines that trained together are paid once.
                "train_macs": 0 if point["trial"] in trials else point["train_macs"],
                "id": point["id"],
                "method": point["method"],
            }
        )
        trials.add(point["trial"])
    # Trainings that gave nothing for the front are paid too.
    arena.search_macs = document["cost"]["train_macs"] - sum(p["train_macs"] for p in arena.points)
    arena.told |= {
        "hypervolume_validation": document["hypervolume"],
        "trials": document["cost"]["trials"],
        "seconds_to_propose": between.mean(),
    }


class Between:
    """Seconds from the end of a training to the start of the next: proposing, and the books."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ended: float | None = None
        self._gaps: list[float] = []

    def note(self, progress: Any) -> None:
        if progress.kind == "done":
            self._ended = self._clock()
        elif progress.kind == "start" and self._ended is not None:
            self._gaps.append(self._clock() - self._ended)
            self._ended = None

    def mean(self) -> float | None:
        return math.fsum(self._gaps) / len(self._gaps) if self._gaps else None
