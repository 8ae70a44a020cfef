"""ExecuTorch programs for phones and boards, for the CPU's XNNPACK backend.

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

METADATA = "planter"
USE = """\
import torch
from executorch.runtime import Runtime

network = Runtime.get().load_program("FILE").load_method("forward")
logits = network.execute((torch.from_numpy(images),))[0].numpy()
"""


def write(
    network: nn.Module, example: Tensor, file: Path, metadata: Mapping[str, str], *, batch: int
) -> None:
    """A program of `batch` images, as many as the example has: XNNPACK plans its memory for them.
    Method `planter` gives the metadata as JSON."""
    import json

    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    assert len(example) == batch
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        program = to_edge_transform_and_lower(
            torch.export.export(network, (example,)),
            partitioner=[XnnpackPartitioner()],
            constant_methods={METADATA: json.dumps(dict(metadata))},
        ).to_executorch()
    file.write_bytes(program.buffer)


def load(file: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import torch
    from executorch.runtime import Runtime

    network = Runtime.get().load_program(str(file)).load_method("forward")
    return lambda images: np.asarray(network.execute((torch.from_numpy(images.copy()),))[0])
