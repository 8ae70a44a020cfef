"""One image file as a viewer shows it: uint8 RGB, upright, on white. The rules: docs/data.md."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

BACKGROUND = 255
"""What transparent pixels are composed on, in each of red, green and blue: white."""
_ORIENTATION = 0x0112
_TURNING = (5, 6, 7, 8)
"""Orientations by which height and width change places."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF
_NO_PIXELS = {
    "BUFR", "GRIB", "HDF5", "MPEG", "WMF",  # Pillow knows the file, but not how to decode it
    "EPS",  # is drawn by another program
    "FITS", "MCIDAS", "SPIDER",  # measurements: Pillow leaves out their zero point and scale
    "IPTC", "XVTHUMB",
}  # fmt: skip

Pixels = NDArray[np.uint8]
Needed = Callable[[tuple[int, int]], tuple[int, int] | None]
"""The height and width that an image of a height and width is needed in at least; None for all."""


@dataclass(frozen=True)
class Decoded:
    """An image, `shown` as Pillow's where it was plain RGB, to spare copies, or as pixels; whether
    its file holds more frames than the one read; for pixels of more than 8 bits the largest as a
    share of their range, else None; its height and width, of which a JPEG may have been decoded at
    a half, a quarter or an eighth."""

    shown: Pixels | Image.Image
    more_frames: bool
    brightest: float | None
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """Pixels that were decoded."""
        if isinstance(self.shown, Image.Image):
            return self.shown.width * self.shown.height
        return int(self.shown.shape[0] * self.shown.shape[1])

    @property
    def pixels(self) -> Pixels:
        """`[height, width, 3]`."""
        return np.array(self.shown) if isinstance(self.shown, Image.Image) else self.shown


@functools.cache
def readable() -> dict[str, str]:
    """The endings of the image files that the Pillow installed here reads, and their formats."""
    every = Image.registered_extensions()
    return {
        ending: name
        for ending, name in every.items()
        if name in Image.OPEN and name not in _NO_PIXELS
    }


@functools.cache
def _tried(ending: str) -> list[str]:
    """The formats that a file with that ending may have."""
    own = readable().get(ending)
    # Formats without a signature take nearly anything for theirs: only files named so are tried.
    signed = [name for name in Image.OPEN if name not in _NO_PIXELS and Image.OPEN[name][1]]
    return [own, *signed] if own else signed


def decode(file: Path) -> Decoded:
    """The image in a file, whatever format its ending says: the content decides.

    Raises ValueError, with the reason, for a file that holds no image, is damaged, or has pixels
    that cannot be scaled by the rule.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(str(error)) from error
    return decode_bytes(content, file.suffix)


def decode_bytes(content: bytes, ending: str, needed: Needed | None = None) -> Decoded:
    """`decode` of what a file with that ending holds; a JPEG that is at least twice as large as
    `needed` at a smaller scale, which is faster."""
    formats = _tried(ending.lower())
    try:
        # Of a path, Pillow maps uncompressed TIFFs into memory by the size they have once turned.
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return decoded(image, needed)
    except UnidentifiedImageError:
        raise ValueError("its content is of no format that Pillow reads here") from None
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        raise ValueError(str(error) or type(error).__name__) from error


def decoded(image: Image.Image, needed: Needed | None = None) -> Decoded:
    """`decode` of an open image. Raises what Pillow does, and ValueError for pixels that cannot be
    scaled."""
    whole = image.size
    if needed is not None and image.format == "JPEG":
        _draft(image, needed)
    raw = _raw_mode(image)  # gone once the pixels are there
    image.load()
    orientation = _orientation(image)
    more_frames = bool(getattr(image, "is_animated", False))
    scaled = image.format == "JPEG" and image.size != whole
    if image.mode == "RGB" and orientation == 1 and "transparency" not in image.info:
        return Decoded(image, more_frames, None, (whole if scaled else image.size)[::-1])
    brightest = None
    if image.mode.startswith("I") or image.mode == "F":
        deep, full = _deep(image, raw)
        brightest = float(deep.max() / full)
        grey = np.rint(deep * 255) if full == 1 else deep // ((full + 1) // 256)
        # Pillow heeds it for 8 bits and less.
        if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
            grey = 255 - grey
        shown = _grey(grey.astype(np.uint8))
        key = image.info.get("transparency")
        if isinstance(key, int) and image.mode != "F":
            shown = _compose(shown, np.where(deep == key, 0, 255))
    else:
        shown = _shown(image, raw)
    upright = np.ascontiguousarray(_upright(shown, orientation))
    shape = _turned(whole, orientation) if scaled else (upright.shape[0], upright.shape[1])
    return Decoded(upright, more_frames, brightest, shape)


def _draft(image: Image.Image, needed: Needed) -> None:
    """Has the decoder scale a JPEG down as it decodes, to no less than it is needed in."""
    orientation = _orientation(image)
    least = needed(_turned(image.size, orientation))
    if least is not None:
        image.draft(image.mode, least if orientation in _TURNING else least[::-1])


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width, once upright, of an image of a width and a height."""
    return size if orientation in _TURNING else size[::-1]


