"""Which shards of a folder are of which part."""

from __future__ import annotations

import re
from pathlib import Path

from planter.data.account import Ignored, Reading
from planter.data.folders.layout import PARTS

_FIRST_WORD = re.compile(r"[A-Za-z]+")


def shards_of(root: Path, ending: str, reading: Reading) -> dict[str, list[Path]]:
    """The files with an ending below `root`, by part, each sorted by path.

    The part is the name of a folder they lie in, or the first word of their own: train,
    validation, test, or what they are called elsewhere (`PARTS`). Where none is called train, all
    without such a name are; else these are noted, not read. Raises ValueError where there are none.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    found: dict[str | None, list[Path]] = {}
    for file in sorted(root.rglob(f"*{ending}")):
        place = file.relative_to(root)
        if file.is_file() and not any(part.startswith(".") for part in place.parts):
            found.setdefault(_part_of(place), []).append(file)
    unnamed = found.pop(None, [])
    if "train" not in found:
        found["train"], unnamed = unnamed, []
    if not found["train"]:
        others = ", ".join(str(part) for part in found if part != "train")
        held = f"; those in it are of: {others}" if others else ""
        raise ValueError(f"{root} holds no {ending} files to train on{held}")
    for file in unnamed:
        reading.ignored.append(
            Ignored(file.relative_to(root).as_posix(), 1, "of no part, beside shards called train")
        )
    return {str(part): files for part, files in found.items()}


def _part_of(place: Path) -> str | None:
    for folder in place.parts[:-1]:
        if folder.lower() in PARTS:
            return PARTS[folder.lower()]
    word = _FIRST_WORD.match(place.name)
    return PARTS.get(word[0].lower()) if word else None
