"""Weights from a file of the user's: read, matched by name, loaded into a network."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from planter.arch import Architecture
from planter.backbones import build_backbone, source_key
from planter.backbones.outside import torchvision_nets
from planter.backbones.outside.published import file_of, published
from planter.networks.pipelines import Pipelines

DEFAULT, OWN = "DEFAULT", "OWN"
"""For a path: the weights that torchvision or timm publishes; those a network is built with."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MOST_MISSING = 0.1
"""Of a network's tensors, that a file may lack: a norm more is no other network."""
_LISTED = 6


@dataclass(frozen=True)
class Started:
    """A network that begins with weights of a file, what was done to make them fit, in words, and
    the classifiers that begin afresh, because the file's have other classes."""

    network: nn.Module
    told: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


def start_network(
    architecture: Architecture, weights: str, *, download: bool = False, seed: int = 0
) -> Started:
    """The network of an architecture with `weights`: those of a file, `DEFAULT` or `OWN`. Names of
    the file are those of the network, as its own class has them, or as planter saves it.

    What the file lacks keeps its values of `seed`; so does a classifier of other classes. Raises
    ValueError where there is no such file, or it is of another network.
    """
    backbone = build_backbone(architecture, seed)
    if weights == OWN:
        return Started(Pipelines(backbone, {}).detach("base"))
    place = weights_file(architecture.builder, weights, download=download)
    tensors, told = read_weights(place)
    try:
        fresh = _load(backbone, tensors, _namings(architecture, backbone), told)
    except ValueError as error:
        raise ValueError(f"{place} does not fit {architecture.builder}: {error}") from None
    return Started(Pipelines(backbone, {}).detach("base"), told, fresh)


def weights_file(builder: str, weights: str, *, download: bool = False) -> Path:
    """The file that `weights` of a study stand for. Raises ValueError where it is not there."""
    if weights == DEFAULT:
        return file_of(published(builder), download=download)
    path = Path(weights)
    if not path.is_file():
        raise ValueError(
            f"no file {path}; expected a state dict (.pth, .pt), .safetensors, DEFAULT or OWN"
        )
    return path


def weights_key(builder: str, weights: str, *, download: bool = False) -> str:
    """16 hexadecimal digits that are equal for equal weights: of a file, its content's."""
    if weights == OWN:
        return source_key(builder)
    path = weights_file(builder, weights, download=download).resolve()
    state = path.stat()
    return _content_key(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _content_key(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a .safetensors file or of a state dict that torch saved, also one inside a
    training's checkpoint, by name; and where in the file they stood, in words. No code of the file
    is run. Raises ValueError where it holds no such thing."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path), []
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or no .safetensors file: {error}") from error
    try:
        found: Any = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        other = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"holds more than tensors ({other[1]})" if other else "is damaged, or holds no tensors"
        )
        raise ValueError(
            f"{path} {what}; planter runs no code of such a file, expected a state dict: "
            "torch.save(network.state_dict(), path)"
        ) from error
    except Exception as error:  # torch raises several kinds for what is no file of its own
        raise ValueError(f"{path} is damaged, or no file of torch.save: {error}") from error
    told = []
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            told.append(f"{path.name}: the weights stand under {wrapper!r}")
            found = found[wrapper]
            break
    tensors = (
        {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        names = f" with {_listed(list(map(str, found)))}" if isinstance(found, Mapping) else ""
        raise ValueError(
            f"{path} holds {type(found).__name__}{names}, expected a state dict, tensors by name, "
            f"alone or under {', '.join(_WRAPPERS)}"
        )
    return tensors, told


def _namings(architecture: Architecture, backbone: nn.Module) -> list[dict[str, str]]:
    """The names of a network's tensors by those that a file may have for them: its own, those of
    the network as planter saves it, those of the class that planter makes stages of."""
    own = list(backbone.state_dict())
    namings = [{name: name for name in own}, {name.removeprefix("stages."): name for name in own}]
    key = architecture.builder
    if key.startswith(torchvision_nets.PREFIX):
        names = torchvision_nets.own_names(key.removeprefix(torchvision_nets.PREFIX))
        # planter keeps the order of the modules.
        namings.append(dict(zip(names, own, strict=True)))
        namings.append(dict(zip(map(_of_old_densenet, names), own, strict=True)))
    return namings


def _of_old_densenet(name: str) -> str:
    """The name in the files that torchvision publishes, which are older than its classes."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)


def _load(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    namings: Sequence[Mapping[str, str]],
    told: list[str],
) -> list[str]:
    """Loads tensors into a network in place and tells what was done; the classifiers that begin
    afresh. Raises ValueError where they are of another network."""
    state = network.state_dict()
    tensors, naming = _best(dict(tensors), namings, told)
    given = {naming[name]: tensor for name, tensor in tensors.items() if name in naming}
    others = {name for name in given if given[name].shape != state[name].shape}
    fresh = _classifiers(network, others, given)
    if fresh is None:
        theirs = {known: name for name, known in naming.items()}
        shapes = [
            f"{theirs[name]} {list(given[name].shape)} for {list(state[name].shape)}"
            for name in state
            if name in others
        ]
        raise ValueError(f"other shapes: {_listed(shapes)}")
    # Files of old torch versions do not count batches.
    lacking = [n for n in state if n not in given and not n.endswith("num_batches_tracked")]
    surplus = [name for name in tensors if name not in naming]
    if len(lacking) > _MOST_MISSING * len(state):
        raise ValueError(
            f"{len(lacking)} of its {len(state)} tensors are not in the file: {_listed(lacking)}"
            + (f"; the file has {_listed(surplus)}" if surplus else "")
        )
    if lacking:
        told.append(f"not in the file, and begin afresh: {_listed(lacking)}")
    if surplus:
        told.append(f"not in the network, and left out: {_listed(surplus)}")
    for name in fresh:
        weight = f"{name}.weight" if name else "weight"
        told.append(
            f"the classifier {name} has {len(state[weight])} classes, the file's "
            f"{len(given[weight])}: it begins afresh"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            if name not in others:
                state[name].copy_(tensor)
    return fresh


def _best(
    tensors: dict[str, Tensor], namings: Sequence[Mapping[str, str]], told: list[str]
) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors without prefixes that keep their names from being the network's, and the naming
    they follow."""
    while True:
        naming = max(namings, key=lambda one: sum(name in one for name in tensors))
        matching = sum(name in naming for name in tensors)
        for prefix in _PREFIXES:
            bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            found = max(sum(name in one for name in bare) for one in namings)
            # One more may stand behind that of all names.
            every = found == matching and all(name.startswith(prefix) for name in tensors)
            if found > matching or every:
                told.append(f"the prefix {prefix!r} of the file's names was removed")
                tensors = bare
                break
        else:
            return tensors, naming


def _classifiers(
    network: nn.Module, others: set[str], given: Mapping[str, Tensor]
) -> list[str] | None:
    """The layers that all tensors of other shapes belong to, where these are classifiers of another
    number of classes; else None. A layer inside that differs so has a reader that differs
    otherwise: in what it reads."""
    layers = sorted({name.rpartition(".")[0] for name in others})
    classes = set()
    for layer in layers:
        module = network.get_submodule(layer)
        weight = f"{layer}.weight" if layer else "weight"
        if not isinstance(module, nn.Linear | nn.Conv2d) or weight not in others:
            return None
        if given[weight].shape[1:] != module.weight.shape[1:]:
            return None
        classes.add((len(given[weight]), len(module.weight)))
    return layers if len(classes) <= 1 else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
