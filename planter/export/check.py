"""Loads an exported file where planter cannot be imported, and compares what it computes.

A program of its own: `python -P check.py FILE FOLDER CODE NAME`, with `job.json` and arrays in the
folder; NAME is the function of the Python file CODE that loads the file (`Format.load`). Prints one
JSON object. It imports the standard library, numpy and what the file's format needs.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Array], Array]


def main(file: Path, folder: Path, load: Callable[[Path], Run]) -> dict[str, Any]:
    """How far the file's logits are from those expected, its accuracy, and how many images it
    classifies otherwise although their two best classes are no near tie."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    images, labels, expected = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels", "logits")
    )
    logits = logits_of(load(file), images, job)
    if logits.shape != expected.shape:
        raise SystemExit(f"it gives logits {logits.shape}, expected {expected.shape}")
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 2 * job["tolerance"] * max(1.0, np.abs(expected).max())
    return {
        "difference": float(np.abs(logits - expected).max()),
        "largest": float(np.abs(expected).max()),
        "finite": bool(np.isfinite(logits).all()),
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "changed": int(((logits.argmax(1) != expected.argmax(1)) & clear).sum()),
    }


def logits_of(run: Run, images: Array, job: dict[str, Any]) -> Array:
    """What a file answers to raw images, in batches of several sizes or of the one that it takes
    (`batch`); the last of these is filled up with its last image, whose answers are left out."""
    size = job.get("batch")
    found = []
    for part in batches(len(images), size):
        some = images[part]
        missing = size - len(some) if size else 0
        filled = np.concatenate([some, np.repeat(some[-1:], missing, axis=0)])
        found.append(run(prepared(filled, job))[: len(some)])
    return np.concatenate(found)


def prepared(images: Array, job: dict[str, Any]) -> Array:
    """What the file takes of raw images: planter's normalisation, written a second time."""
    if not job["normalised"]:
        return np.ascontiguousarray(images)
    mean, std = (np.asarray(job[name], np.float32)[:, None, None] for name in ("mean", "std"))
    scaled: Array = (images.astype(np.float32) / np.float32(job["scale"]) - mean) / std
    return scaled


def batches(count: int, size: int | None = None) -> Iterator[slice]:
    """Batches of so many images, or of several sizes: a file may have been tied to the one it was
    made with."""
    begin = 0
    for some in (1, 3) if size is None else ():
        if begin + some < count:
            yield slice(begin, begin + some)
            begin += some
    for first in range(begin, count, size or 100):
        yield slice(first, first + (size or 100))


def loader(place: Path, name: str) -> Callable[[Path], Run]:
    """The function of that name in a Python file, which is imported."""
    spec = importlib.util.spec_from_file_location("loader", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Path], Run] = getattr(module, name)
    return found


def forbid_planter() -> None:
    """Makes every import of planter fail from here on."""
    sys.modules["planter"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    forbid_planter()
    exported, job_folder, code, function = sys.argv[1:]
    load_file = loader(Path(code), function)
    print(json.dumps(main(Path(exported), Path(job_folder), load_file)))
