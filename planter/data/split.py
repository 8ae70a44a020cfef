"""Images with their labels as networks take them: one part of a data set, and all of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from planter.data.account import Account
from planter.data.cache.pixels import Remembered
from planter.data.fit import in_size
from planter.data.statistics import chunk_of
from planter.machine.memory import free_bytes


class Split(Protocol):
    """Images with their labels, held raw; batches of them are asked for by index, and normalised.

    Raw images `[n, channels, height, width]` are uint8 (0..255) or float32; `mean` and `std`
    `[channels, 1, 1]` are those that networks take them by, in 0..1 for uint8.
    """

    @property
    def labels(self) -> Tensor:
        """`[n]`, int64, of all images; on the device that batches come on."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def std(self) -> Tensor: ...

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one image."""

    @property
    def dtype(self) -> torch.dtype:
        """Of raw images."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor | slice) -> Tensor:
        """Raw images, those of an index `[batch]` or a range."""

    def normalise(self, images: Tensor) -> Tensor:
        """Network inputs from raw images."""

    def sample(self, index: Tensor | slice) -> Split:
        """Some of the images, with their labels."""

    def taken_by(self, mean: Tensor, std: Tensor, size: tuple[int, int] | None = None) -> Split:
        """The same images, normalised otherwise and, with a `size`, brought to that height and
        width when they are."""

    def to(self, device: str | torch.device) -> Split: ...

    def update(self, digest: Digest) -> None:
        """Feeds images and labels to a fingerprint."""


class Digest(Protocol):
    """A hash of the standard library at work."""

    def update(self, data: Any, /) -> None: ...


@runtime_checkable
class Announced(Protocol):
    """A split that likes to know which batches will be asked for."""

    def announce(self, order: Sequence[Tensor]) -> None:
        """Takes the indices of the batches to come, the very tensors that `batch` will get."""


def announce(split: Split, order: Sequence[Tensor]) -> None:
    """Tells a split that likes to know which batches will be asked for."""
    if isinstance(split, Announced):
        split.announce(order)


@dataclass(frozen=True)
class InMemorySplit:
    """A `Split` whose raw images are one tensor; networks take them in `size`, if one is given."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    size: tuple[int, int] | None = None

    @property
    def image(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, *(self.size or (height, width))

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> Tensor:
        # Whole images are copied: ten times as fast as torch's indexing of each value.
        if isinstance(index, Tensor):
            return self.images.index_select(0, index)
        return self.images[index]

    def normalise(self, images: Tensor) -> Tensor:
        return normalised(images, self.mean, self.std, self.size)

    def sample(self, index: Tensor | slice) -> Self:
        return replace(self, images=self.images[index], labels=self.labels[index])

    def taken_by(self, mean: Tensor, std: Tensor, size: tuple[int, int] | None = None) -> Self:
        return replace(self, mean=mean, std=std, size=size or self.size)

    def to(self, device: str | torch.device) -> Split:
        if self.images.device.type == "cpu" and not _has_room(device, self.images.nbytes):
            every = torch.arange(len(self))
            held = RowSplit(HeldPixels(self.images), every, self.labels, self.mean, self.std)
            return replace(held, size=self.size).to(device)
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def update(self, digest: Digest) -> None:
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)


class Pixels(Protocol):
    """Raw images `[n, channels, height, width]` that are not a tensor."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def remembered(self) -> Remembered: ...

    def take(self, rows: Tensor) -> Tensor:
        """The images at `rows` `[batch]`, in memory."""

    def announce(self, order: Sequence[Tensor]) -> None:
        """The rows that will be asked for next, the very tensors that `take` will get."""


@dataclass(frozen=True)
class HeldPixels:
    """Pixels in this process's memory, too many for a device."""

    images: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    @property
    def remembered(self) -> Remembered:
        return Remembered(None)

    def take(self, rows: Tensor) -> Tensor:
        return self.images.index_select(0, rows)

    def announce(self, order: Sequence[Tensor]) -> None:
        """They are there."""


