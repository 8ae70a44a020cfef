"""Which folders below a root are classes, and which are its training, validation and test parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planter.data.account import Reading
from planter.data.folders.listing import folders_in, ignore, images_below, images_in, skip_all

PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""The names of a part's folder, whatever their case, and of its key in own data."""


@dataclass(frozen=True)
class Layout:
    """The folders of a data set: `train` holds class folders, `classes`; the other parts hold
    folders of these names, or are None."""

    train: Path
    classes: tuple[str, ...]
    validation: Path | None
    test: Path | None


def find_layout(root: Path, reading: Reading) -> Layout:
    """The layout of a root; what lies beside its parts and classes is noted.

    A folder named like a part is one if it holds folders: at least two, or one and no image of its
    own. Without a training folder, the classes lie in the root beside the other parts, and a folder
    named like a part is one only where it holds a folder of the name of a class. Raises ValueError
    for fewer than two classes, a part under two names, or parts without a training one.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    folders = folders_in(root, root, reading)
    parts: dict[str, Path] = {}
    for path in folders:
        part = PARTS.get(path.name.lower())
        if part is None or not _holds_classes(path):
            continue
        if part in parts:
            raise ValueError(
                f"{root} has {parts[part].name} and {path.name}: one folder for {part}, please; "
                "rename the other or move it away"
            )
        parts[part] = path
    if "train" in parts:
        train = parts["train"]
        _note_beside(root, [path for path in folders if path not in parts.values()], reading)
        classes = folders_in(train, root, reading)
    else:
        train = root
        parts = _parts_beside_classes(root, folders, parts)
        classes = [path for path in folders if path not in parts.values()]
    outside = images_in(root, reading) + (images_in(train, reading) if train != root else [])
    skip_all(outside, "beside the class folders", reading)
    if len(classes) < 2:
        raise ValueError(_too_few(train, classes, len(outside)))
    _warn_of_parts(root, classes, reading)
    names = tuple(path.name for path in classes)
    return Layout(train, names, parts.get("validation"), parts.get("test"))


def class_folders(
    root: Path, part: Path, classes: Sequence[str], reading: Reading
) -> dict[str, Path]:
    """The folders of a validation or test part by class; a class may have none there. Raises
    ValueError for one that is no class."""
    found = {path.name: path for path in folders_in(part, root, reading)}
    if extra := sorted(set(found) - set(classes)):
        raise ValueError(
            f"{part} has classes that train has not: {', '.join(extra)}; give each its training "
            "images, or move them away"
        )
    skip_all(images_in(part, reading), "beside the class folders", reading)
    return found


def _holds_classes(folder: Path) -> bool:
    inner = len(folders_in(folder, folder, Reading()))
    return inner > 1 or (inner == 1 and not images_in(folder, Reading()))


def _parts_beside_classes(
    root: Path, folders: Sequence[Path], parts: dict[str, Path]
) -> dict[str, Path]:
    """Which of the folders named like parts are parts, where there is no training folder."""
    inner = {p: {f.name for f in folders_in(p, p, Reading())} for p in parts.values()}
    names = {path.name for path in folders if path not in parts.values()}
    shared = {
        path
        for path, own in inner.items()
        for other, others in inner.items()
        if other != path and own & others
    }
    kept = {part: path for part, path in parts.items() if inner[path] & names}
    if parts and not kept and (shared or not names):
        told = " and ".join(path.name for path in parts.values())
        raise ValueError(
            f"{root} has {told}, but no folder train with the classes to train on; add it"
        )
    return kept


def _warn_of_parts(root: Path, classes: Sequence[Path], reading: Reading) -> None:
    """Warns of classes named like parts: a part of another form than planter reads looks so."""
    for path in classes:
        if (part := PARTS.get(path.name.lower())) is None:
            continue
        example = next((c.name for c in classes if c.name.lower() not in PARTS), "cat")
        if part == "train":
            form = (
                f"it holds class folders, such as {path.name}/{example}/, and no image of its own"
            )
        else:
            form = f"it holds folders named like the classes, such as {path.name}/{example}/"
            form += ", and lies beside the training folder" * (path.parent != root)
        reading.warnings.append(
            f"the folder {path.relative_to(root).as_posix()} is read as a class; if it is to be "
            f"the {part} part, {form}"
        )


def _note_beside(root: Path, folders: Sequence[Path], reading: Reading) -> None:
    """Notes folders beside the training one that are no part."""
    for path in folders:
        ignore(path, root, "beside the training folder, and no part", reading)
        if images := len(images_below(path)):
            reading.warnings.append(
                f"{path.name} lies beside the training folder, and its {images} images are not "
                "read; a class belongs into the training folder, a part is named train, "
                "validation or test and holds class folders"
            )


def _too_few(train: Path, classes: Sequence[Path], images: int) -> str:
    found = f"got the folder {classes[0].name}" if classes else "got no folder"
    found += f" and {images} images" * bool(images)
    hint = "; if the classes lie in it, give it as root" if classes else ""
    return f"{train} must hold a folder for each of two or more classes; {found}{hint}"
