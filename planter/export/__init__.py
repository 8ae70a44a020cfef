"""Networks as files that run without planter; each is loaded again and compared before it stays."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from planter.data import Split
from planter.export import check
from planter.export.deployable import deployable, input_text, scale_of
from planter.export.formats import (
    FORMATS,
    Format,
    Int8,
    format_of,
    options_of,
    require,
    require_int8,
)
from planter.export.int8.finetuning import FineTuned, FineTuning
from planter.machine.paths import user_path
from planter.training.scores import predict

__all__ = [
    "FORMATS",
    "ExportError",
    "Exported",
    "FineTuning",
    "Format",
    "Int8",
    "export_network",
    "format_of",
]

# Of a logit, times the largest one where that is above 1.
TOLERANCE = 1e-4
# Of validation accuracy: from there on a network that loses by static INT8 is fine-tuned.
MOST_LOST = 0.01


class ExportError(ValueError):
    """A network that a format cannot hold, or a file that does not compute what the network does.
    No file is left."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked: `files` are it and those beside it; `accuracy`
    is the file's own on the validation images, `max_difference` that of a logit from the network's;
    `calibration` the images that INT8 ranges come from, 0 without; `lost` the accuracy that static
    INT8 costs, and `qat` what fine-tuning came to, None where there was none; `batch` the images it
    takes at once, None where any number; `metadata` what it says of itself."""

    files: tuple[Path, ...]
    format: str
    takes: str
    accuracy: float
    images: int
    max_difference: float
    folded_norms: int
    calibration: int
    lost: float
    qat: FineTuned | None
    batch: int | None
    metadata: Mapping[str, str]

    @property
    def loses_much(self) -> bool:
        """Whether static INT8 costs more than a point of accuracy."""
        return is_much(self.lost)

    @property
    def size_bytes(self) -> int:
        """Of what holds the network, without code."""
        return sum(file.stat().st_size for file in self.files if file.suffix != ".py")


def export_network(
    network: nn.Module,
    file: str | Path,
    validation: Split,
    *,
    about: Mapping[str, Any] | None = None,
    normalise: bool = False,
    fold_norms: bool = False,
    calibration: Split | None = None,
    qat: FineTuning | None = None,
    opset: int | None = None,
    batch: int | None = None,
    force: bool = False,
) -> Exported:
    """Writes a network as FILE.onnx, FILE.pt2, FILE.safetensors with FILE.py (either name asks for
    both) or what else `FORMATS` holds, loads the file in a process that cannot import planter, and
    lets it stay only if there, for each of the validation images, no logit differs by more than
    1e-4 (times the largest one, where that is above 1) and the predicted class is the same.

    The file takes batches of any size, or of `batch` images (an ExecuTorch program of one, where
    nothing is said), of images as `validation.normalise` gives them or, with
    `normalise`, as `validation` holds them. `fold_norms` makes batch norms part of the
    layers right before them. With `calibration`, whose images set the ranges, an ONNX file is
    quantised to INT8; its logits are then its own, its accuracy is told. Where that costs more than
    a point of accuracy on the validation images, a copy of the network is fine-tuned as `qat` says
    and quantised in the same way; of the two files the more accurate one stays. `about` (a mapping
    JSON can hold; `classes` names them) goes into the file's metadata.

    Raises ValueError for another ending, a file that is there without `force`, missing packages,
    `qat` without `calibration`, or where it meets a network that torch.fx cannot follow;
    ExportError where the network cannot be written or its file computes something else.
    """
    file = user_path(file)
    kind = format_of(file)
    file = file.with_suffix(f".{kind}")
    _check_place(file, FORMATS[kind], force=force)
    if qat is not None and calibration is None:
        raise ValueError("--qat EPOCHS (qat=) is for INT8: give --int8 (calibration=) with it")
    int8 = require_int8(file, trained=qat is not None) if calibration is not None else None
    options = options_of(kind, {"opset": opset, "batch": batch})
    batch = options.get("batch")
    require(kind)
    logits = predict(network, validation).cpu().numpy()
    shipped, folded = deployable(network, validation, normalise=normalise, fold_norms=fold_norms)
    told = _metadata(validation, about or {}, logits, normalise, folded, batch)
    with _beside(file) as folder, tempfile.TemporaryDirectory() as job:
        fresh = folder / file.name
        example = _example(validation, normalise, batch or 2)
        _write(kind, shipped, example, fresh, told, options)
        expected, lost, tuned = logits, 0.0, None
        if calibration is not None and int8 is not None:
            small = _Quantised(int8, calibration, validation, normalise, batch)
            expected = small.put_in_place(fresh)
            lost = _accuracy(logits, validation) - _accuracy(expected, validation)
            if qat is not None and is_much(lost):
                other = fresh.with_suffix(f".qat{fresh.suffix}")
                trained = small.fine_tuned(network, qat)
                _write(kind, trained, example, other, told, options)
                tuned, expected = small.better(fresh, expected, other, qat)
            _tell_int8(told, _accuracy(expected, validation), len(calibration), tuned)
            int8.write_metadata(fresh, told)
        _write_job(Path(job), validation, expected, normalise, batch)
        found = _checked(FORMATS[kind], fresh, Path(job))
        written = _move(folder, file)
    return Exported(
        files=written,
        format=kind,
        takes=told["input"],
        accuracy=found["accuracy"],
        images=len(validation),
        max_difference=float(np.abs(expected - logits).max())
        if calibration is not None
        else found["difference"],
        folded_norms=folded,
        calibration=len(calibration) if calibration is not None else 0,
        lost=lost,
        qat=tuned,
        batch=batch,
        metadata=told,
    )


def is_much(lost: float) -> bool:
    """Whether so much accuracy (0..1) is more than a point."""
    return round(lost, 9) > MOST_LOST  # one image of a hundred is not, whatever floats make of it


def _check_place(file: Path, format_: Format, *, force: bool) -> None:
    for path in (file, *(file.with_suffix(ending) for ending in format_.beside)):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file")
        if path.exists() and not force:
            raise ValueError(f"{path} is there; --force (force=True) replaces it")


def _metadata(
    validation: Split,
    about: Mapping[str, Any],
    logits: check.Array,
    normalise: bool,
    folded: int,
    batch: int | None,
) -> dict[str, str]:
    """What a file says of itself: texts as they are, all else as JSON."""
    values = {
        "id": "a network",
        "classes": [str(i) for i in range(logits.shape[1])],
        **about,
        "accuracy": round(_accuracy(logits, validation), 6),
        "accuracy_images": len(validation),
        "input": input_text(validation, normalise=normalise, batch=batch),
        "normalised_inside": normalise,
        "mean": validation.mean.flatten().tolist(),
        "std": validation.std.flatten().tolist(),
        "scale": scale_of(validation),
        "folded_norms": folded,
        "planter": packages.version("planter"),
        "torch": packages.version("torch"),
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


def _example(validation: Split, normalise: bool, count: int) -> Tensor:
    """So many images; two where any number is allowed, as torch.export takes a batch of one for a
    constant."""
    images = validation.batch(slice(1)).repeat(count, 1, 1, 1)
    return (images if normalise else validation.normalise(images)).cpu()


def _write(
    kind: str,
    network: nn.Module,
    example: Tensor,
    file: Path,
    told: Mapping[str, str],
    options: Mapping[str, int],
) -> None:
    try:
        FORMATS[kind].write(network, example, file, told, **options)
    except OSError:
        raise
    except Exception as error:  # a network may be the user's code; exporters raise many kinds
        before: BaseException | None = error
        while before is not None:
            if isinstance(before, KeyboardInterrupt):  # torch's exporter takes it for a failure
                raise KeyboardInterrupt from error
            before = before.__cause__ or before.__context__
        reason: BaseException = error
        while type(reason).__module__.startswith("torch.onnx") and reason.__cause__ is not None:
            reason = reason.__cause__  # which says no more than how far the exporter came
        first = str(reason).strip().splitlines() or [""]
        raise ExportError(
            f"this network cannot be written as {kind}: {type(reason).__name__}: {first[0]}"
        ) from error


@dataclass(frozen=True)
class _Quantised:
    """How the INT8 file of one export is made, and what its logits are."""

    int8: Int8
    calibration: Split
    validation: Split
    normalise: bool
    batch: int | None

    def put_in_place(self, file: Path) -> check.Array:
        """Puts the INT8 model in the file's place; its logits of the validation images."""
        images = _all_of(self.calibration)
        images = images if self.normalise else self.calibration.normalise(images)
        small = file.with_suffix(f".int8{file.suffix}")
        self.int8.quantise(file, images.cpu().numpy(), small)
        small.replace(file)
        raw, run = _all_of(self.validation).cpu().numpy(), FORMATS[format_of(file)].load(file)
        return check.logits_of(run, raw, _job(self.validation, self.normalise, self.batch))

    def fine_tuned(self, network: nn.Module, qat: FineTuning) -> nn.Module:
        """A copy of the network, as it is shipped, trained with the file's rounding."""
        assert self.int8.fine_tuned is not None
        plain, _ = deployable(network, self.validation, fold_norms=True)
        trained = self.int8.fine_tuned(plain, self.calibration, qat)
        return deployable(trained, self.validation, normalise=self.normalise)[0]

    def better(
        self, file: Path, logits: check.Array, other: Path, qat: FineTuning
    ) -> tuple[FineTuned, check.Array]:
        """The more accurate one of the static INT8 file and the fine-tuned network's other file,
        once that is INT8 too, in the first one's place; and its logits."""
        others = self.put_in_place(other)
        static, tuned = (_accuracy(answers, self.validation) for answers in (logits, others))
        kept = tuned > static
        if kept:
            other.replace(file)
        else:
            other.unlink()
        return FineTuned(qat.epochs, qat.seed, static, tuned, kept), others if kept else logits


