"""Whether the images of a set are what they were: stamps first, contents where stamps differ."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from planter.data.cache.decoding import digest_of
from planter.data.cache.parallel import in_order
from planter.data.cache.written import written
from planter.data.encoded import Encoded

_SURE_NS = 2 * 10**9
"""A file that was changed so lately may be changed again under the same stamp: clocks of file
systems tick up to two seconds apart."""
_DIGEST = 32


def digests_of(images: Sequence[Encoded], cache: Path, workers: int) -> list[bytes]:
    """The sha256 of each image's content.

    They are read anew unless every file has the size, inode and times of change (mtime and ctime,
    which no program can set back) that it had when they were last read, from these paths.
    """
    place = hashlib.sha256("\0".join(map(str, images)).encode("utf-8", "surrogateescape"))
    file = cache / "places" / f"{place.hexdigest()[:32]}.npz"
    stamps, newest = _stamps(images)
    known = _known(file, stamps, len(images))
    if known is not None:
        return known
    began = time.time_ns()
    found = list(in_order(partial(map, digest_of), images, workers, "reading images"))
    if newest < began - _SURE_NS and all(map(any, found)):
        with suppress(OSError), written(file) as new:  # whoever needs the cache tells it
            table = np.frombuffer(b"".join(found), np.uint8).reshape(-1, _DIGEST)
            np.savez(new, stamps=np.frombuffer(stamps, np.uint8), digests=table)
    return found


def _known(file: Path, stamps: bytes, count: int) -> list[bytes] | None:
    try:
        with np.load(file) as kept:
            if kept["stamps"].tobytes() != stamps or len(kept["digests"]) != count:
                return None
            digests = kept["digests"]
    except (OSError, ValueError, KeyError, EOFError):  # not there, or damaged
        return None
    return [row.tobytes() for row in digests]


def _stamps(images: Sequence[Encoded]) -> tuple[bytes, int]:
    """What tells the files from changed ones, and when the last was changed (ns since 1970)."""
    digest, newest = hashlib.sha256(), 0
    seen: dict[Path, None] = dict.fromkeys(image.file for image in images)
    for file in seen:
        try:
            found = os.stat(file)
        except OSError:
            digest.update(b"gone")
            continue
        newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
        told = (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        digest.update(repr(told).encode())
    return digest.digest(), newest
