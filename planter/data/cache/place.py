"""The user's folder of decoded sets: where it is, and how it is kept within its bounds."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)
ABOUT = "about.json"
"""Of a set, written last: where it is, the set is whole."""
_PLACES_KEPT = 100


def cache_folder() -> Path:
    """`$PLANTER_CACHE`, or `planter` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if own := os.environ.get("PLANTER_CACHE"):
        return Path(own).absolute()
    # The XDG rule: a relative path is none.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path("~/.cache").expanduser()) / "planter"


def make_room(folder: Path, needed: int, budget: int) -> None:
    """Drops the sets that were not used for longest, until `needed` bytes fit within the budget; a
    set that is being written stays. Raises OSError where the disk has no room for so much."""
    sets = {about.parent: _used(about) for about in folder.glob(f"sets/*/{ABOUT}")}
    held = {one: sum(_size(file) for file in one.iterdir()) for one in sets}
    for oldest in sorted(sets, key=sets.__getitem__):
        if sum(held.values()) + needed <= budget:
            break
        with suppress(OSError, Timeout), FileLock(oldest / "lock", timeout=0):
            (oldest / ABOUT).unlink()
            shutil.rmtree(oldest, ignore_errors=True)  # who has it open keeps it
            log.info("%s was not used for longest: dropped for another set", oldest)
            del held[oldest]
    places = sorted(folder.glob("places/*"), key=_used)
    for old in places[: -_PLACES_KEPT or None]:
        old.unlink(missing_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} needed")


def _used(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # another process has dropped it
        return 0.0


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
