"""The weights that torchvision and timm publish: where they lie, and what images they learned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from planter.backbones.outside import timm_nets, torchvision_nets

# With these weights torchvision's own class brings images that are normalised as ImageNet's to
# others (`transform_input`), which planter's does not do.
_SHIFTED = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Published:
    """Weights of a package: the file at `url` or of `hub`, a repository of Hugging Face's hub, and
    the images they learned, of `size` x `size` pixels that were normalised by `mean` and `std`."""

    name: str
    url: str | None
    hub: str | None
    mean: Sequence[float]
    std: Sequence[float]
    size: int


def published(builder: str) -> Published:
    """The default weights of a builder such as "torchvision:resnet18". Raises ValueError where
    there are none."""
    if builder.startswith(torchvision_nets.PREFIX):
        return _of_torchvision(builder.removeprefix(torchvision_nets.PREFIX))
    if builder.startswith(timm_nets.PREFIX):
        return _of_timm(builder.removeprefix(timm_nets.PREFIX))
    raise ValueError(
        f"{builder} publishes no weights; DEFAULT is of torchvision:NAME and timm:NAME, expected "
        "the path of a file, or OWN for those that the network brings along"
    )


def file_of(weights: Published, *, download: bool) -> Path:
    """Where they lie on this machine, `download`ed if need be. Raises ValueError where they are not
    there and may not be, or cannot be downloaded."""
    there = _in_torchs_cache(weights)
    if there.is_file():
        return there
    if (found := _in_hubs_cache(weights, download=False)) is not None:
        return found
    if not download:
        raise ValueError(
            f"the weights {weights.name} are not on this machine (looked for {there}); put them "
            "there, or say download: true beside weights"
        )
    try:
        if weights.url is None:
            found = _in_hubs_cache(weights, download=True)
            assert found is not None
            return found
        there.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(there), progress=False)
    except Exception as error:  # of sockets, of HTTP, of the hub's client
        raise ValueError(f"the weights {weights.name} cannot be downloaded: {error}") from error
    return there


def _in_torchs_cache(weights: Published) -> Path:
    name = os.path.basename(urlparse(weights.url or "").path) or f"{weights.name}.safetensors"
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _in_hubs_cache(weights: Published, *, download: bool) -> Path | None:
    """The file of a repository of Hugging Face's hub, where it was or is fetched."""
    if weights.hub is None:
        return None
    import huggingface_hub  # timm brings it along

    name = "model.safetensors"
    if download:
        return Path(huggingface_hub.hf_hub_download(weights.hub, name))
    found = huggingface_hub.try_to_load_from_cache(weights.hub, name)
    return Path(found) if isinstance(found, str) else None


def _of_torchvision(name: str) -> Published:
    from torchvision import models

    torchvision_nets.torchvision_net(name)  # tells of an unknown name
    weights: Any = models.get_model_weights(name).DEFAULT
    seen = weights.transforms()
    mean, std = seen.mean, seen.std
    if name in _SHIFTED:
        mean = std = [0.5, 0.5, 0.5]
    size = int(seen.crop_size[0])
    return Published(f"{name}.{weights.name}", weights.url, None, mean, std, size)


def _of_timm(name: str) -> Published:
    timm_nets.timm_net(name)
    found: Any = timm_nets.timm_package().get_pretrained_cfg(name)
    if found is None or not (found.url or found.hf_hub_id):
        raise ValueError(f"timm publishes no weights of {name}")
    label = name if "." in name or not found.tag else f"{name}.{found.tag}"
    url = found.url or None
    return Published(label, url, found.hf_hub_id, found.mean, found.std, int(found.input_size[1]))
