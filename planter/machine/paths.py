"""Paths as people write them: what `~` and `$NAME` in one stand for. One rule for all of them.

A path that is there as it is written is taken as it is written. In any other, `~` at the beginning
is the user's home, and `$NAME` and `${NAME}` are variables of the environment. So paths are read
in a study, in `--set`, in the arguments of commands, and by the functions that take them. An
absolute `Path` stands for itself: whoever made it has looked up what is in it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)


def user_path(text: str | Path, base: str | Path = "") -> Path:
    """The path that `text` stands for, from the folder `base` where it is relative.

    Raises ValueError for a variable that is not set, by its name, and for the home of a user who
    is not there.
    """
    if isinstance(text, Path) and text.is_absolute():
        return text
    written = _encodable(os.fspath(text))
    as_written = Path(base, written)
    if not ("$" in written or written.startswith("~")) or os.path.lexists(as_written):
        return as_written

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not (is_set := os.environ.get(name)):
            how = "is not set" if is_set is None else "is empty"
            raise ValueError(f"{written}: the variable {name} {how}; set it, or write its value")
        return is_set

    first, slash, rest = written.partition("/")
    if not first.startswith("~"):
        return Path(base, _VARIABLE.sub(value, written))
    try:
        home = os.fspath(Path(first).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{written}: {error}; write the folder instead of {first}") from error
    return Path(base, home + slash + _VARIABLE.sub(value, rest))


def shown_path(path: Path) -> str:
    """A path relative to the working folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _encodable(text: str) -> str:
    """The text of a UTF-8 file as a name that this process can give to the system, also in a locale
    without its letters: names of files are UTF-8 there as anywhere."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return os.fsdecode(text.encode())
    return text
