"""Standard streams that cannot fail: what is printed never decides how a command ends.

A reader that goes away (`| head -1`), a stream closed by the shell (`>&-`), a full disk behind a
redirection and an encoding without our characters cost what is printed, and nothing else.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Any, BinaryIO, TextIO, cast

_IN_ASCII = {"·": ";", "±": "+-", "×": "x", "…": "...", "–": "-", "—": "-"}  # noqa: RUF001
_ERRORS = "planter-shown"


def keep_streams() -> None:
    """Puts streams that cannot fail in the place of stdout and stderr, and something harmless
    where the shell has closed one: the next file that is opened would get its number, and prints
    of others would go into that."""
    codecs.register_error(_ERRORS, _shown)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _open_nothing_at(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for good
            setattr(sys, name, stream)
        elif stream is getattr(sys, f"__{name}__"):  # and not what a test or a host put there
            setattr(sys, name, _lasting(stream))


def _lasting(stream: TextIO) -> TextIO:
    """The stream with the same descriptor and encoding, for which every write succeeds."""
    try:
        stream.flush()
        raw = _Lasting(stream.fileno())
    except (OSError, ValueError):  # one without a descriptor
        return stream
    lines = stream.isatty() or stream is sys.__stderr__
    return io.TextIOWrapper(
        cast(BinaryIO, io.BufferedWriter(raw)),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=lines,
    )


class _Lasting(io.RawIOBase):
    """A descriptor that leads to nothing from the first write on that fails."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def write(self, content: Any) -> int:
        try:
            return os.write(self._number, content)
        except OSError:  # EPIPE, ENOSPC, EIO of a terminal that is gone, ...
            _open_nothing_at(self._number)
            return len(content)

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True


def _open_nothing_at(number: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)
    else:
        os.set_inheritable(number, True)


def _shown(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(one, "?") for one in lacking), error.end
