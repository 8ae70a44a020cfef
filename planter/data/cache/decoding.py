"""From encoded images to pixels of one size, and what is noted on the way."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from planter.data.account import Reading
from planter.data.cache.parallel import in_order
from planter.data.decode import Decoded, Pixels, decode_bytes
from planter.data.encoded import Encoded
from planter.data.fit import FITTED, Fit, Size, fitted_photo, is_shaped, within
from planter.machine.torch_state import threads_of_torch

_RULES = 2
"""Counts up when the same file would become other pixels."""
_NAMED = 10
_TOGETHER = 2**22
"""Pixels from which on no more images are opened before those that are get fitted."""
_EXACT = 256
"""Bytes the sum of whose squares is exact in float32, in any order: 256 * 255**2 < 2**24."""
_ONES = np.ones(_EXACT, np.float32)
_PART = 2**16
"""Pixels whose moments are computed at a time: they stay in the processor's cache."""
_DIM = 1 / 16
"""Share of their range that deep pixels should reach, or few levels of grey are left of them."""


@dataclass(frozen=True)
class Decoding:
    """How images become pixels `[3, height, width]`: fitted to a `size`, if there is one."""

    size: Size | None
    fit: Fit

    def key(self) -> list[Any]:
        """What tells its pixels from those of others."""
        return [_RULES, PIL.__version__, self.size, self.fit if self.size else None]

    def decode(self, content: bytes, ending: str) -> tuple[Pixels, Decoded]:
        """The pixels of an image, in C order, and what else there is to tell. Raises ValueError for
        what is none."""
        made = self.opened(content, ending)
        return self.fitted(made), made

    def opened(self, content: bytes, ending: str) -> Decoded:
        """An image before it is fitted. Raises ValueError for what is none."""
        return decode_bytes(content, ending, self._needed)

    def fitted(self, made: Decoded) -> Pixels:
        """The pixels of what is `opened`, in C order."""
        if self.size is None:
            return np.ascontiguousarray(made.pixels.transpose(2, 0, 1))
        # Scaled down, an image may have proportions that are others by a pixel.
        return np.ascontiguousarray(fitted_photo(made.shown, self.size, self.fit))

    def _needed(self, image: Size) -> Size | None:
        # Squashed, and of the right proportions, images are as they ever were.
        if self.size is None or self.fit == "squash" or is_shaped(image, self.size):
            return None
        return within(image, self.size, self.fit)


AS_IT_IS = Decoding(None, "crop")


@dataclass
class About:
    """What is noted of a set's images while they are decoded; `moments` `[n, 3, 4]`: of each
    image's channels the sum, the sum of squares, the least and the largest value."""

    moments: NDArray[np.int64]
    more_frames: int = 0
    brightest: float | None = None
    fitted: int = 0
    """Images of other proportions than the size."""

    def note(self, how: Decoding, reading: Reading) -> None:
        """Tells the reader of a data set."""
        if self.more_frames:
            reading.notes.append(
                f"of {self.more_frames} files with several frames the first one was read"
            )
        if self.fitted and how.size:
            height, width = how.size
            reading.notes.append(
                f"of {len(self.moments):,} images {self.fitted:,} are not of the proportions of "
                f"{height} x {width} and were {FITTED[how.fit]} (fit: {how.fit})"
            )
        if self.brightest is not None and self.brightest < _DIM:
            levels = int(self.brightest * 256) + 1
            reading.warnings.append(
                f"the brightest pixel of more than 8 bits reaches {self.brightest:.2%} of its "
                f"range: {levels} of 256 levels are left; scale the files to their range"
            )


def digest_of(image: Encoded) -> bytes:
    """Of an image's content, 32 bytes; zeros where it cannot be read, which decoding tells."""
    try:
        return hashlib.sha256(image.read()).digest()
    except OSError:
        return bytes(32)


def read_unchanged(image: Encoded, digest: bytes) -> bytes:
    """An image's content. Raises ValueError where it is gone or not what it was."""
    try:
        content = image.read()
    except OSError as error:
        raise ValueError(f"{image} cannot be read as an image: {error}") from error
    if any(digest) and hashlib.sha256(content).digest() != digest:
        raise ChangedError(
            f"{image} has changed since the data set was read: put it back, or start again"
        )
    return content


class ChangedError(ValueError):
    """An image that is not what it was."""


@dataclass
class _One:
    """An image, fitted, and what is noted of it; `shape`: of the whole of it."""

    pixels: Pixels
    moments: NDArray[np.int64]
    more_frames: bool
    brightest: float | None
    shape: Size