@dataclass(frozen=True)
class RowSplit:
    """A `Split` of some rows `[n]` of pixels that lie on the host, or in files. Labels are on the
    device that batches come on."""

    pixels: Pixels
    rows: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    size: tuple[int, int] | None = None
    _announced: dict[int, tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def image(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape
        return channels, *(self.size or (height, width))

    @property
    def dtype(self) -> torch.dtype:
        return self.pixels.dtype

    @property
    def images(self) -> Tensor:
        """All raw images, read into memory."""
        return self.batch(slice(None))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor | slice) -> Tensor:
        known = None if isinstance(index, slice) else self._announced.get(id(index))
        rows = self._rows_at(index) if known is None else known[1]
        raw, device = self.pixels.take(rows), self.labels.device
        if device.type == "cuda":
            return raw.pin_memory().to(device, non_blocking=True)
        return raw.to(device)

    def _rows_at(self, index: Tensor | slice) -> Tensor:
        return self.rows[index if isinstance(index, slice) else index.cpu()]

    def announce(self, order: Sequence[Tensor]) -> None:
        self._announced.clear()
        if not order:
            return
        # One copy from the device: each would make it wait.
        every = self.rows[torch.cat(list(order)).cpu()]
        rows = torch.split(every, [len(index) for index in order])
        for index, some in zip(order, rows, strict=True):
            self._announced[id(index)] = index, some  # kept, so that no other gets its id
        self.pixels.announce(rows)

    def normalise(self, images: Tensor) -> Tensor:
        return normalised(images, self.mean, self.std, self.size)

    def sample(self, index: Tensor | slice) -> RowSplit:
        chosen = self._rows_at(index)
        return self._other(rows=chosen, labels=self.labels[index])

    def taken_by(self, mean: Tensor, std: Tensor, size: tuple[int, int] | None = None) -> RowSplit:
        return self._other(mean=mean, std=std, size=size or self.size)

    def _other(self, **changes: Any) -> RowSplit:
        return replace(self, **changes, _announced={})

    def to(self, device: str | torch.device) -> Split:
        """Batches on a device; all images there, where they take a quarter of its free memory at
        most."""
        if torch.device(device) == self.labels.device:
            return self
        labels, mean, std = (one.to(device) for one in (self.labels, self.mean, self.std))
        if torch.device(device).type == "cpu" or not _has_room(device, self.nbytes):
            return self._other(labels=labels, mean=mean, std=std)
        return InMemorySplit(self.images.to(device), labels, mean, std, self.size)

    @property
    def nbytes(self) -> int:
        """Of all raw images."""
        return len(self) * math.prod(self.pixels.shape) * self.dtype.itemsize

    def key(self) -> str:
        """What tells images and labels from others of the same pixels."""
        digest = hashlib.sha256()
        for tensor in (self.rows, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def update(self, digest: Digest) -> None:
        for part in torch.split(self.rows, chunk_of(self.pixels.shape)):
            digest.update(self.pixels.take(part).contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_announced": {}}


@dataclass(frozen=True)
class Data:
    """A data set ready for a study: train and validation come from its training data, test (None
    where there is none) is apart. Validation selects; test is for the report at the end.
    `account` says what was read to make it; None where that is not known."""

    train: Split
    validation: Split
    test: Split | None
    class_names: tuple[str, ...]
    account: Account | None = None

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one image."""
        return self.train.image

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the training and validation images and labels."""

        def made() -> str:
            digest = hashlib.sha256()
            for split in (self.train, self.validation):
                split.update(digest)
            return digest.hexdigest()[:16]

        train, held = self.train, self.validation
        if (
            isinstance(train, RowSplit)
            and isinstance(held, RowSplit)
            and train.pixels is held.pixels
        ):
            key = f"fingerprint {train.key()} {held.key()}"
            return train.pixels.remembered.value(key, made)
        return made()

    def to(self, device: str | torch.device) -> Data:
        test = self.test.to(device) if self.test is not None else None
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=test
        )


def normalised(images: Tensor, mean: Tensor, std: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Network inputs from raw images."""
    scaled = images.float()
    if images.dtype == torch.uint8:
        scaled.div_(255)
    # In place where the tensor is of this call: half of the time was new memory.
    taken = (scaled - mean).div_(std)
    return taken if size is None else in_size(taken, size)


def _has_room(device: str | torch.device, nbytes: int) -> bool:
    """Whether a device may hold so many bytes of images: the networks need room as well."""
    free = free_bytes(torch.device(device))
    return free is None or nbytes <= free // 4
