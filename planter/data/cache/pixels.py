"""Where the pixels of a data set are: in a file that is mapped into memory, or nowhere until they
are asked for."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planter.data.cache.decoding import Decoding, read_unchanged
from planter.data.cache.parallel import cores
from planter.data.cache.written import written
from planter.data.encoded import Encoded

PIXELS = "pixels.npy"
_AHEAD = 2
"""Batches that are decoded before they are asked for."""


class Remembered:
    """What was computed of a set, in small files beside it, if it has a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def value(self, key: str, make: Callable[[], str]) -> str:
        """What `make` gives, or gave when it was asked for under this key."""
        if self.folder is None:
            return make()
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        with suppress(OSError, ValueError):
            return str(json.loads(file.read_text(encoding="utf-8")))
        made = make()
        with suppress(OSError), written(file) as new:
            new.write(json.dumps(made).encode())
        return made


class MappedPixels:
    """The pixels of a set `[n, channels, height, width]` in a file, of which the system keeps in
    memory what is used and there is room for. Between processes its path alone travels."""

    def __init__(self, folder: Path, moments: NDArray[np.int64]) -> None:
        self.moments = moments
        self._folder = folder
        self._open()

    def _open(self) -> None:
        mapped = np.load(self._folder / PIXELS, mmap_mode="r")
        with warnings.catch_warnings():
            # Nothing writes to raw images.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._pixels = torch.from_numpy(mapped)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self._pixels.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self._pixels.dtype

    @property
    def remembered(self) -> Remembered:
        return Remembered(self._folder)

    def take(self, rows: Tensor) -> Tensor:
        """The images at `rows` `[batch]`."""
        return self._pixels.index_select(0, rows)

    def announce(self, order: Sequence[Tensor]) -> None:
        """The system reads what is asked for."""

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "moments": self.moments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()


class StreamedPixels:
    """The pixels of a set whose files are decoded as its images are asked for, on threads; those of
    batches that were announced a few batches before."""

    def __init__(
        self,
        images: Sequence[Encoded],
        digests: Sequence[bytes],
        how: Decoding,
        shape: tuple[int, int, int],
        moments: NDArray[np.int64],
        folder: Path | None,
        workers: int | None,
    ) -> None:
        self.shape, self.moments, self.dtype = shape, moments, torch.uint8
        self.remembered = Remembered(folder)
        self._images, self._digests, self._how = images, digests, how
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._order: list[Tensor] = []
        self._begun: list[list[Future[NDArray[np.uint8]]]] = []

    def take(self, rows: Tensor) -> Tensor:
        """The images at `rows` `[batch]`. Raises ValueError, with the place of the image, for one
        that is gone, or is not what it was when the set was opened."""
        if self._order and rows is self._order[0]:
            while len(self._begun) < min(1 + _AHEAD, len(self._order)):
                self._begun.append(self._begin(self._order[len(self._begun)]))
            self._order.pop(0)
            coming = self._begun.pop(0)
        else:
            coming = self._begin(rows)
        try:
            made = [one.result() for one in coming]
        except BaseException:
            for one in coming:
                one.cancel()
            self.announce([])
            raise
        return torch.from_numpy(np.stack(made)) if made else torch.empty(0, *self.shape).byte()

    def announce(self, order: Sequence[Tensor]) -> None:
        """The batches that will be asked for, by the very tensors; in place of those before."""
        for batch in self._begun:
            for one in batch:
                one.cancel()
        self._order, self._begun = list(order), []

    def _begin(self, rows: Tensor) -> list[Future[NDArray[np.uint8]]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers or cores(), "planter-decoding")
        return [self._pool.submit(self._decode, row) for row in rows.tolist()]

    def _decode(self, row: int) -> NDArray[np.uint8]:
        image = self._images[row]
        content = read_unchanged(image, self._digests[row])
        return self._how.decode(content, image.ending)[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_order": [], "_begun": []}
