"""The image files below a folder, and a note of everything there that is none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from planter.data.account import Ignored, Reading
from planter.data.decode import readable
from planter.data.folders.links import Links, check_apart, links_of, real_path
from planter.data.folders.runs import has_mark, is_of_runs, pictures_in

_Leads = Callable[[Path], str | None]
"""Why what a link leads to is not read; None where it is."""

_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {
    "__macosx": "what archives made on a Mac leave",
    "__pycache__": "Python's own",
    "@eadir": "a file server's own",
    "$recycle.bin": "a recycle bin",
    "system volume information": "Windows' own",
    "lost+found": "the file system's own",
}
_RUNS = "planter's own runs"


def folders_in(
    folder: Path, root: Path, reading: Reading, leads: _Leads | None = None
) -> list[Path]:
    """The folders directly in a folder, sorted by name, that may hold images; others are noted as
    ignored, relative to `root`."""
    kept = []
    for entry in _entries(folder):
        if not _is_folder(entry):
            continue
        path = Path(entry.path)
        # First, as looking through what a link leads to may take long.
        if leads and entry.is_symlink() and (reason := leads(path)):
            ignore(path, root, reason, reading, files=0)
        elif reason := _no_images(path):
            ignore(path, root, reason, reading)
            _warn_of_pictures(path, root, reason, reading)
        else:
            kept.append(path)
    return kept


def images_in(folder: Path, reading: Reading, leads: _Leads | None = None) -> list[Path]:
    """The image files directly in a folder, sorted by name; other files are noted as skipped."""
    found = []
    for entry in _entries(folder):
        if _is_folder(entry):
            continue
        reason = _no_image(entry)
        if reason is None and leads and entry.is_symlink():
            reason = leads(Path(entry.path))
        if reason is None:
            found.append(Path(entry.path))
        else:
            reading.skip(_ending(entry.name), reason)
    return found


def images_of(
    classes: Mapping[str, Path], others: Iterable[Path], root: Path, reading: Reading
) -> dict[str, list[Path]]:
    """The image files of each class of a part: in its folder and in the folders in it, sorted by
    path; other files are noted as skipped.

    Links are followed where they lead out of the part's classes and of the folders of other parts,
    `others`, to a folder once; other links are noted. Raises ValueError for a class folder that is
    a link to another's, or to one around it.
    """
    links = links_of(classes, others)
    check_apart(classes, links)
    return {name: _below(name, folder, root, reading, links) for name, folder in classes.items()}


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and in the folders in it, sorted by path."""
    return _below("", folder, folder, Reading(), links_of({"": folder}))


def _below(name: str, folder: Path, root: Path, reading: Reading, links: Links) -> list[Path]:
    found: list[Path] = []
    open_, linked = [folder], list[Path]()
    while open_ or linked:
        # Folders before links: of two ways to a folder, its own is read.
        here = open_.pop() if open_ else linked.pop()
        if reason := links.of_folder(here, name):
            ignore(here, root, reason, reading, files=0)
            continue
        links.read.add(real_path(here))
        found += images_in(here, reading, lambda file: links.of_file(file, name))
        for inner in folders_in(here, root, reading, lambda path: links.of_folder(path, name)):
            (linked if inner.is_symlink() else open_).append(inner)
    return sorted(found)


def skip_all(paths: Iterable[Path], reason: str, reading: Reading) -> None:
    """Notes image files that are not read, and why."""
    for path in paths:
        reading.skip(_ending(path.name), reason)


def ignore(
    folder: Path, root: Path, reason: str, reading: Reading, *, files: int | None = None
) -> None:
    """Notes a folder that is not read, and why."""
    if files is None:
        files = sum(len(names) for _, _, names in os.walk(folder))
    reading.ignored.append(Ignored(folder.relative_to(root).as_posix(), files, reason))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder} cannot be listed: {error.strerror or error}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises for a link that leads in a circle.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _ending(name: str) -> str:
    """`Path(name).suffix`, which takes ten times as long, in lower case."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def _no_image(entry: os.DirEntry[str]) -> str | None:
    """Why a file is no image to read; None where it is one by its name."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.name.lower() in _SYSTEM_FILES:
        return "the system's own"
    if _ending(entry.name) not in readable():
        if _looks_like_an_image(entry):
            return "an image by its content, not by its ending: rename it"
        return "no ending of an image that Pillow reads here"
    # A link that leads nowhere is told as an image that cannot be read.
    return None if entry.is_symlink() or entry.is_file() else "no regular file"


def _looks_like_an_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file without an image's ending begins as JPEG, PNG, GIF or WebP do. It is told, not
    read: such files are often copies of others (.bak, .tmp) or thumbnails (.thm)."""
    if not os.path.isfile(entry.path):
        return False
    try:
        with open(entry.path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8")) or (
        head.startswith(b"RIFF") and head.endswith(b"WEBP")
    )


def _no_images(folder: Path) -> str | None:
    """Why a folder is not looked into; None where it may hold images."""
    if folder.name.startswith("."):
        return "hidden"
    if (reason := _SYSTEM_FOLDERS.get(folder.name.lower())) is not None:
        return reason
    return _RUNS if is_of_runs(folder) else None


def _warn_of_pictures(folder: Path, root: Path, reason: str, reading: Reading) -> None:
    """Warns of a run that may be a class's folder: planter may have been told to write there."""
    if reason == _RUNS and has_mark(folder) and (images := pictures_in(folder)):
        reading.warnings.append(
            f"{folder.relative_to(root).as_posix()} is a run of planter's (it has resolved.yaml), "
            f"and its {images} images are not read; images to be read lie outside of it"
        )


def count_endings(folder: Path) -> Counter[str]:
    """How many files of each ending lie in a folder and the folders in it."""
    names = [name for _, _, files in os.walk(folder) for name in files]
    return Counter(_ending(name) for name in sorted(names))
