"""torchvision's classification models as backbones: its residual networks with named stages."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import nn

from planter.backbones.staged import StagedNet

PREFIX = "torchvision:"
# In training these would give more logits than one, from classifiers that are not shipped.
_WITHOUT_AUXILIARY = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def torchvision_net(name: str) -> Callable[..., nn.Module]:
    """A builder function of `torchvision.models.get_model(name)` without pre-trained weights.

    Raises ValueError for a name that is no classification model of torchvision.
    """
    from torchvision import models  # takes a second, which only those who ask for it wait

    names = models.list_models(module=models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5)
        near = near or [known for known in names if known.startswith("resnet")]
        raise ValueError(
            f"torchvision has no classification model {name!r}; it has {', '.join(near)}, ..."
        )

    def build(
        widths: Mapping[str, int], *, classes: int = 1000, image: Sequence[int] = (3, 224, 224)
    ) -> nn.Module:
        channels, *size = image
        if channels != 3:
            raise ValueError(
                f"{PREFIX}{name} takes images of 3 channels, got {'x'.join(map(str, image))}"
            )
        settings = _WITHOUT_AUXILIARY.get(name, {})
        device = torch.get_default_device()
        # regnet makes its widths with tensors, which hold no numbers on the meta device.
        with torch.device("cpu" if name.startswith("regnet") else device):
            net = models.get_model(name, weights=None, num_classes=classes, **settings).to(device)
        # A vision transformer has one embedding for each place, and so one size.
        side = getattr(net, "image_size", None)
        if side is not None and size != [side, side]:
            raise ValueError(
                f"{PREFIX}{name} takes images of 3x{side}x{side}, got {'x'.join(map(str, image))}"
            )
        return _staged(net) if isinstance(net, models.ResNet) else net

    return build


def layer_name(name: str) -> str:
    """torchvision's name of a layer of one of its residual networks with stages."""
    if name.startswith("head."):
        return name.removeprefix("head.")
    stage, _, layer = name.removeprefix("stages.").partition(".")
    if stage == "stem":
        return layer
    group, _, number = stage.partition("_")
    return f"{group}.{int(number) - 1}.{layer}"


def own_names(name: str) -> list[str]:
    """The names of the state of `torchvision.models.get_model(name)`, in its order, which is that
    of the network planter makes of it."""
    from torchvision import models

    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        net = models.get_model(name, weights=None, **_WITHOUT_AUXILIARY.get(name, {}))
    return list(net.state_dict())


def installed_version() -> str:
    """The version of torchvision, without importing it."""
    return metadata.version("torchvision")


def _staged(net: Any) -> StagedNet:
    """A torchvision `ResNet` with a stage for its stem and for each of its blocks."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stem = OrderedDict(conv1=net.conv1, bn1=net.bn1, relu=net.relu, maxpool=net.maxpool)
    stages["stem"] = nn.Sequential(stem)
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        for i, block in enumerate(getattr(net, layer), start=1):
            stages[f"{layer}_{i}"] = block
    head = OrderedDict(avgpool=net.avgpool, flatten=nn.Flatten(), fc=net.fc)
    return StagedNet(nn.Sequential(stages), nn.Sequential(head))