def _raw_mode(image: Image.Image) -> str:
    """How the file holds its pixels, in Pillow's words ("RGB;16B"); empty where it does not say."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _tag(image: Image.Image, number: int) -> Any:
    tags = getattr(image, "tag_v2", None)
    return tags.get(number) if tags is not None else None


def _deep(image: Image.Image, raw: str) -> tuple[NDArray[Any], int]:
    """Grey pixels of more than 8 bits `[height, width]`, and what white is among them."""
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # also where one is no number
            raise ValueError(
                f"float pixels go from 0 (black) to 1 (white), got {low:g} to {high:g}; save it "
                "with 8 or 16 bits, or scaled"
            )
        return values.astype(np.float64), 1
    bits = 16
    if image.mode == "I":
        # 16 bits arrive in 32 from PGM and, with some versions of Pillow, from PNG.
        if image.format != "PPM" and (not raw.startswith("I;16") or raw.endswith("S")):
            raise ValueError(
                "integer pixels of 32 bits, or with a sign, have no white of their own; save it "
                "with 8 or 16 bits"
            )
    elif (told := _tag(image, _BITS_PER_SAMPLE)) is not None:
        bits = int(told[0]) if isinstance(told, tuple) else int(told)
    return values.astype(np.int64), 2**bits - 1


def _shown(image: Image.Image, raw: str) -> Pixels:
    """RGB pixels of an image of 8 bits a channel, or of more that Pillow has made 8 of, on the
    background."""
    mode = image.mode
    if mode in ("La", "RGBa"):  # colours that are multiplied with their alpha already
        *colours, alpha = (np.asarray(band, np.int64) for band in image.split())
        colours = colours * 3 if mode == "La" else colours
        hidden = BACKGROUND * (255 - alpha)
        return np.stack([c + (hidden + 127) // 255 for c in colours], -1).clip(0, 255).astype("u1")
    if mode in ("LA", "PA", "P", "RGBA"):
        rgba = np.asarray(image if mode == "RGBA" else image.convert("RGBA"))
        return _compose(rgba[..., :3], rgba[..., 3])
    key = image.info.get("transparency")
    rgb: Pixels = np.array(image.convert("RGB") if mode != "RGB" else image)
    if mode not in ("1", "L", "RGB") or not isinstance(key, tuple if mode == "RGB" else int):
        return rgb
    if ";16" in raw:
        raise ValueError(
            "16-bit colours with a transparent one cannot be told apart once they have 8 bits; "
            "save it with an alpha channel"
        )
    if mode == "1":
        key = 255 if key else 0
    elif raw in ("L;2", "L;4") and isinstance(
        key, int
    ):  # the key counts in the file's bits, the pixels are scaled
        key = key * {"L;2": 85, "L;4": 17}[raw]
    return _compose(rgb, np.where((rgb == np.array(key)).all(-1), 0, 255))


def _compose(colours: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    """Colours `[height, width, 3]` over the background by their alpha `[height, width]`, 0..255,
    rounded to the nearest."""
    a = alpha.astype(np.int64)[..., None]
    mixed = (colours.astype(np.int64) * a + BACKGROUND * (255 - a) + 127) // 255
    return mixed.astype(np.uint8)


def _grey(values: Pixels) -> Pixels:
    return np.repeat(values[..., None], 3, axis=-1)


def _orientation(image: Image.Image) -> int:
    """The orientation tag that is left after loading: Pillow turns TIFF files itself."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata; the pixels are there
        return 1
    return found if isinstance(found, int) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels `[height, width, 3]` turned and mirrored as an EXIF orientation (1 to 8) says."""
    turned = pixels.transpose(1, 0, 2) if orientation in _TURNING else pixels
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return turned[::down, ::across]
