"""From a point of a run to the network, the images and the facts that its file is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from planter.data import Data, Split
from planter.driver.run_folder.read import images_of, run_standing
from planter.export import Exported, ExportError, FineTuning, export_network
from planter.export.card import card_text
from planter.front.choose import Front, Row
from planter.front.points import read_front, write_text
from planter.networks import checkpoint
from planter.networks.normalisation import as_taken
from planter.training.scores import evaluate

_NAMED = 10
"""Points that are named where a wanted one is not there."""
_TOLD = ("id", "trial", "pipeline", "method", "macs", "params", "accuracy", "test_accuracy")


@dataclass(frozen=True)
class Run:
    """A run to export from: its folder, what pareto.json says, its images, and why the search is
    not finished, if it is not."""

    folder: Path
    front: Front
    data: Data
    standing: str | None


def open_run(run: Path) -> Run:
    """Raises ValueError for a run that an older planter wrote, and where its images are other than
    those it was searched with."""
    front, data = read_front(run), images_of(run)
    try:
        why = run_standing(run)
    except ValueError as error:
        why = f"whether its search has ended cannot be told: {error}"
    return Run(run, front, data, why)


def find_row(front: Front, wanted: str) -> Row:
    """The point with that id, or the only one of that trial. Raises ValueError where there is none
    or more than one."""
    rows = [row for row in front["points"] if wanted in (row["id"], row["trial"])]
    if not rows:
        known = [row["id"] for row in front["points"]]
        near = get_close_matches(wanted, known, _NAMED, cutoff=0.4) or known
        named = known if len(known) <= _NAMED else near[:_NAMED]
        more = len(known) - len(named)
        told = f"points are {', '.join(named)}" + (f" and {more} more" if more else "")
        raise ValueError(f"{front['study']} has no point {wanted!r}; {told}")
    if len(rows) > 1:
        raise ValueError(f"{wanted} has several networks: {', '.join(row['id'] for row in rows)}")
    found: Row = rows[0]
    return found


def export_point(
    run: Run,
    row: Row,
    file: Path,
    *,
    normalise: bool = False,
    fold_norms: bool = False,
    calibration: int | None = None,
    qat: int | None = None,
    opset: int | None = None,
    batch: int | None = None,
    card: Path | None = None,
    licence: str | None = None,
    force: bool = False,
) -> Exported:
    """`export_network` for a point of a run, checked on the run's validation images; `calibration`
    is a number of its training images, `qat` a number of epochs over all of them, in an order of
    the run's seed. Code of the user's own that the run names is called. `card` is where its model
    card is written, with the `licence` of that name.

    Raises ValueError where the point's weights were not kept, and where the network has another
    accuracy than the run says.
    """
    if card is not None and card.exists() and not force:
        raise ValueError(f"{card} is there; --force (force=True) replaces it")
    folder = _model(run.folder, row)
    spec = checkpoint.read_spec(folder)
    train, validation = as_taken(run.data.train, spec), as_taken(run.data.validation, spec)
    network = checkpoint.load(folder, own_code=True)
    drawn = _drawn(run, train, calibration) if calibration is not None else None
    tuning = FineTuning(train, qat, _seed(run)) if qat is not None else None
    score = evaluate(network, validation).accuracy
    # A near tie may fall the other way on another machine, or where a GPU counted before.
    if abs(score - row["accuracy"]) > max(0.005, 1.5 / len(validation)):
        raise ExportError(
            f"{row['id']} has {score:.2%} on the validation images, the run says "
            f"{row['accuracy']:.2%}: its weights or its data are no longer what was scored"
        )
    exported = export_network(
        network,
        file,
        validation,
        about=_about(run, row, folder),
        normalise=normalise,
        fold_norms=fold_norms,
        calibration=drawn,
        qat=tuning,
        opset=opset,
        batch=batch,
        force=force,
    )
    if card is not None:
        write_text(card, card_text(run.folder, row, run.front, exported, spec, licence))
    return exported


def _model(run: Path, row: Row) -> Path:
    if row["model"] is None or not (run / row["model"]).is_dir():
        raise ValueError(
            f"the weights of {row['id']} were not kept: a search keeps those of the front, the "
            "teacher and the baselines; with `keep: all` in the study it keeps every network's"
        )
    return run / str(row["model"])


def _environment(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return found


def _seed(run: Run) -> int:
    return int(_environment(run.folder).get("seed", 0))


def _drawn(run: Run, train: Split, count: int) -> Split:
    """So many training images, or all where there are fewer, drawn with the run's seed."""
    generator = torch.Generator().manual_seed(_seed(run))
    index = torch.randperm(len(train), generator=generator)[:count]
    return train.sample(index)


def _about(run: Run, row: Row, folder: Path) -> Mapping[str, Any]:
    """What the file says of where it comes from."""
    spec, environment = checkpoint.read_spec(folder), _environment(run.folder)
    return {
        "study": run.front["study"],
        **{key: row.get(key) for key in _TOLD},
        # The network's own: folders on disk may have been renamed since.
        "classes": spec.get("class_names") or list(run.data.class_names),
        "image": spec["architecture"]["options"].get("image", list(run.data.image)),
        "architecture": spec["architecture"],
        "seed": spec.get("seed"),
        "study_seed": environment.get("seed"),
        "trained_with": environment.get("versions", {}),
        "data_fingerprint": environment.get("data"),
    }
