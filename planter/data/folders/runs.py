"""planter's own runs, which may lie where images are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from planter.data.decode import readable

_MARK = "resolved.yaml"
_LIKELY = {".id", ".lock", "study.db", "pareto.json"}
_TEACHERS = ".teachers"
_WRITTEN = {"models", "trials"}
_MOST = 10_000
"""Folders that are looked through; with more, images are nearer than the last run."""


def is_of_runs(folder: Path) -> bool:
    """Whether a folder is a run of planter's, or holds one and no image that is not in a run.

    Only runs have a resolved.yaml, and pictures may have been drawn into them. The other files of a
    run, which a run that has just begun has alone, are called as files of others are: with images
    below, they make no run of a folder.
    """
    around = Path(os.path.realpath(folder)).parents
    found, open_, seen = False, [folder], set(around)
    while open_ and len(seen) < _MOST:
        here = open_.pop()
        if (real := Path(os.path.realpath(here))) in seen:
            continue
        seen.add(real)
        if has_mark(here):
            found = True
            continue
        for entry in _entries(here):
            if os.path.isdir(entry.path):
                found |= entry.name == _TEACHERS
                open_ += [Path(entry.path)] * (not entry.name.startswith("."))
            elif _is_image(entry.name):
                return False
            else:
                found |= entry.name in _LIKELY
    return found and not open_


def has_mark(folder: Path) -> bool:
    """Whether a folder has the file that only runs have."""
    return (folder / _MARK).is_file()


def pictures_in(run: Path) -> int:
    """How many images lie in a run, beside what planter writes there."""
    count = 0
    for here, folders, names in os.walk(run):
        own = _WRITTEN if Path(here) == run else set()
        folders[:] = [name for name in folders if name not in own and not name.startswith(".")]
        count += sum(map(_is_image, names))
    return count


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # told where its images would be read
        return []


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in readable()
