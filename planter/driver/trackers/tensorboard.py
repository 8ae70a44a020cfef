"""A trial's scalars as TensorBoard reads them: `tensorboard/` in its folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from planter.driver.trackers.tracker import Status, Tracker

_FOLDER = "tensorboard"


class _TensorBoard:
    """Through tensorboardX, which Ray Tune brings along; TensorBoard itself only looks at them."""

    def __init__(self, run: Path) -> None:
        self._trials = run / "trials"
        self._writers: dict[str, SummaryWriter] = {}
        self._last: dict[str, int] = {}

    def begin(self, trial: str, facts: Mapping[str, Any]) -> None:
        folder = self._trials / trial / _FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # it is told from its first epoch on
        self._writers[trial] = SummaryWriter(str(folder))
        self._last[trial] = 0

    def log(self, trial: str, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[trial].add_scalar(name, value, epoch)
        self._writers[trial].flush()
        self._last[trial] = epoch

    def end(self, trial: str, status: Status, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[trial].add_scalar(name, value, self._last[trial])
        self._writers.pop(trial).close()

    def close(self) -> None:
        """Each training has been ended."""


def make(run: Path, study: Mapping[str, Any]) -> Tracker:
    return _TensorBoard(run)
