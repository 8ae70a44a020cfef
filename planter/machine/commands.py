"""Commands that a message advises: words that run as they stand when they are pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(*words: str | Path) -> str:
    """`planter WORDS`, as a shell reads it: by the name planter was called by, with quotes where a
    word needs them. A path that reads as an option gets the folder it is in."""
    return " ".join([program(), *(word_of(word) for word in words)])


def word_of(word: str | Path) -> str:
    """A word of a command as a shell takes it."""
    text = os.fspath(word)
    if isinstance(word, Path) and text.startswith(("-", "~")):
        text = os.path.join(os.curdir, text)
    return shlex.quote(text)


def program() -> str:
    """How this planter is called: `planter` where a shell finds it by that name, else by its path
    or through its Python."""
    called = Path(sys.argv[0] if sys.argv and sys.argv[0] else "planter")
    if called.name == "__main__.py" and called.parent.name == "planter":
        found = shutil.which("python")
        here = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
        return f"{'python' if here else shlex.quote(sys.executable)} -m planter"
    if called.name != "planter" or not called.is_file() or shutil.which("planter") is not None:
        return "planter"
    return shlex.quote(sys.argv[0])
