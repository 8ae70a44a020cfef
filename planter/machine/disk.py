"""Files that appear whole or not at all; a disk that is full for a while: what finds no space is
written again until there is some."""

from __future__ import annotations

import errno
import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_PATIENCE_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class NoSpaceError(OSError):
    """A disk stayed full for longer than a write waits."""


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk is full or a quota used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def when_there_is_space(write: Callable[[], Answer], folder: Path) -> Answer:
    """What `write` returns: it is called again, ever later, while the disk is full, for ten minutes
    at most. It must bear being repeated. Raises NoSpaceError then, and whatever else it raises."""
    end, pause = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S
    while True:
        try:
            return write()
        except OSError as error:
            if not is_full(error):
                raise
            if time.monotonic() + pause > end:
                raise NoSpaceError(
                    errno.ENOSPC,
                    f"no space left in {folder} for longer than a search waits "
                    f"({_PATIENCE_S:g} s): free some, then go on",
                ) from error
        log.warning("no space left in %s; next try in %g s", folder, pause)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that a kill or a full disk leaves the old one.

    From memory: torch and safetensors do not tell a full disk from other errors of their writing.
    """
    fresh = path.with_suffix(f".{uuid.uuid4().hex[:8]}.new")
    try:
        fresh.write_bytes(content)
        sync(fresh)
        fresh.replace(path)
        sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has a file, or the names in a folder, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
