"""Programs of `torch.export`.

`load` also runs where planter cannot be imported.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

METADATA = "planter.json"
USE = """\
import torch

network = torch.export.load("FILE").module()
with torch.no_grad():
    logits = network(torch.from_numpy(images)).numpy()
"""


def write(
    network: nn.Module,
    example: Tensor,
    file: Path,
    metadata: Mapping[str, str],
    *,
    batch: int | None = None,
) -> None:
    """A program for `torch.export.load`, with the metadata as its extra file planter.json, of any
    number of images or of `batch`."""
    import torch

    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        program = torch.export.export(
            network,
            (example,),
            dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
        )
        torch.export.save(
            program, file, extra_files={METADATA: json.dumps(dict(metadata), indent=2)}
        )


def load(file: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import torch

    network = torch.export.load(file).module()

    def run(images: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(images.copy())))

    return run
