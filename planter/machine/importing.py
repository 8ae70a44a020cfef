"""Importing what makes many objects that all stay, as torch does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports within the block are not gone through for garbage, again and again as they grow,
    which takes a sixth of the time of `import torch`. What is there at its end counts as old, so
    that it is gone through when all is."""
    if not gc.isenabled() or gc.get_freeze_count():  # someone has a way of their own
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # into the oldest generation
        gc.enable()
