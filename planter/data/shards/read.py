"""Data sets of shards: which images they hold, with their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from planter.data.account import Reading
from planter.data.encoded import Encoded, Listed
from planter.data.labels import as_array, numbered
from planter.data.raw import Pair, Raw
from planter.data.shards.parquet import rows_of
from planter.data.shards.parts import shards_of
from planter.data.shards.tar import members_of

SHARDS = {"webdataset": ".tar", "parquet": ".parquet"}


def read_shards(name: str, root: Path) -> Raw:
    """The shards below `root` of the kind `name`; their images are not read. Raises ValueError."""
    reading = Reading()
    shards = shards_of(root, SHARDS[name], reading)
    images: list[Encoded] = []
    rows, labels = {}, {}
    names: tuple[str, ...] | None = None
    for part, files in shards.items():
        some: list[Encoded]
        given: list[Any]
        if name == "webdataset":
            some, given = members_of(files, reading)
        else:
            some, given, told = rows_of(files)
            names = names or told
        if not some:
            raise ValueError(f"{root} holds no image to {part}; fill its shards, or move them away")
        rows[part] = torch.arange(len(images), len(images) + len(some))
        images += some
        labels[part] = as_array(given)
    try:
        numbers, names = numbered(labels, names)
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from error
    pairs: dict[str, Pair] = {
        part: (Listed(images, some), numbers[part]) for part, some in rows.items()
    }
    return Raw(
        pairs["train"],
        pairs.get("test"),
        names,
        validation=pairs.get("validation"),
        reading=reading,
        validation_from="its own" if "validation" in pairs else None,
        test_from="its own" if "test" in pairs else None,
    )
