"""A set of encoded images, decoded: from the cache, into it, or as its images are asked for."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from planter.data.cache.contents import digests_of
from planter.data.cache.decoding import About, Decoding, decode_all, read_unchanged
from planter.data.cache.parallel import cores
from planter.data.cache.pixels import PIXELS, MappedPixels, StreamedPixels
from planter.data.cache.place import ABOUT, cache_folder, make_room
from planter.data.cache.written import synced_meanwhile, written
from planter.data.encoded import Encoded
from planter.machine.memory import available_bytes

log = logging.getLogger(__name__)
_MOMENTS = "moments.npy"
_OF_MEMORY = 0.25
"""Share of the memory that is left which a set may take where it cannot be cached."""


@dataclass(frozen=True)
class DecodedSet:
    """Pixels of a set, and what was noted while they were decoded."""

    pixels: MappedPixels | StreamedPixels | Tensor
    about: About


def decoded_set(
    images: Sequence[Encoded], how: Decoding, *, cache_gb: float, workers: int | None = None
) -> DecodedSet:
    """The images, decoded by `workers` threads, by default one for each core: once, into the cache,
    or each time they are asked for where all would take more than `cache_gb` (1e9 bytes).

    A cache that cannot be written to is told with a warning, and the images are held in memory, or
    streamed where they would take a quarter of what is left of it. Raises ValueError for images
    that cannot be read, with their names.
    """
    threads = workers or cores()
    cache = cache_folder()
    digests = digests_of(images, cache, threads)
    shape = _shape(images, digests, how)
    needed = math.prod(shape) * len(images)
    streams = needed > cache_gb * 1e9
    try:
        kept = None if streams else shape
        folder = _filled(images, digests, how, cache, threads, kept, cache_gb)
        about = _about(folder)
        if (folder / PIXELS).is_file():
            return DecodedSet(MappedPixels(folder, about.moments), about)
        return DecodedSet(
            StreamedPixels(images, digests, how, shape, about.moments, folder, workers), about
        )
    except OSError as error:
        log.warning(
            "%s cannot hold decoded images (%s): every command decodes them anew; free some space, "
            "or set PLANTER_CACHE to a folder on another disk",
            cache,
            error.strerror or error,
        )
    if streams or needed > _OF_MEMORY * available_bytes():
        about = decode_all(images, digests, how, threads, lambda pixels: None)
        return DecodedSet(
            StreamedPixels(images, digests, how, shape, about.moments, None, workers), about
        )
    held = np.empty((len(images), *shape), np.uint8)
    rows = iter(held)
    about = decode_all(images, digests, how, threads, lambda one: np.copyto(next(rows), one))
    return DecodedSet(torch.from_numpy(held), about)


def _filled(
    images: Sequence[Encoded],
    digests: Sequence[bytes],
    how: Decoding,
    cache: Path,
    threads: int,
    kept: tuple[int, int, int] | None,
    cache_gb: float,
) -> Path:
    """The folder of a set, with pixels of the shape that is to be `kept`, if one is; it is filled
    where no process has done so. Raises OSError."""
    told = json.dumps(how.key()).encode() + b"".join(digests)
    folder = cache / "sets" / hashlib.sha256(told).hexdigest()[:32]
    if not _is_whole(folder, pixels=kept is not None):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not _is_whole(folder, pixels=kept is not None):
                folder.mkdir(parents=True, exist_ok=True)  # dropped while this process waited
                _fill(images, digests, how, folder, threads, kept, cache_gb)
    with suppress(OSError):
        os.utime(folder / ABOUT)  # when it was used last
    return folder


def _is_whole(folder: Path, *, pixels: bool) -> bool:
    return (folder / ABOUT).is_file() and (not pixels or (folder / PIXELS).is_file())


def _fill(
    images: Sequence[Encoded],
    digests: Sequence[bytes],
    how: Decoding,
    folder: Path,
    threads: int,
    kept: tuple[int, int, int] | None,
    cache_gb: float,
) -> None:
    for left in folder.glob("*.new"):
        left.unlink(missing_ok=True)  # of a writer that was killed
    if kept is None:
        about = decode_all(images, digests, how, threads, lambda pixels: None)
    else:
        shape = (len(images), *kept)
        make_room(folder.parents[1], math.prod(shape), int(cache_gb * 1e9))
        with written(folder / PIXELS) as new:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(new, header)
            with synced_meanwhile(new) as write:
                about = decode_all(images, digests, how, threads, lambda one: write(one.data))
    facts = {name: value for name, value in vars(about).items() if name != "moments"}
    with written(folder / _MOMENTS) as new:
        np.save(new, about.moments)
    with written(folder / ABOUT) as new:
        new.write(json.dumps(facts).encode())


def _about(folder: Path) -> About:
    facts = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return About(np.load(folder / _MOMENTS), **facts)


def _shape(
    images: Sequence[Encoded], digests: Sequence[bytes], how: Decoding
) -> tuple[int, int, int]:
    """Of one image; of the first that can be read where none is asked for. Others that cannot be
    are told when all are decoded."""
    if how.size is not None:
        return 3, *how.size
    for image, digest in zip(images, digests, strict=True):
        with suppress(ValueError):
            pixels, _ = how.decode(read_unchanged(image, digest), image.ending)
            channels, height, width = pixels.shape
            return channels, height, width
    return 3, 0, 0
