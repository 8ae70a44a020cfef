"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

_SYNCED = 1 << 25
"""Bytes after which a large file is brought to the disk: less waiting at its end."""


@contextlib.contextmanager
def written(file: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of `file` at the end. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.", suffix=".new")
    try:
        with os.fdopen(handle, "wb") as new:
            yield new
            new.flush()
            os.fsync(new.fileno())
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def synced_meanwhile(file: BinaryIO) -> Iterator[Callable[[memoryview], None]]:
    """Writes to a file that is brought to the disk in between, by a thread. Raises OSError."""
    left = _SYNCED
    syncing: Future[None] | None = None

    def write(part: memoryview) -> None:
        nonlocal left, syncing
        left -= file.write(part)
        if left < 0 and (syncing is None or syncing.done()):
            if syncing is not None:
                syncing.result()
            left, syncing = _SYNCED, beside.submit(os.fsync, file.fileno())

    with ThreadPoolExecutor(1) as beside:
        yield write
