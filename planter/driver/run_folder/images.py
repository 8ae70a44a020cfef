"""Images that are given to a search in Python: kept in its run folder, where a study finds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from planter.data import Data
from planter.data.cache.decoding import Decoding
from planter.data.fit import size_of
from planter.data.folders.npy import ARRAYS, HELD, hold_alike, write_arrays
from planter.data.own import read_given
from planter.data.raw import Raw
from planter.data.statistics import statistics
from planter.driver.trials.jobs import ANOTHER_NAME
from planter.study.schema import Problem, Study, StudyError

_SOURCE = ("name", "root", "download")
_RULE = (
    "expected (images, labels), a mapping {'train': ..., 'test': ...} of such pairs or of torch "
    "data sets, one data set, or what planter.load_data returns"
)


def with_images(study: Study, given: Any, run: Path, *, begun: bool) -> Study:
    """The study with images that were given in Python as its data: they are written into the run
    folder, unless they are there, so that any process can go on with it.

    What the study says of `data` beside their source holds for them as for others. Raises
    StudyError for what are no images with labels, beside another source of the study's, and for a
    run that is `begun` with others.
    """

    def wrong(got: str, sentence: str, *, told: bool = True) -> StudyError:
        return StudyError(study.name, [Problem("data", got, sentence, told=told)])

    settings = study.data
    if named := [key for key in _SOURCE if key in settings.model_fields_set]:
        told = ", ".join(f"{key}: {getattr(settings, key)}" for key in named)
        if settings.name != ARRAYS or settings.root != str(run / HELD):
            raise wrong(
                f"{told} in the study beside data=", "one source: the images, or their place",
                told=False,
            )  # fmt: skip
    try:
        raw = _raw(given, Decoding(size_of(settings.resize), settings.fit))
    except ValueError as error:
        raise wrong(_kind(given), str(error).removeprefix("data=: ")) from error
    folder = run / HELD
    if not hold_alike(folder, raw):
        if begun:
            raise wrong(
                "other images or labels than the run was begun with",
                f"those, or {ANOTHER_NAME}", told=False,
            )  # fmt: skip
        write_arrays(raw, folder)
    data = settings.model_copy(update={"name": ARRAYS, "root": str(folder), "download": False})
    return study.model_copy(update={"data": data})


def _raw(given: Any, how: Decoding) -> Raw:
    if isinstance(given, Data):
        parts: Mapping[Any, Any] = _split(given)
    elif isinstance(given, Mapping):
        parts = given
    elif isinstance(given, str | bytes | Path):
        raise ValueError(
            f"{_RULE}; where images lie is said by the study: DataSettings(name=..., root=...)"
        )
    elif isinstance(given, torch.Tensor | np.ndarray):
        raise ValueError(f"{_RULE}; images {list(given.shape)} come with their labels")
    elif isinstance(given, tuple) and len(given) == 2 and all(map(_is_part, given)):
        raise ValueError(f"{_RULE}; two parts are told apart by their names")
    else:
        parts = {"train": given}
    return read_given(parts, "data=", how)


def _is_part(value: Any) -> bool:
    """Whether it is a pair of arrays, or a data set, where images or labels are expected."""
    pair = isinstance(value, tuple) and len(value) == 2
    return isinstance(value, Dataset) or (pair and all(np.ndim(one) for one in value))


def _split(data: Data) -> dict[str, Any]:
    """The parts of data as they are split, which a search normalises anew."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    parts = {
        name: (split.batch(slice(None)), split.labels)
        for name, split in splits.items()
        if split is not None
    }
    images = parts["train"][0]
    mean, std = statistics(images.cpu())
    same = torch.allclose(data.train.mean.cpu(), mean, atol=1e-4) and torch.allclose(
        data.train.std.cpu(), std, atol=1e-4
    )
    if not same or tuple(images.shape[1:]) != data.image:
        raise ValueError(
            "a search normalises images by the mean and deviation of its training images, and "
            "takes them in one size; these are taken otherwise: give the images alone, {'train': "
            "(images, labels), ...}, and data.resize for another size"
        )
    return {**parts, "class_names": list(data.class_names)}


def _kind(given: Any) -> str:
    if isinstance(given, tuple) and len(given) == 2:
        return f"a pair of {' and '.join(type(one).__name__ for one in given)}"
    return type(given).__name__
