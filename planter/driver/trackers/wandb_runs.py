"""Trainings as runs of Weights & Biases, in one group for each search."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from planter.driver.trackers.tracker import Status, Tracker

log = logging.getLogger(__name__)


class _Wandb:
    """A project for each name of a study. Who has not logged in (`wandb login`), or has
    WANDB_MODE=offline, has the runs below `wandb/` in the run folder, for `wandb sync`."""

    def __init__(self, run: Path, study: Mapping[str, Any]) -> None:
        self._folder, self._project = run, study["name"]
        self._group = hashlib.sha256(str(run).encode()).hexdigest()[:8]
        self._settings = wandb.Settings(console="off", silent=True)
        self._mode: Any = None  # what WANDB_MODE says
        if wandb.setup(self._settings).settings.mode == "online" and not wandb.api.api_key:
            self._mode = "offline"  # it would ask for a key in the middle of the search
            log.warning(
                "nobody is logged in to Weights & Biases: the runs are written to %s; wandb sync "
                "sends them",
                run / "wandb",
            )
        self._runs: dict[str, Any] = {}
        self._known: dict[str, int] = {}

    def begin(self, trial: str, facts: Mapping[str, Any]) -> None:
        one = wandb.init(
            project=self._project,
            group=f"{self._project}-{self._group}",
            name=trial,
            id=f"{self._group}-{trial}",
            config=dict(facts),
            dir=str(self._folder),
            mode=self._mode,
            resume=None if self._mode == "offline" else "allow",
            reinit="create_new",
            settings=self._settings,
        )
        self._runs[trial] = one
        self._known |= {
            f"{trial} {key}": int(value)
            for key, value in dict(one.summary).items()
            if key.endswith("/epoch")
        }

    def log(self, trial: str, epoch: int, values: Mapping[str, float]) -> None:
        # Its own steps only rise; those of a training of several parts do not.
        parts = {name.partition("/")[0] for name in values}
        for part in parts:
            if epoch <= self._known.get(f"{trial} {part}/epoch", 0):
                return  # taken up
        self._runs[trial].log({**values, **{f"{part}/epoch": epoch for part in parts}})

    def end(self, trial: str, status: Status, values: Mapping[str, float]) -> None:
        one = self._runs.pop(trial)
        one.summary.update(dict(values))
        one.finish(exit_code=0 if status == "done" else 1)

    def close(self) -> None:
        """Each training has been ended."""


def make(run: Path, study: Mapping[str, Any]) -> Tracker:
    return _Wandb(run, study)
