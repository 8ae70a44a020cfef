"""INT8 by onnxruntime's static quantisation of weights and activations."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planter.export.check import Array


def quantise(model: Path, images: Array, file: Path) -> None:
    """Writes an ONNX model with signed 8-bit weights, a scale for each output channel, and signed
    8-bit activations, whose ranges are the least and largest values that the images
    `[n, channels, height, width]`, as the model takes them, lead to (QDQ format)."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = _batches(images, _size(model))

        def get_next(self) -> dict[str, Array] | None:
            return next(self._left, None)

    prepared = file.with_suffix(".prepared.onnx")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends the preparation it is given
    try:
        with warnings.catch_warnings(action="ignore"):
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(file),
                Calibration(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )
    finally:
        logging.disable(disabled)
        prepared.unlink(missing_ok=True)


def write_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    """Replaces what an ONNX file says of itself."""
    import onnx

    model: Any = onnx.load(file)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, file)


def _size(model: Path) -> int | None:
    """The number of images that an ONNX model takes at once; None where it takes any."""
    import onnx

    shape = onnx.load(model).graph.input[0].type.tensor_type.shape
    return shape.dim[0].dim_value or None


def _batches(images: Array, size: int | None) -> Iterator[dict[str, Array]]:
    """The last of a fixed size is filled up with its last image, which moves no range."""
    for first in range(0, len(images), size or 64):
        some = images[first : first + (size or 64)]
        missing = size - len(some) if size else 0
        yield {"images": np.concatenate([some, np.repeat(some[-1:], missing, axis=0)])}
