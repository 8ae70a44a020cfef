"""A disk that is full for a while: what finds no space is written again until there is some."""

from __future__ import annotations

import errno
import logging
import time
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
