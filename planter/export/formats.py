"""Writing a deployable network as ONNX, as a torch.export program, as tensors with their code."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planter.export.code import plain_code

# The first that has every operation planter's networks need, and so the one most runtimes read.
OPSET = 18
PT2_METADATA = "planter.json"


def write_onnx(
    network: nn.Module, example: Tensor, file: Path, metadata: Mapping[str, str]
) -> None:
    """An ONNX model from `images` `[batch, ...]` like the example to `logits` `[batch, classes]`.

    The exporter folds batch norms behind convolutions in any case. Raises ValueError where packages
    are missing.
    """
    require("onnx", "onnxscript", "onnxruntime")
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: paths of the machine it was written on
    program.save(str(file))


def write_pt2(network: nn.Module, example: Tensor, file: Path, metadata: Mapping[str, str]) -> None:
    """A program for `torch.export.load`, with the metadata as its extra file planter.json."""
    with torch.no_grad(), quiet():
        program = torch.export.export(
            network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        torch.export.save(
            program, file, extra_files={PT2_METADATA: json.dumps(dict(metadata), indent=2)}
        )


def write_safetensors(
    network: nn.Module, example: Tensor, file: Path, metadata: Mapping[str, str]
) -> None:
    """A state dict and beside it, under the file's name with .py, the network it belongs to."""
    from safetensors.torch import save_file

    with quiet():
        source, state = plain_code(network, example)
    file.with_suffix(".py").write_text(_module(source, file, metadata), encoding="utf-8")
    save_file({name: t.contiguous().clone() for name, t in state.items()}, file, dict(metadata))
    file.chmod(file.with_suffix(".py").stat().st_mode)  # safetensors writes 0600


def require(*packages: str) -> None:
    """Raises ValueError unless the packages can be imported."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise ValueError(
            f"this export needs {', '.join(missing)}, not installed here: "
            "pip install 'planter[export]'"
        )


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


@contextmanager
def quiet() -> Iterator[Any]:
    """Hides what torch's exporters warn of on any network; what is written is checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
