"""A trial's scalars as TensorBoard reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from planter.driver.trials.jobs import Outcome

_FOLDER = "tensorboard"


def write_scalars(trial: Path, outcome: Outcome) -> None:
    """Writes `tensorboard/` into a trial's folder, from its metrics.jsonl and its outcome: loss,
    learning rate, seconds and validations over epochs, accuracy and loss of each pipeline after the
    last one.

    Through tensorboardX, which Ray Tune brings along; TensorBoard itself only looks at them.
    """
    from tensorboardX import SummaryWriter

    folder = trial / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # a training that was taken up begins again
    metrics = trial / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    writer = SummaryWriter(str(folder))
    last = 0
    for epoch in map(json.loads, lines):
        last = epoch["epoch"]
        for key in ("loss", "lr", "seconds", "val_accuracy", "val_loss"):
            if key in epoch:  # not every epoch is followed by a validation
                writer.add_scalar(f"training/{key}", epoch[key], last)
    for point in outcome.get("points", []):
        for key in ("accuracy", "loss"):
            writer.add_scalar(f"validation/{point['pipeline']}/{key}", point[key], last)
    writer.close()
