"""Formats of exported files in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from planter.export import int8, onnx_file, pt2_file, safetensors_file
from planter.export.check import Array, Run


@dataclass(frozen=True)
class Int8:
    """How a format quantises to 8 bits: `quantise(file, images, small)` writes a second file, with
    ranges from the images as the first takes them; `write_metadata` replaces what a file says of
    itself."""

    quantise: Callable[[Path, Array, Path], None]
    write_metadata: Callable[[Path, Mapping[str, str]], None]


@dataclass(frozen=True)
class Format:
    """How files of a format are made and run.

    `write(network, example, file, metadata)` writes a network in eval mode that takes batches of
    any size of images like the two of the example, and beside the file those with the endings
    `beside`. `load(file)` gives a function from images to logits, as numpy arrays. A process in
    which planter cannot be imported runs it to check the file: it is a function of a Python file
    that imports the standard library and numpy at its top, and anything else inside.

    `needs` are packages that may be missing, `install` is what installs them.
    """

    write: Callable[[nn.Module, Tensor, Path, Mapping[str, str]], None]
    load: Callable[[Path], Run]
    needs: tuple[str, ...] = ()
    install: str = "planter[export]"
    beside: tuple[str, ...] = ()
    int8: Int8 | None = None


FORMATS = {
    "onnx": Format(
        onnx_file.write,
        onnx_file.load,
        needs=("onnx", "onnxscript", "onnxruntime"),
        int8=Int8(int8.quantise, int8.write_metadata),
    ),
    "pt2": Format(pt2_file.write, pt2_file.load),
    "safetensors": Format(safetensors_file.write, safetensors_file.load, beside=(".py",)),
}
"""By the ending of a file, without its dot."""


def format_of(file: Path) -> str:
    """The format of a file's ending, its own or that of a file beside it. Raises ValueError for
    another one."""
    endings = {f".{kind}": kind for kind in FORMATS}
    endings |= {ending: kind for kind, format_ in FORMATS.items() for ending in format_.beside}
    if file.suffix not in endings:
        raise ValueError(
            f"{file.name}: the file's ending is its format; endings are {', '.join(endings)}"
        )
    return endings[file.suffix]


def require(kind: str) -> None:
    """Raises ValueError unless the packages that a format needs can be imported."""
    format_ = FORMATS[kind]
    if missing := [name for name in format_.needs if find_spec(name) is None]:
        raise ValueError(
            f"this export needs {', '.join(missing)}, not installed here: "
            f"pip install '{format_.install}'"
        )


def require_int8(file: Path) -> Int8:
    """How the file is quantised. Raises ValueError where its format is not."""
    found = FORMATS[format_of(file)].int8
    if found is None:
        able = [kind for kind, known in FORMATS.items() if known.int8 is not None]
        raise ValueError(
            f"INT8 is written as {' or '.join(kind.upper() for kind in able)}, got {file.name}; "
            f"name a file ending in {' or '.join(f'.{kind}' for kind in able)}"
        )
    return found
