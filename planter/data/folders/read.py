"""A folder of class folders, read into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from planter.data.account import Ignored, Reading
from planter.data.decode import decode, readable
from planter.data.folders.layout import class_folders, find_layout
from planter.data.folders.links import INTO_ANOTHER
from planter.data.folders.listing import count_endings, images_of
from planter.data.raw import Raw
from planter.data.split import resized

_NAMED = 10
_DIM = 1 / 16
"""Share of their range that deep pixels should reach, or few levels of grey are left of them."""


@dataclass
class _Files:
    """What reading files comes upon, over all parts."""

    reading: Reading
    resize: int | None
    unreadable: list[str] = field(default_factory=list)
    more_frames: int = 0
    brightest: float | None = None
    first: tuple[Path, torch.Size] | None = None

    def read(self, file: Path) -> Tensor | None:
        """The image `[3, height, width]`, uint8; None for one that cannot be read."""
        try:
            made = decode(file)
        except ValueError as error:
            self.unreadable.append(f"{file} cannot be read as an image: {error}")
            return None
        self.more_frames += made.more_frames
        if made.brightest is not None:
            self.brightest = max(made.brightest, self.brightest or 0.0)
        pixels = torch.from_numpy(made.pixels).permute(2, 0, 1)
        # Each image is resized as it is read: a folder's originals may not fit into memory.
        image = resized(pixels[None], self.resize)[0] if self.resize else pixels
        if self.first is None:
            self.first = file, image.shape
        if image.shape != self.first[1]:
            raise ValueError(
                f"{file} has {tuple(image.shape[1:])} pixels, the first image, "
                f"{self.first[0]}, {tuple(self.first[1][1:])}; set resize to bring all to one size"
            )
        return image


def read_folder(root: Path, resize: int | None, *, leave_out_empty: bool = False) -> Raw:
    """Class folders under `root`, or under `root/train` with `root/validation` and `root/test`
    where there are such.

    A class without a training image is refused; with `leave_out_empty`, its folder is noted and
    left out. Raises ValueError, also for files that cannot be read, all of them named.
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
    files = _Files(reading, resize)
    parts = {"train": _read(listed, list(listed), files)}
    for part, place in (("validation", layout.validation), ("test", layout.test)):
        if place is None:
            continue
        others = [*trained.values(), *(other for other in held if other != place)]
        folders = class_folders(root, place, layout.classes, reading)
        there = images_of(folders, others, root, reading)
        if not any(there.values()):
            raise ValueError(f"{place} holds no images; fill it or move it away{_skipped(reading)}")
        parts[part] = _read(there, list(listed), files)
    if files.unreadable:
        told, more = files.unreadable[:_NAMED], len(files.unreadable) - _NAMED
        rest = [f"and {more} more"] if more > 0 else []
        raise ValueError("\n  ".join(["replace or remove:", *told, *rest]))
    _note(files, reading)
    return Raw(
        parts["train"],
        parts.get("test"),
        tuple(listed),
        validation=parts.get("validation"),
        reading=reading,
        validation_from=f"{layout.validation.name}/" if layout.validation else None,
        test_from=f"{layout.test.name}/" if layout.test else None,
    )


def _read(
    listed: Mapping[str, list[Path]], classes: list[str], files: _Files
) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for label, name in enumerate(classes):
        for file in listed.get(name, []):
            if (image := files.read(file)) is not None:
                images.append(image)
                labels.append(label)
    return torch.stack(images) if images else torch.empty(0), torch.tensor(labels)


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


def _note(files: _Files, reading: Reading) -> None:
    if files.more_frames:
        reading.notes.append(
            f"of {files.more_frames} files with several frames the first one was read"
        )
    if files.brightest is not None and files.brightest < _DIM:
        levels = int(files.brightest * 256) + 1
        reading.warnings.append(
            f"the brightest pixel of more than 8 bits reaches {files.brightest:.2%} of its range: "
            f"{levels} of 256 levels are left; scale the files to their range"
        )