def _opened(how: Decoding, image: Encoded, digest: bytes) -> Decoded | str:
    """An image before it is fitted; the reason, for one that cannot be read."""
    try:
        content = read_unchanged(image, digest)
    except ChangedError:
        raise
    except ValueError as error:
        return str(error)
    try:
        return how.opened(content, image.ending)
    except ValueError as error:
        return f"{image} cannot be read as an image: {error}"


def _decoded(how: Decoding, given: Sequence[tuple[Encoded, bytes]]) -> Iterator[_One | str]:
    """Images; the reason, for one that cannot be read.

    Several are opened, then fitted, then counted: a step takes a fifth less time where the one
    before was of its own code, which the processor still holds.
    """
    left = deque(given)
    while left:
        some: list[Decoded | str] = []
        pixels = 0
        while left and pixels < _TOGETHER:
            some.append(made := _opened(how, *left.popleft()))
            pixels += 0 if isinstance(made, str) else made.size
        fitted = [one if isinstance(one, str) else (one, how.fitted(one)) for one in some]
        for one in fitted:
            yield one if isinstance(one, str) else _noted(*one)


def _noted(made: Decoded, pixels: Pixels) -> _One:
    return _One(pixels, _moments(pixels), made.more_frames, made.brightest, made.shape)


def _moments(pixels: Pixels) -> NDArray[np.int64]:
    found = np.zeros((len(pixels), 2))
    every = pixels.reshape(len(pixels), -1)
    for part in np.split(every, range(_PART, every.shape[1], _PART), axis=1):
        count = part.shape[1]
        rows = np.empty((len(pixels), -(-count // _EXACT), _EXACT), np.float32)
        numbers = rows.reshape(len(pixels), -1)
        numbers[:, :count], numbers[:, count:] = part, 0
        found[:, 0] += np.vecdot(rows, _ONES).sum(1, dtype=np.float64)
        found[:, 1] += np.vecdot(rows, rows).sum(1, dtype=np.float64)
    return np.column_stack([found, every.min(1), every.max(1)]).astype(np.int64)


@dataclass
class _Gathered:
    more_frames: int = 0
    brightest: float | None = None
    fitted: int = 0
    unreadable: list[str] = field(default_factory=list)


def decode_all(
    images: Sequence[Encoded],
    digests: Sequence[bytes],
    how: Decoding,
    workers: int,
    keep: Callable[[Pixels], object],
) -> About:
    """Decodes a set on `workers` threads; `keep` gets each image's pixels, in order.

    Raises ValueError for images that cannot be read, all of them named, for images of several
    sizes where none is asked for, and for one whose content is not that of its digest.
    """
    found = _Gathered()
    # Made at once: an image's few numbers, kept each by itself, would stand in the memory that the
    # next images need in one piece, and the process would grow by 45 KB a photo.
    moments: NDArray[np.int64] = np.empty((len(images), 0, 4), np.int64)
    first: tuple[Encoded, tuple[int, ...]] | None = None
    given = list(zip(images, digests, strict=True))
    # Each thread fits photos of its own: torch's threads beside them took a third more time.
    with threads_of_torch(1):
        decoded = in_order(partial(_decoded, how), given, workers, "decoding images")
        for at, (image, one) in enumerate(zip(images, decoded, strict=True)):
            if isinstance(one, str):
                found.unreadable.append(one)
                continue
            shape = one.pixels.shape
            first = first or (image, shape)
            if shape != first[1]:
                raise ValueError(
                    f"{image} has {shape[1:]} pixels, the first image, {first[0]}, {first[1][1:]}; "
                    "set resize to bring all to one size"
                )
            found.more_frames += one.more_frames
            if one.brightest is not None:
                found.brightest = max(one.brightest, found.brightest or 0.0)
            found.fitted += how.size is not None and not is_shaped(one.shape, how.size)
            if moments.shape[1:] != one.moments.shape:  # of the first
                moments = np.empty((len(images), *one.moments.shape), np.int64)
            moments[at] = one.moments
            if not found.unreadable:
                keep(one.pixels)
    if found.unreadable:
        told, more = found.unreadable[:_NAMED], len(found.unreadable) - _NAMED
        rest = [f"and {more} more"] if more > 0 else []
        raise ValueError("\n  ".join(["replace or remove:", *told, *rest]))
    return About(moments, found.more_frames, found.brightest, found.fitted)
