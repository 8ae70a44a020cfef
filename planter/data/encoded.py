"""Images that are not read yet, as files hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


class Encoded(Protocol):
    """An image as a file holds it; its text says where, for messages."""

    @property
    def file(self) -> Path:
        """That holds it, perhaps among others."""

    @property
    def ending(self) -> str:
        """Of its own name, ".jpg"; perhaps empty."""

    def read(self) -> bytes:
        """Its content. Raises OSError where it is gone."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file of its own."""

    file: Path

    def __str__(self) -> str:
        return str(self.file)

    @property
    def ending(self) -> str:
        return self.file.suffix

    def read(self) -> bytes:
        return self.file.read_bytes()


@dataclass(frozen=True)
class Listed:
    """Some of a data set's `images`, by their `rows` `[n]`: of what a draw leaves out nothing is
    read."""

    images: Sequence[Encoded]
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Listed:
        return Listed(self.images, self.rows[index])
