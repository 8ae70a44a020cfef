"""A study of seconds with every kind of training: teacher, baseline, rounds, samples, logits kept
of views, an optimiser that is inherited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

STUDY = """
name: small
data: {name: digits, subset: 160, validation: 0.25}
teacher: {builder: convnet, widths: 6}
baselines: [{widths: 4, kd: {weight: 1.0}}]
recipe: {epochs: 2, batch: 30, optimizer: adam, lr: 0.02, schedule: onecycle}
plant:
  start: 3
  channels: 2
  rounds: 1
  layers: [conv1, conv5]
  recipe: {epochs: 2, batch: 30, optimizer: adam, lr: 0.01, weight_decay: 0.0}
  finetune: {epochs: 2, batch: 30, optimizer: adam, lr: 0.01, augment: {crop: 1, views: 2}}
sample: {space: "SPACE:space", trials: 3}
resources: {workers: 0}
"""
SPACE = """
from planter import Architecture, Candidate

def space(trial):
    width = trial.suggest_categorical("width", [4, 6])
    trial.suggest_float("idle", 0, 1)  # equal networks are not trained twice
    names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    return Candidate(Architecture("convnet", dict.fromkeys(names, width), {}, {}), kd_weight=1.0)
"""


def write_study(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "space.py").write_text(SPACE)
    file = folder / "small.yaml"
    file.write_text(STUDY.replace("SPACE", str(folder / "space.py")))
    return file


def rows(run: Path, book: str) -> list[optuna.trial.FrozenTrial]:
    """Those of the study `small` or of one of its books, "sampling" or "planting"."""
    name = f"small/{book}" if book else "small"
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{run / 'study.db'}")
    return study.get_trials()


def assert_whole(front: dict[str, Any], run: Path, whole: dict[str, Any]) -> None:
    """What an uninterrupted search finds, with nothing lost, doubled or left running."""
    assert front["points"] == whole["points"]
    assert front["hypervolume"] == whole["hypervolume"]
    assert len(rows(run, "")) == len(whole["points"])
    states = [row.state.name for book in ("sampling", "planting") for row in rows(run, book)]
    assert set(states) == {"COMPLETE"}
