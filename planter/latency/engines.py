"""Networks as calls of what can run them here: torch, onnxruntime, torch on a GPU."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.latency.timing import forward
from planter.networks import checkpoint
from planter.networks.cut_points import image_of

log = logging.getLogger(__name__)
Call = Callable[[], object]
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install 'planter[export]'"
_DTYPES = {"tensor(float)": torch.float32, "tensor(uint8)": torch.uint8}


def onnx_is_here() -> bool:
    """Whether all that an export to ONNX and its run need is installed."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDED)


def calls_of(place: Path, batch: int, threads: int, *, own_code: bool = False) -> dict[str, Call]:
    """A pass of `batch` images through the network in a file or model folder, by engine: "torch",
    "onnxruntime" with `threads` threads, and "cuda" where torch has a GPU. A folder is exported for
    onnxruntime in memory, where the packages for that are installed.

    Raises ValueError for a file that holds no network, or one of other images than `batch` at once.
    """
    if place.suffix in FILES:
        return FILES[place.suffix](place, batch, threads)
    spec = checkpoint.read_spec(place)
    images = _images(batch, image_of(Architecture.from_dict(spec["architecture"])))
    # One of its own for each engine: a network that lies on the GPU does not run on the CPU.
    network = checkpoint.load(place, own_code=own_code)
    calls: dict[str, Call] = {"torch": forward(network, images)}
    if onnx_is_here():
        try:
            model = to_onnx(network, images)
            calls["onnxruntime"] = _onnx_call(model, threads, batch, str(place), network)
        except Exception as error:  # of a user's operator that ONNX does not know, for one
            log.warning("%s is not timed in onnxruntime: %s", place, error)
    if torch.cuda.is_available():
        other = checkpoint.load(place, own_code=own_code).to("cuda")
        calls["cuda"] = forward(other, images.to("cuda"))
    return calls


def to_onnx(network: nn.Module, images: Tensor) -> bytes:
    """A network in eval mode as an ONNX model for exactly such images."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's own use of what it calls deprecated
            program = torch.onnx.export(network, (images,), dynamo=True, verbose=False)
        assert program is not None
        model: bytes = program.model_proto.SerializeToString()
        return model
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _onnx_call(
    model: bytes, threads: int, batch: int, what: str, twin: nn.Module | None = None
) -> Call:
    """A pass through an ONNX model; where it has a `twin` in torch, it must answer like it."""
    if not onnx_is_here():
        raise ValueError(f"{what} needs onnxruntime, which is not installed: {INSTALL}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has kinds of its own, which are no ValueError
        raise ValueError(f"{what} is no model that onnxruntime reads: {error}") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _DTYPES:
        found = ", ".join(f"{one.name} {one.type}" for one in inputs)
        raise ValueError(f"{what} takes {found}; expected one input, images of float or uint8")
    shape = _shape(inputs[0].shape, batch, what)
    images = _images(shape[0], shape[1:], _DTYPES[inputs[0].type])
    if twin is not None:
        with torch.inference_mode():
            told = torch.from_numpy(session.run(None, {inputs[0].name: images.numpy()})[0])
            if not torch.allclose(told, twin(images), rtol=1e-3, atol=1e-3):
                raise ValueError(f"{what}: as an ONNX model it answers otherwise than in torch")
    feed = {inputs[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _onnx_calls(place: Path, batch: int, threads: int) -> dict[str, Call]:
    return {"onnxruntime": _onnx_call(_read(place), threads, batch, str(place))}


def _exported_calls(place: Path, batch: int, threads: int) -> dict[str, Call]:
    """Passes through a program of `torch.export`."""
    _read(place)
    try:
        program = torch.export.load(place)
    except Exception as error:  # torch raises several kinds for a file that is none
        raise ValueError(f"{place} is no program of torch.export: {error}") from error
    names = program.graph_signature.user_inputs
    (told,) = (node.meta["val"] for node in program.graph.nodes if node.name in names[:1])
    shape = _shape(list(told.shape), batch, str(place))
    images = _images(shape[0], shape[1:], told.dtype)
    calls: dict[str, Call] = {"torch": forward(program.module(), images)}
    if torch.cuda.is_available():
        from torch.export.passes import move_to_device_pass

        moved = move_to_device_pass(torch.export.load(place), "cuda")
        calls["cuda"] = forward(moved.module(), images.to("cuda"))
    return calls


FILES = {".onnx": _onnx_calls, ".pt2": _exported_calls}
"""How files that hold a network are timed, by their ending."""


def _shape(told: list[Any], batch: int, what: str) -> tuple[int, ...]:
    """The shape of a model's images, of which the first number may be open."""
    first, *rest = told
    if not all(isinstance(size, int) for size in rest):
        raise ValueError(f"{what} takes images {told}; expected a fixed size of each image")
    if isinstance(first, int) and first != batch:
        raise ValueError(f"{what} takes {first} images at once; give --batch {first}")
    return (batch, *rest)


def _images(batch: int, image: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images [batch, *image], the same every time."""
    draw = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.rand(batch, *image, generator=draw).to(dtype)
    return torch.randint(0, 256, (batch, *image), generator=draw).to(dtype)


def _read(place: Path) -> bytes:
    if not place.is_file():
        raise ValueError(f"there is no file {place}")
    return place.read_bytes()
