"""The folder of Ray's session: short, this user's alone, and gone with the search."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = "planter-"
# Sockets are files whose path the system cuts at 107 bytes (103 on macOS); of that Ray takes
# r/session_2026-01-31_12-00-00_123456_PID/sockets/plasma_store below the folder, with a PID of
# up to seven digits.
_BELOW = len("/r/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store")
_LONGEST = (103 if sys.platform == "darwin" else 107) - _BELOW
_NAME = len(f"/{_FOLDER}1234567-12345678")
_HELD = ".planter-session"
"""A file in each session's folder, which its driver holds a lock on while it lives."""
_PLAIN = re.compile(r"[A-Za-z0-9/._+@%=,-]+")  # Ray passes it on in lists that split at spaces


def places() -> list[Path]:
    """Where a session's folder may stand: the system's temporary folder first (`TMPDIR`), then
    others that are short on most machines."""
    found = [tempfile.gettempdir(), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR")]
    with suppress(RuntimeError):  # a user without a home
        found.append(os.fspath(Path.home()))
    return list(dict.fromkeys(Path(place) for place in found if place and os.path.isabs(place)))


@contextmanager
def session_folder(among: Sequence[Path]) -> Iterator[Path]:
    """A new folder that only this user can enter, in the first of the places where one can be made
    and paths are short and plain enough for Ray; removed at the end.

    Raises ValueError where there is none, with the reason of each place.
    """
    folder = _made(among)
    try:
        held = _hold(folder)
        try:
            yield folder
        finally:
            os.close(held)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hold(folder: Path) -> int:
    """A descriptor with the lock that tells others that the folder is in use; the system lets go of
    it with the process, in whatever way that ends."""
    begun = folder / f"{_HELD}.new"
    held = os.open(begun, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    begun.rename(folder / _HELD)  # whoever finds it finds it locked
    return held


def _made(among: Sequence[Path]) -> Path:
    refused = []
    for place in among:
        reason = _unfit(place)
        if reason is None:
            try:
                # Ray opens its session folder to everybody; this one above it has mode 0700.
                return Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=place))
            except OSError as error:
                reason = error.strerror or str(error)
        refused.append(f"{place}: {reason}")
    raise ValueError(
        "Ray has no folder for its sockets: set TMPDIR to a folder that can be written and has at "
        f"most {_LONGEST - _NAME} characters, without spaces, or train in this process: "
        f"--workers 0 ({'; '.join(refused)})"
    )


def _unfit(place: Path) -> str | None:
    """Why Ray could not work in a place, None where it can."""
    length = len(os.fsencode(place))
    if length + _NAME > _LONGEST:
        return f"its path has {length} bytes, {_LONGEST - _NAME} are possible"
    if not _PLAIN.fullmatch(os.fspath(place)):
        return "its path has characters that Ray does not take"
    return None


def remove_left_folders(among: Sequence[Path]) -> None:
    """Removes the session folders of drivers that were killed and could not. What a folder is
    called says nothing: it goes if it holds the file of a session and nobody has a lock on it."""
    for folder in (found for place in among for found in place.glob(f"{_FOLDER}*-*")):
        with suppress(OSError):
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    """Raises OSError for a folder that is no session's, and for one in use."""
    held = os.open(folder / _HELD, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)
