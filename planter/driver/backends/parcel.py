"""What travels between the driver and Ray's workers, as plain values and arrays."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import warnings
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from planter.backbones.outside.own import NETWORKS
from planter.data import Data, InMemorySplit, RowSplit, Split, load_data
from planter.driver.checking.importable import pickled
from planter.driver.tasks.context import Context
from planter.driver.trials.jobs import Job

log = logging.getLogger(__name__)
_FIELDS = ("images", "labels", "mean", "std")


def pack(context: Context) -> dict[str, Any]:
    """A context as plain values and arrays: Ray shares arrays between processes without copies. Of
    images in files, it is told where they are."""
    data = context.data
    parts = {"train": data.train, "validation": data.validation}
    # Pickled as one: they share their pixels.
    files = {part: split for part, split in parts.items() if isinstance(split, RowSplit)}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for part, split in parts.items():
        if isinstance(split, InMemorySplit):
            arrays |= {f"{part}.{name}": getattr(split, name).numpy() for name in _FIELDS}
    bare = replace(context, data=None)  # type: ignore[arg-type]
    # Ray tells workers of the script's folder and the working folder alone.
    path = [os.path.abspath(folder) for folder in sys.path]
    return {
        "context": bare,
        "data": arrays,
        "files": pickle.dumps(files),
        "class_names": data.class_names,
        "path": path,
        # One that cannot travel was refused where this study trains it.
        "networks": {
            name: content
            for name, made in NETWORKS.items()
            if isinstance(content := pickled(made), bytes)
        },
    }


def unpack(parcel: dict[str, Any]) -> Context:
    """The context of a parcel, in the process that trains, on its device."""
    sys.path += [folder for folder in parcel["path"] if folder not in sys.path]
    # Not before: what is pickled by its place is imported from there.
    NETWORKS.update({name: pickle.loads(made) for name, made in parcel["networks"].items()})
    arrays: dict[str, np.ndarray[Any, Any]] = parcel["data"]
    context: Context = parcel["context"]
    splits: dict[str, Split] = {}
    with warnings.catch_warnings():
        # The shared arrays are read-only; nothing writes to raw images or labels.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        for part in ("train", "validation"):
            if f"{part}.images" not in arrays:
                continue
            images, labels, mean, std = (
                torch.from_numpy(arrays[f"{part}.{name}"]) for name in _FIELDS
            )
            splits[part] = InMemorySplit(images, labels, mean, std)
    if len(splits) < 2:
        splits |= _opened(parcel["files"], context)
    data = Data(splits["train"], splits["validation"], None, parcel["class_names"])
    return replace(context, data=data.to(context.device))


def _opened(files: bytes, context: Context) -> dict[str, Split]:
    """The splits whose images are in files. Of a machine that does not have those of the driver's
    cache, they are read as a study reads them. Raises ValueError where it has other images."""
    try:
        found: dict[str, Split] = pickle.loads(files)
        return found
    except FileNotFoundError as error:
        log.info("%s: the images are read on this machine", error)
    study = context.study
    data = load_data(**study.data.model_dump(), seed=study.seed)
    if (now := data.fingerprint()) != context.fingerprint:
        raise ValueError(
            f"the images on this machine are not those of the driver's: fingerprint {now}, "
            f"expected {context.fingerprint}; bring them to the same state, or share PLANTER_CACHE"
        )
    return {"train": data.train, "validation": data.validation}


def job_to_text(job: Job) -> str:
    return json.dumps(asdict(job))


def job_from_text(text: str) -> Job:
    return Job(**json.loads(text))
