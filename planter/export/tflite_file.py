"""TensorFlow Lite files, for what is now called LiteRT.

`load` also runs where planter cannot be imported: what not every process has is imported inside.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

METADATA = b"planter"
USE = """\
from ai_edge_litert.interpreter import Interpreter

network = Interpreter("FILE").get_signature_runner()
(logits,) = network(args_0=images).values()
"""


def write(
    network: nn.Module, example: Tensor, file: Path, metadata: Mapping[str, str], *, batch: int
) -> None:
    """A model of `batch` images, as many as the example has; its metadata entry `planter` is
    JSON."""
    # It tells every step on the standard output.
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        import litert_torch

        assert len(example) == batch
        litert_torch.convert(network, (example,)).export(str(file))
    _describe(file, json.dumps(dict(metadata)))


def _describe(file: Path, text: str) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.read_model(file)
    buffer = schema.BufferT()
    buffer.data = list(text.encode())
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    flatbuffer_utils.write_model(model, file)


def load(file: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(file)).get_signature_runner()
    (name,) = network.get_input_details()
    return lambda images: np.asarray(next(iter(network(**{name: images}).values())))
