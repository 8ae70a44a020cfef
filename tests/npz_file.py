"""A format from outside planter, all in one file: tensors and their code as .npz."""

from __future__ import annotations

import json

import numpy as np


def write(network, example, file, metadata):
    from planter.export.code import plain_code

    source, state = plain_code(network, example)
    tensors = {name: tensor.numpy() for name, tensor in state.items()}
    np.savez(file, **tensors, source=source, metadata=json.dumps(metadata))


def load(file):
    import torch

    parts = dict(np.load(file))
    names = {"torch": torch, "nn": torch.nn}
    exec(str(parts.pop("source")), names)
    parts.pop("metadata")
    network = names["Network"]()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in parts.items()})
    network.eval()

    def run(images):
        with torch.no_grad():
            return network(torch.from_numpy(images.copy())).numpy()

    return run


def quantise(file, images, small):
    """Weights of 255 levels; of the images no range is taken."""
    parts = dict(np.load(file))
    for name, array in parts.items():
        if array.dtype == np.float32:
            step = max(abs(array).max() / 127, 1e-9)
            parts[name] = (np.round(array / step) * step).astype(np.float32)
    with small.open("wb") as opened:
        np.savez(opened, **parts)


def write_metadata(file, metadata):
    np.savez(file, **{**dict(np.load(file)), "metadata": json.dumps(metadata)})