def _accuracy(logits: check.Array, split: Split) -> float:
    return float((logits.argmax(1) == split.labels.cpu().numpy()).mean())


def _tell_int8(
    told: dict[str, str], accuracy: float, calibration: int, tuned: FineTuned | None
) -> None:
    """What was measured of the network does not hold for its INT8 file."""
    float_ones = {
        f"float_{name}": told.pop(name) for name in ("accuracy", "test_accuracy") if name in told
    }
    told.update(float_ones, accuracy=json.dumps(round(accuracy, 6)), int8="true")
    told["calibration_images"] = str(calibration)
    if tuned is not None:
        told["qat"] = json.dumps(tuned.told())


def _all_of(split: Split) -> Tensor:
    """All raw images: a file is checked on each of them."""
    return split.batch(slice(len(split)))


def _job(validation: Split, normalise: bool, batch: int | None) -> dict[str, Any]:
    return {
        "normalised": not normalise,
        "mean": validation.mean.flatten().tolist(),
        "std": validation.std.flatten().tolist(),
        "scale": scale_of(validation),
        "tolerance": TOLERANCE,
        "batch": batch,
    }


def _write_job(
    folder: Path, validation: Split, logits: check.Array, normalise: bool, batch: int | None
) -> None:
    job = json.dumps(_job(validation, normalise, batch))
    (folder / "job.json").write_text(job, encoding="utf-8")
    np.save(folder / "images.npy", _all_of(validation).cpu().numpy())
    np.save(folder / "labels.npy", validation.labels.cpu().numpy())
    np.save(folder / "logits.npy", logits)


