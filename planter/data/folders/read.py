"""A folder of class folders: which images it holds, with their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from planter.data.account import Ignored, Reading
from planter.data.decode import readable
from planter.data.encoded import ImageFile, Listed
from planter.data.folders.layout import class_folders, find_layout
from planter.data.folders.links import INTO_ANOTHER
from planter.data.folders.listing import count_endings, images_of
from planter.data.raw import Raw


def read_folder(root: Path, *, leave_out_empty: bool = False) -> Raw:
    """Class folders under `root`, or under `root/train` with `root/validation` and `root/test`
    where there are such; their images are not read.

    A class without a training image is refused; with `leave_out_empty`, its folder is noted and
    left out. Raises ValueError.
    """
    reading = Reading()
    layout = find_layout(root, reading)
    trained = {name: layout.train / name for name in layout.classes}
    held = [place for place in (layout.validation, layout.test) if place is not None]
    listed = images_of(trained, held, root, reading)
    if not any(listed.values()):
        endings = ", ".join(sorted(readable()))
        raise ValueError(f"{layout.train} holds no images ({endings}){_skipped(reading)}")
    if empty := [name for name, files in listed.items() if not files]:
        if not leave_out_empty:
            raise ValueError(_empty_classes(layout.train, empty, reading))
        for name in empty:
            reading.ignored.append(Ignored(name, 0, "no image in it"))
            del listed[name]
    parts = {"train": listed}
    for part, place in (("validation", layout.validation), ("test", layout.test)):
        if place is None:
            continue
        others = [*trained.values(), *(other for other in held if other != place)]
        folders = class_folders(root, place, layout.classes, reading)
        there = images_of(folders, others, root, reading)
        if not any(there.values()):
            raise ValueError(f"{place} holds no images; fill it or move it away{_skipped(reading)}")
        parts[part] = there
    pairs = _pairs(parts, list(listed))
    return Raw(
        pairs["train"],
        pairs.get("test"),
        tuple(listed),
        validation=pairs.get("validation"),
        reading=reading,
        validation_from=f"{layout.validation.name}/" if layout.validation else None,
        test_from=f"{layout.test.name}/" if layout.test else None,
    )


def _pairs(
    parts: Mapping[str, Mapping[str, list[Path]]], classes: list[str]
) -> dict[str, tuple[Listed, Tensor]]:
    """The images of each part, class by class, with their labels."""
    images: list[ImageFile] = []
    found = {}
    for part, listed in parts.items():
        files = [listed.get(name, []) for name in classes]
        first = len(images)
        images += [ImageFile(file) for some in files for file in some]
        labels = [label for label, some in enumerate(files) for _ in some]
        found[part] = torch.arange(first, len(images)), torch.tensor(labels)
    return {part: (Listed(images, rows), labels) for part, (rows, labels) in found.items()}


def _empty_classes(train: Path, empty: list[str], reading: Reading) -> str:
    told = []
    for name in empty:
        endings = count_endings(train / name)
        held = ", ".join(f"{n} {e or 'without an ending'}" for e, n in endings.items())
        told.append(f"{name} ({held or 'an empty folder'})")
    one = len(empty) == 1
    linked = any(reason == INTO_ANOTHER for _, reason in reading.skipped)
    return (
        f"{train}: a class needs an image to train on, and {'this' if one else 'these'} "
        f"{'has' if one else 'have'} none: {', '.join(told)}; add images or move the "
        f"folder{'' if one else 's'} away"
        + "; links into other classes or parts are not read" * linked
        + _skipped(reading)
    )


def _skipped(reading: Reading) -> str:
    """What lay there and was not read, and why, to end a message with."""
    found = [
        f"{one.files} {one.ending or 'without an ending'} ({one.reason})" for one in reading.skips()
    ]
    return f"; not read: {', '.join(found)}" if found else ""
