"""The image files below a folder, and a note of everything there that is none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from planter.data.account import Ignored, Reading
from planter.data.decode import readable

_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {
    "__macosx": "what archives made on a Mac leave",
    "__pycache__": "Python's own",
    "@eadir": "a file server's own",
    "$recycle.bin": "a recycle bin",
    "system volume information": "Windows' own",
    "lost+found": "the file system's own",
}
_OF_A_RUN = ("resolved.yaml", "study.db", "pareto.json", ".id")
_RUNS = "planter's own runs"


def folders_in(folder: Path, root: Path, reading: Reading) -> list[Path]:
    """The folders directly in a folder, sorted by name, that may hold images; others are noted as
    ignored, relative to `root`."""
    kept = []
    for entry in _entries(folder):
        path = Path(entry.path)
        if not entry.is_dir():
            continue
        if reason := _no_images(path):
            ignore(path, root, reason, reading)
        else:
            kept.append(path)
    return kept


def images_in(folder: Path, reading: Reading) -> list[Path]:
    """The image files directly in a folder, sorted by name; other files are noted as skipped."""
    found = []
    for entry in _entries(folder):
        if entry.is_dir():
            continue
        if (reason := _no_image(entry)) is None:
            found.append(Path(entry.path))
        else:
            reading.skip(_ending(entry.name), reason)
    return found


def images_below(folder: Path, root: Path, reading: Reading) -> list[Path]:
    """The image files in a folder and in the folders in it, sorted by path; other files are noted
    as skipped. Links to folders are followed, once each."""
    found: list[Path] = []
    open_, seen = [folder], set()
    while open_:
        here = open_.pop()
        if (real := here.resolve()) in seen:
            ignore(here, root, "a link to a folder that was read already", reading, files=0)
            continue
        seen.add(real)
        found += images_in(here, reading)
        open_ += folders_in(here, root, reading)
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


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


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
    return None if entry.is_file() or entry.is_symlink() else "no regular file"


def _looks_like_an_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file without an image's ending begins as JPEG, PNG, GIF or WebP do. It is told, not
    read: such files are often copies of others (.bak, .tmp) or thumbnails (.thm)."""
    if not entry.is_file():
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
    if _is_run(folder):
        return _RUNS
    inner = [Path(e.path) for e in _entries(folder) if e.is_dir() and not e.name.startswith(".")]
    runs_only = inner and all(_is_run(path) for path in inner)
    # A run may have been put into a class's folder, beside the images.
    return _RUNS if runs_only and not images_in(folder, Reading()) else None


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _OF_A_RUN)


def count_endings(folder: Path) -> Counter[str]:
    """How many files of each ending lie in a folder and the folders in it."""
    names = [name for _, _, files in os.walk(folder) for name in files]
    return Counter(_ending(name) for name in sorted(names))