def _checked(format_: Format, file: Path, job: Path) -> dict[str, Any]:
    """What the checking process found. Raises ExportError where the file is not the network."""
    # -P keeps this package's folder, whose modules have common names, off the path.
    code, load = inspect.getfile(format_.load), format_.load.__name__
    command = [sys.executable, "-P", check.__file__, str(file.resolve()), str(job), code, load]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=job)
    if done.returncode:
        *_, last = done.stderr.strip().splitlines() or ["no message"]
        raise ExportError(f"the file cannot be run without planter: {last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    allowed = TOLERANCE * max(1.0, found["largest"])
    if not found["finite"] or not found["difference"] <= allowed or found["changed"]:
        raise ExportError(
            f"the file does not compute what the network does: logits differ by up to "
            f"{found['difference']:.2g} (allowed are {allowed:.2g}), {found['changed']} images "
            "get another class; it was not kept"
        )
    return found


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """A folder beside the file that is gone when the block has ended."""
    folder = file.parent / f".{file.name}.{uuid.uuid4().hex[:8]}.new"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(file)
        folder.mkdir()
    except OSError as error:
        raise ValueError(f"cannot write in {file.parent}: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(file: Path) -> None:
    """Removes what an export that was killed has left beside the file; what is younger than an hour
    may be another one at work."""
    for left in file.parent.glob(f".{escape(file.name)}.????????.new"):
        if left.is_dir() and time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)


def _move(folder: Path, file: Path) -> tuple[Path, ...]:
    """Puts what was written into place, the code before the tensors."""
    written = sorted(folder.iterdir(), key=lambda path: path.suffix == file.suffix)
    for path in written:
        path.replace(file.parent / path.name)
    return tuple(file.parent / path.name for path in reversed(written))
