"""WebDataset: tar files whose members `key.jpg` and `key.cls` are an image and its label."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from planter.data.account import Reading
from planter.data.decode import readable
from planter.data.encoded import Encoded

_LABEL, _FACTS = ".cls", ".json"


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a tar file, of so many bytes from an offset on."""

    file: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"

    @property
    def ending(self) -> str:
        return PurePosixPath(self.name).suffix

    def read(self) -> bytes:
        with self.file.open("rb") as shard:
            shard.seek(self.offset)
            return shard.read(self.size)


def members_of(shards: list[Path], reading: Reading) -> tuple[list[Encoded], list[Any]]:
    """The images of tar files in their order, with their labels: what `key.cls` says, a number or a
    name, or "label" (or "cls") in `key.json`.

    Raises ValueError for a file that is no plain tar, and an image without a label.
    """
    images: list[Encoded] = []
    labels: list[Any] = []
    for shard in shards:
        for image, label in _samples(shard, reading):
            images.append(image)
            labels.append(label)
    return images, labels


def _samples(shard: Path, reading: Reading) -> list[tuple[Member, Any]]:
    images: dict[str, Member] = {}
    labels: dict[str, Any] = {}
    try:
        # "r:": members of a compressed one cannot be read each for itself.
        with tarfile.open(shard, "r:") as opened:
            for one in opened:
                place = PurePosixPath(one.name)
                if not one.isfile() or place.name.startswith("."):
                    continue
                # WebDataset's rule: the key ends at the first dot of the name.
                base, dot, rest = place.name.partition(".")
                key, ending = str(place.parent / base), f".{rest.lower()}" if dot else ""
                if ending in readable():
                    images[key] = Member(shard, one.name, one.offset_data, one.size)
                elif ending in (_LABEL, _FACTS):
                    found = opened.extractfile(one)
                    assert found is not None
                    label = _label(found.read().decode("utf-8", "replace"), ending)
                    if label is not None and (ending == _LABEL or key not in labels):
                        labels[key] = label
                else:
                    reading.skip(ending, "neither an image nor a label (.cls, .json)")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{shard} cannot be read as a plain tar file: {error}; a compressed one is to be "
            "decompressed first"
        ) from error
    if bare := [str(image) for key, image in images.items() if key not in labels]:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        raise ValueError(
            f"{bare[0]}{more} has no label: a member of the same name that ends in .cls, or in "
            '.json with "label"'
        )
    return [(image, labels[key]) for key, image in images.items()]


def _label(text: str, ending: str) -> Any:
    if ending == _FACTS:
        try:
            facts = json.loads(text)
        except ValueError:
            return None
        if not isinstance(facts, dict):
            return None
        return facts.get("label", facts.get("cls"))
    text = text.strip()
    try:
        return int(text)
    except ValueError:
        return text
