"""A folder of numpy's files: images and labels of each part."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from planter.data.cache.decoding import Decoding
from planter.data.own import read_given
from planter.data.raw import Raw

ARRAYS = "arrays"
HELD = "images"
"""Of a run folder: the images that it was given in Python."""
_PARTS = ("train", "validation", "test")
_NAMES = "class_names.json"


def read_arrays(root: Path, how: Decoding) -> Raw:
    """The data of PART-images.npy `[n, channels, height, width]` and PART-labels.npy `[n]`, where
    PART is train, validation or test, and of class_names.json, a list; all but train's may be
    missing. Raises ValueError for anything else, with the place."""
    made: dict[str, Any] = {}
    for part in _PARTS:
        files = [root / f"{part}-{what}.npy" for what in ("images", "labels")]
        there = [file for file in files if file.is_file()]
        if len(there) == 1:
            (lacking,) = set(files) - set(there)
            raise ValueError(f"{there[0]} stands alone: expected {lacking.name} beside it")
        if there:
            made[part] = tuple(map(_loaded, files))
    if "train" not in made:
        raise ValueError(
            f"{root} holds no train-images.npy: expected PART-images.npy and PART-labels.npy for "
            "train and, where there are such, validation and test"
        )
    if (file := root / _NAMES).is_file():
        try:
            made["class_names"] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON list of names: {error}") from None
    return read_given(made, str(root), how)


def _loaded(file: Path) -> NDArray[Any]:
    """Mapped: what is kept of it is copied anyway."""
    try:
        found: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is no array of numpy's that can be read: {error}") from None
    return found


def write_arrays(raw: Raw, folder: Path) -> None:
    """Writes data that lie in memory for `read_arrays`; a folder is there whole or not at all, and
    one that was there is replaced. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".new"))
    try:
        for name, array in _arrays(raw):
            with (new / name).open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        names = json.dumps(list(raw.class_names))
        (new / _NAMES).write_text(names + "\n", encoding="utf-8")
        new.chmod(0o755)  # mkdtemp's is for its owner alone
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def hold_alike(folder: Path, raw: Raw) -> bool:
    """Whether a folder holds these very data: the pixels, their type, labels and names."""
    given = dict(_arrays(raw))
    try:
        if {file.name for file in folder.glob("*.npy")} != set(given):
            return False
        if json.loads((folder / _NAMES).read_text(encoding="utf-8")) != list(raw.class_names):
            return False
        return all(
            array.dtype == (held := _loaded(folder / name)).dtype and np.array_equal(array, held)
            for name, array in given.items()
        )
    except (OSError, ValueError):
        return False


def _arrays(raw: Raw) -> Iterator[tuple[str, NDArray[Any]]]:
    for part in _PARTS:
        if (pair := getattr(raw, part)) is not None:
            images, labels = pair
            assert isinstance(images, Tensor)
            yield f"{part}-images.npy", images.numpy()
            yield f"{part}-labels.npy", labels.numpy()
