"""OpenVINO's intermediate representation, converted from a program of `torch.export`.

`load` also runs where planter cannot be imported: what not every process has is imported inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

USE = """\
import openvino

network = openvino.compile_model("FILE", "CPU")
logits = network(images)[0]
"""


def write(
    network: nn.Module,
    example: Tensor,
    file: Path,
    metadata: Mapping[str, str],
    *,
    batch: int | None = None,
) -> None:
    """A model of any number of images or of `batch`, its weights in float32 beside it under the
    file's name with .bin; the metadata are its runtime information `planter`."""
    import openvino
    import torch

    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        program = torch.export.export(
            network,
            (example,),
            dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
        )
        model = openvino.convert_model(program)
    if batch is not None:  # it takes no size from the program
        model.reshape(list(example.shape))
    model.inputs[0].get_tensor().set_names({"images"})
    model.outputs[0].get_tensor().set_names({"logits"})
    for name, value in metadata.items():
        model.set_rt_info(value, ["planter", name])
    openvino.save_model(model, str(file), compress_to_fp16=False)


def load(file: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import openvino

    # Otherwise a processor that has bfloat16 computes in it.
    network = openvino.compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: np.asarray(network(images)[0])
