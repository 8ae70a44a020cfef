"""A data set as its source gives it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from planter.data.account import Reading
from planter.data.encoded import Listed

Pair = tuple[Tensor | Listed, Tensor]
"""Images `[n, channels, height, width]`, or where they are, and labels `[n]`."""


@dataclass(frozen=True)
class Raw:
    """A data set before split and subset: images uint8 or float32, or all of them not read yet,
    labels int64, 0 to the number of names less one. `validation` and `test` are None where the
    source has none; what they come from is told for the account."""

    train: Pair
    test: Pair | None
    class_names: tuple[str, ...]
    validation: Pair | None = None
    reading: Reading = field(default_factory=Reading)
    validation_from: str | None = None
    test_from: str | None = None
