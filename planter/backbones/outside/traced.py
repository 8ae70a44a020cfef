"""Networks that were not written for planter, with widths: found by tracing, set by resizing."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from planter.backbones.staged import StagedNet
from planter.tracing.resize import resize_, with_sizes
from planter.tracing.trace import trace, without_data
from planter.tracing.units import Found

_STAGES = "stages."


class _Template(NamedTuple):
    network: nn.Module
    """As it comes, on torch's meta device."""
    found: Found


_TEMPLATES: dict[tuple[str, str], tuple[object, _Template]] = {}
"""By builder key and options, each with what made it: in a notebook a name may be defined anew."""


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have tensors of the same names and shapes."""
    states = [{n: t.shape for n, t in net.state_dict().items()} for net in (one, other)]
    return states[0] == states[1]


class Traced:
    """A builder function `widths, **options -> network` of a network that knows no widths: each
    group of coupled channels is one, under the name of its first layer (`layer1.0.conv1`). A width
    counts channels, of grouped convolutions and group norms their groups. Those that are not given
    are the network's own, and where none is given nothing is traced.
    """

    def __init__(
        self,
        function: Callable[..., nn.Module],
        key: str,
        layer_name: Callable[[str], str] = lambda name: name.removeprefix(_STAGES),
    ) -> None:
        self._function = function
        self._key = key
        self._layer_name = layer_name
        self.__wrapped__ = vars(function).get("__wrapped__", function)
        # torchvision's and timm's are made anew each time, and are what their names say.
        self._made = vars(function).get("__wrapped__", key)
        self.__signature__ = inspect.signature(function)

    def __call__(self, widths: Mapping[str, int], **options: Any) -> nn.Module:
        if not widths:
            return self._function({}, **options)
        template = self._template(options)
        sizes = [widths.get(group.widths[0], group.size) for group in template.found.groups]
        if torch.get_default_device().type == "meta":
            network = copy.deepcopy(template.network)
        else:
            network = self._function({}, **options)
            if not _alike(network, template.network):  # what its code calls was defined anew
                _TEMPLATES.clear()
                return self(widths, **options)
        return resize_(network, template.found.groups, sizes)

    def sizes(self, options: Mapping[str, Any]) -> dict[str, int]:
        """The network's own widths by name. Raises ValueError where it cannot be traced."""
        return {group.widths[0]: group.size for group in self._named(options).groups}

    def groups(self, widths: Mapping[str, int], options: Mapping[str, Any]) -> Found:
        """The groups of the network of these widths, tensors named as in the plain network that is
        saved, and the reasons why other layers cannot change. Raises ValueError as `sizes`."""
        found = self._named(options)
        sizes = [widths.get(group.widths[0], group.size) for group in found.groups]
        return Found(tuple(with_sizes(found.groups, sizes)), found.fixed)

    def _named(self, options: Mapping[str, Any]) -> Found:
        template = self._template(options)
        if not isinstance(template.network, StagedNet):  # also where it calls parts stages
            return template.found
        groups = []
        for group in template.found.groups:
            axes = (replace(a, tensor=a.tensor.removeprefix(_STAGES)) for a in group.axes)
            groups.append(replace(group, axes=tuple(axes)))
        return Found(tuple(groups), template.found.fixed)

    def _template(self, options: Mapping[str, Any]) -> _Template:
        takes = {p.name: p for p in self.__signature__.parameters.values()}
        takes_any = any(p.kind == p.VAR_KEYWORD for p in takes.values())
        options = {name: v for name, v in options.items() if takes_any or name in takes}
        place = (self._key, json.dumps(options, sort_keys=True, default=repr))
        known = _TEMPLATES.get(place)
        if known is None or known[0] != self._made:
            known = _TEMPLATES[place] = (self._made, self._traced(options))
        return known[1]

    def _traced(self, options: Mapping[str, Any]) -> _Template:
        default = self.__signature__.parameters["image"].default
        image: Any = options.get("image", default)
        if image is inspect.Parameter.empty:
            raise ValueError(
                f"{self._key}: its widths are found with an image; give the option image: "
                "[channels, height, width]"
            )
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            network = self._function({}, **options)
        try:
            found = trace(network, image)
        except ValueError as error:
            raise ValueError(f"{self._key}: {error}") from error
        name = self._layer_name if isinstance(network, StagedNet) else str
        groups = tuple(replace(g, widths=tuple(map(name, g.widths))) for g in found.groups)
        fixed = {name(layer): why for layer, why in found.fixed.items()}
        return _Template(without_data(network), Found(groups, fixed))
