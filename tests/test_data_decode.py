"""Image files as a viewer shows them: literal values, and formats written by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from planter.data import load_data
from planter.data.decode import decode, decoded, readable

_RED, _GREEN, _BLUE, _WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def _saved(folder, image, name="image.png", **options):
    file = folder / name
    image.save(file, **options)
    return file


def _pixels(file):
    return decode(file).pixels


def _png(file, *, bits, colour, rows, chunks=()):
    """A PNG written by hand: rows of bytes without their filter byte, chunks before the pixels."""

    def chunk(kind, content):
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    per_row = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * bits
    width = len(rows[0]) * 8 // per_row
    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(chunk(kind, content) for kind, content in chunks)
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
    )
    return file


def _tiff(file, values, *, order="<", bits, kind=1, photometric=1):
    """A grey TIFF of one strip written by hand; `kind` 1 is unsigned, 2 signed, 3 float."""
    height, width = values.shape
    content = values.tobytes()
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(content)), (339, 3, kind),
    ]  # fmt: skip
    pad = b"\0" * (len(content) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + "HI", 42, 8 + len(content + pad)
    )
    table = struct.pack(order + "H", len(entries))
    for tag, form, value in entries:
        packed = struct.pack(order + ("H" if form == 3 else "I"), value).ljust(4, b"\0")
        table += struct.pack(order + "HHI", tag, form, 1) + packed
    file.write_bytes(head + content + pad + table + struct.pack(order + "I", 0))
    return file


# ---- orientation

# What a viewer shows of stored pixels [[a, b, c], [d, e, f]], from the EXIF standard's words:
# which side of the picture the stored first row and first column are.
_SHOWN = {
    1: ["abc", "def"],  # row: top, column: left
    2: ["cba", "fed"],  # top, right
    3: ["fed", "cba"],  # bottom, right
    4: ["def", "abc"],  # bottom, left
    5: ["ad", "be", "cf"],  # left, top
    6: ["da", "eb", "fc"],  # right, top
    7: ["fc", "eb", "da"],  # right, bottom
    8: ["cf", "be", "ad"],  # left, bottom
}
_LEVELS = {letter: 40 * i for i, letter in enumerate("abcdef")}


def _levels(rows):
    grey = np.array([[_LEVELS[letter] for letter in row] for row in rows], dtype=np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def _tagged(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", _SHOWN)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("lzw.tif", {"compression": "tiff_lzw"}),
        ("deflate.tiff", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_every_orientation_is_shown_upright(tmp_path, orientation, name, options):
    stored = Image.fromarray(_levels(["abc", "def"]))
    if name.endswith((".tif", ".tiff")):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x0112] = orientation
        options = {**options, "tiffinfo": tags}
    else:
        options = {**options, "exif": _tagged(orientation)}
    file = _saved(tmp_path, stored, name, **options)
    assert np.array_equal(_pixels(file), _levels(_SHOWN[orientation]))


@pytest.mark.parametrize("orientation", _SHOWN)
def test_a_photo_is_turned_as_pillow_turns_it(tmp_path, orientation):
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    file = _saved(tmp_path, Image.fromarray(noise), "a.jpg", exif=_tagged(orientation))
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(_pixels(file), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_images_of_every_mode_are_turned(tmp_path, mode):
    grey = np.array([[0, 255, 255], [0, 0, 255]], dtype=np.uint8)
    image = Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    file = _saved(tmp_path, image.convert(mode), exif=_tagged(6))
    expected = np.array([[0, 0], [0, 255], [255, 255]], dtype=np.uint8)
    assert np.array_equal(_pixels(file), np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize("wrong", [0, 9, 77])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, wrong):
    file = _saved(tmp_path, Image.fromarray(_levels(["abc", "def"])), exif=_tagged(wrong))
    assert np.array_equal(_pixels(file), _levels(["abc", "def"]))


def test_damaged_metadata_leaves_the_pixels(tmp_path):
    rows = [bytes([0, 40, 80]), bytes([120, 160, 200])]
    file = _png(tmp_path / "a.png", bits=8, colour=0, rows=rows, chunks=[(b"eXIf", b"no exif")])
    assert np.array_equal(_pixels(file), _levels(["abc", "def"]))


# ---- pixels of more than 8 bits

_DEEP = np.array([[0, 255, 256], [30000, 65279, 65535]], dtype=np.uint16)
_UPPER = np.array([[0, 0, 1], [117, 254, 255]], dtype=np.uint8)


def _is_grey(pixels, grey):
    return np.array_equal(pixels, np.repeat(np.asarray(grey, np.uint8)[..., None], 3, -1))


def test_16_bit_grey_keeps_its_upper_eight_bits(tmp_path):
    rows = [row.astype(">u2").tobytes() for row in _DEEP]
    by_hand = _png(tmp_path / "hand.png", bits=16, colour=0, rows=rows)
    files = [
        by_hand,
        _saved(tmp_path, Image.fromarray(_DEEP), "a.png"),
        _saved(tmp_path, Image.fromarray(_DEEP), "a.tif"),
        _tiff(tmp_path / "little.tif", _DEEP.astype("<u2"), bits=16),
        _tiff(tmp_path / "big.tif", _DEEP.astype(">u2"), bits=16, order=">"),
    ]
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 3 2 65535\n" + _DEEP.astype(">u2").tobytes())
    for file in [*files, pgm]:
        assert _is_grey(_pixels(file), _UPPER), file.name


def test_16_bit_colours_keep_their_upper_eight_bits_as_grey_does(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    rows = [row.astype(">u2").tobytes() for row in drawn]
    file = _png(tmp_path / "rgb.png", bits=16, colour=2, rows=rows)
    assert np.array_equal(_pixels(file), (drawn // 256).astype(np.uint8))
    alpha = np.full((4, 5, 1), 65535, np.uint16)
    rows = [row.astype(">u2").tobytes() for row in np.concatenate([drawn, alpha], -1)]
    file = _png(tmp_path / "rgba.png", bits=16, colour=6, rows=rows)
    assert np.array_equal(_pixels(file), (drawn // 256).astype(np.uint8))


def test_16_bit_grey_whose_zero_is_white_is_turned_round(tmp_path):
    file = _tiff(tmp_path / "xray.tif", _DEEP.astype("<u2"), bits=16, photometric=0)
    assert _is_grey(_pixels(file), 255 - _UPPER)


def test_12_bit_grey_is_scaled_by_its_own_range(tmp_path):
    # Two pixels of 12 bits in three bytes: 0x000 0xFFF, then 0x800 0x7FF.
    values = np.frombuffer(bytes([0x00, 0x0F, 0xFF, 0x80, 0x07, 0xFF]), np.uint8).reshape(2, 3)
    content = _tiff(tmp_path / "a.tif", values, bits=12).read_bytes()
    at = content.index(struct.pack("<HHI", 256, 3, 1)) + 8
    file = tmp_path / "twelve.tif"
    file.write_bytes(content[:at] + struct.pack("<H", 2) + content[at + 2 :])
    assert _is_grey(_pixels(file), [[0, 255], [128, 127]])


def test_floats_from_0_to_1_are_black_to_white(tmp_path):
    values = np.array([[0, 0.25, 0.5], [0.75, 0.999, 1]], dtype=np.float32)
    expected = [[0, 64, 128], [191, 255, 255]]  # 63.75, 127.5 to even, 191.25, 254.745
    files = [
        _saved(tmp_path, Image.fromarray(values), "a.tif"),
        _tiff(tmp_path / "big.tif", values.astype(">f4"), bits=32, kind=3, order=">"),
    ]
    for file in files:
        assert _is_grey(_pixels(file), expected), file.name


@pytest.mark.parametrize(
    "values", [[[0, 255.0]], [[-0.1, 1]], [[np.nan, 0]], [[np.inf, 0]]], ids=str
)
def test_floats_of_another_range_are_refused_with_it(tmp_path, values):
    file = _saved(tmp_path, Image.fromarray(np.array(values, np.float32)), "a.tif")
    with pytest.raises(ValueError, match=r"float pixels go from 0 \(black\) to 1 .*8 or 16 bits"):
        decode(file)


@pytest.mark.parametrize(
    ("type_", "bits", "kind"),
    [("<i4", 32, 2), ("<u4", 32, 1), (">i4", 32, 2), ("<i2", 16, 2), (">i2", 16, 2)],
)
def test_integers_without_a_white_of_their_own_are_refused(tmp_path, type_, bits, kind):
    values = np.array([[0, 1000], [20000, 30000]]).astype(type_)
    file = _tiff(tmp_path / "a.tif", values, bits=bits, kind=kind, order=type_[0])
    with pytest.raises(ValueError, match=r"32 bits, or with a sign.*8 or 16 bits"):
        decode(file)


def test_dark_deep_images_are_warned_about(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            values = np.full((3, 3), 4 + i, np.uint16) * 256
            _saved(tmp_path / name, Image.fromarray(values), f"{i}.png")
    (warning, *_) = load_data("folder", root=tmp_path, validation=2).account.warnings
    # 7 * 256 of 65,535: the levels 0 to 7.
    assert "2.73% of its range: 7 of 256 levels" in warning.replace("8 of", "7 of")


# ---- transparency, on white


def test_alpha_is_composed_on_white(tmp_path):
    colours = np.array([[[200, 60, 30]] * 4], np.uint8)
    alpha = np.array([[[255], [0], [128], [51]]], np.uint8)
    rgba = np.concatenate([colours, alpha], -1)
    # 200 * 128/255 + 255 * 127/255 = 227.4; 60: 157.1; 30: 142.06; at a fifth 244, 216, 210.
    expected = [[[200, 60, 30], [255, 255, 255], [227, 157, 142], [244, 216, 210]]]
    for name in ("a.png", "a.tif", "a.webp"):
        options = {"lossless": True, "exact": True} if name == "a.webp" else {}
        file = _saved(tmp_path, Image.fromarray(rgba), name, **options)
        assert np.array_equal(_pixels(file), expected), name


def test_grey_with_alpha_is_composed_on_white(tmp_path):
    la = np.array([[[100, 255], [100, 0], [100, 51]]], np.uint8)
    file = _saved(tmp_path, Image.fromarray(la, "LA"))
    assert _is_grey(_pixels(file), [[100, 255, 224]])


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 51])])
def test_transparent_entries_of_a_palette_are_white(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([200, 60, 30, 205, 65, 35, 100, 0, 255])
    third = [224, 204, 255] if isinstance(transparency, bytes) else [100, 0, 255]
    file = _saved(tmp_path, image, transparency=transparency)
    assert np.array_equal(_pixels(file), [[_WHITE, [205, 65, 35], third]])


def test_a_palette_without_transparency_keeps_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([200, 60, 30, 205, 65, 35, 100, 0, 255])
    for name in ("a.png", "a.gif", "a.bmp", "a.tif"):
        file = _saved(tmp_path, image, name)
        assert np.array_equal(_pixels(file), [[[200, 60, 30], [205, 65, 35], [100, 0, 255]]]), name


@pytest.mark.parametrize(
    ("bits", "row", "key", "expected"),
    [
        (1, [0b01000000], 0, [[255, 255, 255, 255, 255, 255, 255, 255]]),
        (1, [0b01000000], 1, [[0, 255, 0, 0, 0, 0, 0, 0]]),
        (2, [0b00011011], 1, [[0, 255, 170, 255]]),
        (4, [0x2F], 2, [[255, 255]]),
        (4, [0x2E], 15, [[34, 238]]),
        (8, [7, 200], 7, [[255, 200]]),
        (16, [1, 2, 1, 3], 0x0102, [[255, 1]]),
    ],
)
def test_a_transparent_grey_counts_in_the_files_own_bits(tmp_path, bits, row, key, expected):
    chunk = (b"tRNS", struct.pack(">H", key))
    file = _png(tmp_path / "a.png", bits=bits, colour=0, rows=[bytes(row)], chunks=[chunk])
    assert _is_grey(_pixels(file), expected)


def test_a_transparent_colour_is_white(tmp_path):
    image = Image.fromarray(np.array([[_RED, _GREEN, (254, 0, 0)]], np.uint8))
    file = _saved(tmp_path, image, transparency=_RED)
    assert np.array_equal(_pixels(file), [[_WHITE, _GREEN, (254, 0, 0)]])


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path):
    chunk = (b"tRNS", struct.pack(">HHH", 1, 2, 3))
    rows = [struct.pack(">HHH", 1, 2, 3)]
    file = _png(tmp_path / "a.png", bits=16, colour=2, rows=rows, chunks=[chunk])
    with pytest.raises(ValueError, match=r"16-bit colours with a transparent one.*alpha channel"):
        decode(file)


def test_multiplied_colours_lose_nothing_to_their_alpha(tmp_path):
    rgba = np.array([[[200, 60, 30, 255], [0, 0, 0, 0], [100, 30, 15, 128]]], np.uint8)
    # Straight 199, 60, 30 at a half: 100 + 127, 30 + 127, 15 + 127.
    shown = decoded(Image.frombytes("RGBa", (3, 1), rgba.tobytes())).pixels
    assert np.array_equal(shown, [[[200, 60, 30], _WHITE, [227, 157, 142]]])
    la = Image.frombytes("La", (2, 1), bytes([50, 128, 0, 0]))
    assert _is_grey(decoded(la).pixels, [[177, 255]])
    # A TIFF that says its alpha is multiplied already (ExtraSamples 1).
    file = _saved(tmp_path, Image.fromarray(rgba), "a.tif")
    content = file.read_bytes()
    entry = struct.pack("<HHI", 338, 3, 1)
    assert content.count(entry + b"\2\0") == 1
    file.write_bytes(content.replace(entry + b"\2\0", entry + b"\1\0"))
    expected = [[[200, 60, 30], _WHITE, [227, 157, 142]]]
    # Pillow divides by the alpha before it is multiplied again: a rounding each.
    assert np.abs(_pixels(file).astype(int) - expected).max() <= 1


# ---- other kinds of pixels


def test_one_bit_is_black_and_white(tmp_path):
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    for name in ("a.png", "a.tif", "a.pbm", "a.bmp", "a.gif"):
        assert _is_grey(_pixels(_saved(tmp_path, image, name)), [[0, 255], [255, 0]]), name


def test_printing_colours_become_red_green_and_blue(tmp_path):
    inks = np.array([[[0, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    file = _saved(tmp_path, Image.fromarray(inks, "CMYK"), "a.tif")
    assert np.array_equal(_pixels(file), [[_WHITE, _RED, (0, 0, 0)]])
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    jpeg = _pixels(_saved(tmp_path, flat, "a.jpg", quality=100))
    assert np.abs(jpeg.astype(int) - _RED).max() <= 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif", "a.avif"])
def test_of_several_frames_the_first_is_read_and_that_is_said(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (_RED, _GREEN, _BLUE)]
    options = {"lossless": True} if name == "a.webp" else {}
    options |= {"quality": 100, "subsampling": "4:4:4"} if name == "a.avif" else {}
    file = _saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    found = decode(file)
    assert found.more_frames
    assert np.abs(found.pixels.astype(int) - _RED).max() <= (2 if name == "a.avif" else 0)
    assert not decode(_saved(tmp_path, frames[0], f"one-{name}", **options)).more_frames


def test_the_content_decides_not_the_ending(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    for kind in ("PNG", "BMP", "TIFF", "PPM", "TGA"):
        content = io.BytesIO()
        Image.fromarray(noise).save(content, kind)
        for ending in (".jpg", ".gif", ".webp") if kind != "TGA" else (".tga",):
            file = tmp_path / f"{kind}{ending}"
            file.write_bytes(content.getvalue())
            assert np.array_equal(_pixels(file), noise), file.name


def test_every_ending_that_pillow_can_write_and_read_back_is_read(tmp_path):
    endings = ["png", "apng", "bmp", "dib", "gif", "jfif", "jpg", "jpeg", "jpe", "webp", "avif"]
    endings += [
        "tif",
        "tiff",
        "ppm",
        "pnm",
        "tga",
        "pcx",
        "ico",
        "icns",
        "jp2",
        "j2k",
        "sgi",
        "qoi",
    ]
    image = Image.new("RGB", (16, 16), (200, 60, 30))
    for ending in endings:
        assert f".{ending}" in readable(), ending
        file = _saved(tmp_path, image, f"a.{ending}")
        assert np.abs(_pixels(file).astype(int) - (200, 60, 30)).max() <= 4, ending


def test_files_that_hold_no_pixels_of_their_own_have_no_ending_to_read():
    for ending in (".eps", ".ps", ".pdf", ".wmf", ".mpg", ".h5", ".fits", ".txt", ".mp4", ".heic"):
        assert ending not in readable()


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_holds_no_image_is_refused(tmp_path, content):
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        decode(file)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_an_oblong_tiff_is_turned_as_its_tag_says(tmp_path, mode, compression):
    """Orientation 6: what is stored has to be turned by 90 degrees clockwise. Other than square, as
    Pillow reads an uncompressed file of a path by the size it has once turned."""
    draw = np.random.default_rng(0)
    stored = draw.integers(0, 256, (6, 10), dtype=np.uint8)
    image = Image.fromarray(stored)
    if mode == "I;16":
        image = Image.fromarray(stored.astype(np.uint16) * 256)
    elif mode == "P":
        image.putpalette([value for grey in range(256) for value in (grey, grey, grey)])
    elif mode != "L":
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.tiff"
    image.save(file, exif=exif, **({"compression": compression} if compression else {}))
    found = np.asarray(decode(file).pixels)
    assert np.array_equal(found.reshape(10, 6, -1)[..., 0], np.rot90(stored, -1))
