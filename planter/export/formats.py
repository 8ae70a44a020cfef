"""Formats of exported files in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from planter.data import Split
from planter.export import (
    executorch_file,
    onnx_file,
    openvino_file,
    pt2_file,
    safetensors_file,
    tflite_file,
)
from planter.export.check import Array, Run
from planter.export.int8 import static
from planter.export.int8.finetuning import FineTuning, fine_tuned


@dataclass(frozen=True)
class Int8:
    """How a format quantises to 8 bits: `quantise(file, images, small)` writes a second file, with
    ranges from the images as the first takes them; `write_metadata` replaces what a file says of
    itself. `fine_tuned(network, calibration, tuning)` gives a copy of a network whose weights were
    trained with the rounding of its files, None where the format has no such training."""

    quantise: Callable[[Path, Array, Path], None]
    write_metadata: Callable[[Path, Mapping[str, str]], None]
    fine_tuned: Callable[[nn.Module, Split, FineTuning], nn.Module] | None = None


@dataclass(frozen=True)
class Format:
    """How files of a format are made and run.

    `write(network, example, file, metadata)` writes a network in eval mode that takes batches of
    any size of images like the two of the example, and beside the file those with the endings
    `beside`. `load(file)` gives a function from images to logits, as numpy arrays. A process in
    which planter cannot be imported runs it to check the file: it is a function of a Python file
    that imports the standard library and numpy at its top, and anything else inside.

    `needs` are packages that may be missing, `install` is what installs them. `options` names
    further keywords of `write`: "opset", a whole number, and "batch", the number of images that the
    file then takes at once, those of the example; a format whose files always take so many has its
    number of them in `batch`. `use` are lines of Python for a model card: from `images`, a numpy
    array, to `logits`, with the file's name for FILE. `name` is what --format calls it besides the
    ending.
    """

    write: Callable[..., None]
    load: Callable[[Path], Run]
    needs: tuple[str, ...] = ()
    install: str = "planter[export]"
    beside: tuple[str, ...] = ()
    int8: Int8 | None = None
    options: tuple[str, ...] = ()
    batch: int | None = None
    use: str = ""
    name: str | None = None


FORMATS = {
    "onnx": Format(
        onnx_file.write,
        onnx_file.load,
        needs=("onnx", "onnxscript", "onnxruntime"),
        int8=Int8(static.quantise, static.write_metadata, fine_tuned),
        options=("opset", "batch"),
        use=onnx_file.USE,
    ),
    "pt2": Format(pt2_file.write, pt2_file.load, options=("batch",), use=pt2_file.USE),
    "safetensors": Format(
        safetensors_file.write, safetensors_file.load, beside=(".py",), use=safetensors_file.USE
    ),
    "xml": Format(
        openvino_file.write,
        openvino_file.load,
        needs=("openvino",),
        install="planter[openvino]",
        beside=(".bin",),
        options=("batch",),
        use=openvino_file.USE,
        name="openvino",
    ),
    "pte": Format(
        executorch_file.write,
        executorch_file.load,
        needs=("executorch",),
        install="planter[executorch]",
        options=("batch",),
        batch=1,
        use=executorch_file.USE,
        name="executorch",
    ),
    "tflite": Format(
        tflite_file.write,
        tflite_file.load,
        needs=("litert_torch", "ai_edge_litert"),
        install="planter[tflite]",
        options=("batch",),
        batch=1,
        use=tflite_file.USE,
    ),
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


def named(name: str) -> str:
    """The ending of a format that --format names. Raises ValueError for another one."""
    known = {format_.name or ending: ending for ending, format_ in FORMATS.items()}
    if name not in known and name not in FORMATS:
        raise ValueError(f"--format {name}: expected {', '.join(known)}")
    return known.get(name, name)


def options_of(kind: str, asked: Mapping[str, int | None]) -> dict[str, int]:
    """The keywords that a format writes with: those asked for, and its own number of images. Raises
    ValueError for one that it does not have."""
    format_ = FORMATS[kind]
    found = {name: value for name, value in asked.items() if value is not None}
    for name, value in found.items():
        if name not in format_.options:
            able = [f".{one}" for one, known in FORMATS.items() if name in known.options]
            raise ValueError(f"--{name} is an option of {', '.join(able)}; got .{kind}")
        if value < 1:
            raise ValueError(f"--{name} {value}: expected a whole number above 0")
    if format_.batch is not None:
        found = {"batch": format_.batch, **found}
    return found


def require(kind: str) -> None:
    """Raises ValueError unless the packages that a format needs can be imported."""
    format_ = FORMATS[kind]
    if missing := [name for name in format_.needs if find_spec(name) is None]:
        raise ValueError(
            f"this export needs {', '.join(missing)}, not installed here: "
            f"pip install '{format_.install}'"
        )


def require_int8(file: Path, *, trained: bool) -> Int8:
    """How the file is quantised. Raises ValueError where its format is not, or not `trained` to
    be."""
    found = FORMATS[format_of(file)].int8
    if found is None:
        able = [kind for kind, known in FORMATS.items() if known.int8 is not None]
        raise ValueError(
            f"INT8 is written as {' or '.join(kind.upper() for kind in able)}, got {file.name}; "
            f"name a file ending in {' or '.join(f'.{kind}' for kind in able)}"
        )
    if trained and found.fine_tuned is None:
        raise ValueError(
            f"--qat is not for {file.suffix} files: their format quantises without training; leave "
            "it out"
        )
    return found
