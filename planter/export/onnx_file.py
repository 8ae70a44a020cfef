"""ONNX models: written by torch's exporter, run by onnxruntime.

`load` also runs where planter cannot be imported: what not every process has is imported inside.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.onnx import ONNXProgram

# The first that has every operation planter's networks need, and so the one most runtimes read.
OPSET = 18
USE = """\
import onnxruntime

session = onnxruntime.InferenceSession("FILE")
(logits,) = session.run(None, {"images": images})
"""


def program_of(
    network: nn.Module, example: Tensor, *, opset: int = OPSET, batch: int | None = None
) -> ONNXProgram:
    """An ONNX program from `images` `[batch, ...]` like the example to `logits` `[batch, classes]`,
    of any number of images or of `batch`, and torch's program that it was made of.

    The exporter folds batch norms behind convolutions in any case.
    """
    import torch
    from onnx.defs import onnx_opset_version

    if not 1 <= opset <= (newest := onnx_opset_version()):
        raise ValueError(f"opset {opset}: expected 1 to {newest}, those that onnx here knows")
    with torch.no_grad(), warnings.catch_warnings(action="ignore"), _unlogged():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program


@contextmanager
def _unlogged() -> Iterator[None]:
    """The exporter logs at length that it could not convert; what it wrote says so, too."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def write(
    network: nn.Module,
    example: Tensor,
    file: Path,
    metadata: Mapping[str, str],
    *,
    opset: int = OPSET,
    batch: int | None = None,
) -> None:
    """The model of `program_of`. Raises ValueError for an opset that it does not write."""
    program = program_of(network, example, opset=opset, batch=batch)
    model = program.model
    written = model.opset_imports[""]
    if written != opset:  # it logs that it could not convert, and goes on
        raise ValueError(f"torch's exporter has no opset {opset} for it; it wrote {written}")
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: paths of the machine it was written on
    program.save(str(file))


def load(file: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of what it optimises
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (name,) = (taken.name for taken in session.get_inputs())
    return lambda images: np.asarray(session.run(None, {name: images})[0])
