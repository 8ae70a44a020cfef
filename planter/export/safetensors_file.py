"""State dicts as safetensors, and beside them the network they belong to as plain code.

`load` also runs where planter cannot be imported: what not every process has is imported inside.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn


USE = """\
import torch
from CODE import load

network = load()
with torch.no_grad():
    logits = network(torch.from_numpy(images)).numpy()
"""


def write(network: nn.Module, example: Tensor, file: Path, metadata: Mapping[str, str]) -> None:
    """A state dict and beside it, under the file's name with .py, the network it belongs to."""
    from safetensors.torch import save_file

    from planter.export.code import plain_code

    with warnings.catch_warnings(action="ignore"):
        source, state = plain_code(network, example)
    file.with_suffix(".py").write_text(_module(source, file, metadata), encoding="utf-8")
    save_file({name: t.contiguous().clone() for name, t in state.items()}, file, dict(metadata))
    file.chmod(file.with_suffix(".py").stat().st_mode)  # safetensors writes 0600


def load(file: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import torch

    spec = importlib.util.spec_from_file_location("exported", file.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.load()

    def run(images: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(images.copy())))

    return run


def _module(source: str, file: Path, metadata: Mapping[str, str]) -> str:
    told = {name: json.loads(metadata[name]) for name in ("classes", "mean", "std")}
    constants = "\n".join(f"{name.upper()} = {value!r}" for name, value in told.items())
    trainable = "torch.ops." not in source
    use = (
        "It can be trained further: `load().train()`."
        if trainable
        else "It is the list of operations of its eval mode and is not meant for training."
    )
    text = f"""{metadata["id"]} in plain PyTorch, written by planter {metadata["planter"]}.

Weights: {file.name} beside this file. It takes {metadata["input"]},
and gives logits [batch, {len(told["classes"])}]. {use}
"""
    return f'''"""{_within_quotes(text)}"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

{constants}


{source}

def load(file=Path(__file__).with_suffix(".safetensors")):
    """The network with its weights, in eval mode."""
    network = Network()
    network.load_state_dict(load_file(file))
    return network.eval()
'''


def _within_quotes(text: str) -> str:
    """Text that stands in a docstring and nowhere else, whatever a name in it holds."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "")
