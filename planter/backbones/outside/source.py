"""What is known of the source of a function or class, to tell whether it has changed."""

from __future__ import annotations

import inspect
import marshal
from pathlib import Path
from types import CodeType
from typing import Any


def source_of(function: Any) -> bytes | None:
    """The file of a function or class; where there is none, as in a notebook or on a command line,
    its own text or what Python has made of it; None where nothing is known."""
    try:
        file = inspect.getsourcefile(function)
        if file is not None and Path(file).is_file():
            return Path(file).read_bytes()
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        pass
    parts = [function, *vars(function).values()] if isinstance(function, type) else [function]
    codes = [part.__code__ for part in parts if hasattr(part, "__code__")]
    return marshal.dumps([_plain_code(code) for code in codes]) if codes else None


def _plain_code(code: CodeType) -> list[Any]:
    """What a compiled function does, without where it stands."""
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    # Sets of strings have another order in every process.
    constants = [
        repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c)
        for c in code.co_consts
        if not isinstance(c, CodeType)
    ]
    return [code.co_code, list(code.co_names), constants, *map(_plain_code, inner)]
