"""The backbones planter knows by name, and the door for a user's own."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from planter.arch import Architecture, owner_of, width_in
from planter.backbones import (
    alexnet,
    cifar_quick,
    convnet,
    densenet,
    mobilenet,
    resnet,
    toy,
    vgg,
    wrn,
)
from planter.backbones.outside import own, timm_nets, torchvision_branch, torchvision_nets
from planter.backbones.outside.source import source_of
from planter.backbones.outside.traced import Traced
from planter.backbones.staged import StagedNet
from planter.tracing.units import Found

__all__ = [
    "BUILDERS",
    "Builder",
    "StagedNet",
    "build_backbone",
    "builds_without_data",
    "canonical",
    "convolutions",
    "find_builder",
    "free_widths",
    "full_widths",
    "import_object",
    "inner_widths",
    "is_known",
    "is_traced",
    "source_key",
    "told_widths",
    "traced_groups",
    "with_data_options",
]


@dataclass(frozen=True)
class Builder:
    """A function `widths, **options -> network` and the widths it has when none are given: a
    mapping, or a function of the options; None where it has none that could be set.

    `branch` makes an auxiliary classifier of copied blocks: a function `stages, after, channels,
    widths, kind=, **options -> network`, where `stages` are the network's, on the meta device.

    `inner` names widths inside its stages, STAGE.LAYER such as `group1_1.conv1`: a list, or a
    function of the options. Unless it is given, each is as wide as its owner: the stage, where that
    is a width, or the group (`group1`). `build_backbone` hands the function all of them.

    `blocks` is a function of the options that says how many blocks each group has, of a function
    whose option `blocks` sets them in that order: a list of stages `GROUP_1`, `GROUP_2`, ... that
    have `start_as_identity_()`. Such blocks can be added and removed (`planter.evolution`).

    `traced` is the function itself, of a network that knows no widths: they are found by tracing.
    """

    function: Callable[..., nn.Module]
    widths: Mapping[str, int] | Callable[..., Mapping[str, int]] | None
    branch: Callable[..., nn.Module] | None = None
    inner: Callable[..., Sequence[str]] | Sequence[str] | None = None
    blocks: Callable[..., Mapping[str, int]] | None = None
    traced: Traced | None = None

    def default_widths(self, options: Mapping[str, Any]) -> dict[str, int]:
        """The widths under these options. Raises ValueError where there are none under them."""
        if not callable(self.widths):
            return dict(self.widths or {})
        try:
            return dict(self.widths(**options))
        except TypeError as error:
            raise ValueError(f"no widths with options {dict(options)}: {error}") from error

    def inner_names(self, options: Mapping[str, Any]) -> list[str]:
        """Names of the inner widths under these options. Raises ValueError where there are none
        under them."""
        if not callable(self.inner):
            return list(self.inner or ())
        try:
            return list(self.inner(**options))
        except TypeError as error:
            raise ValueError(f"no inner widths with options {dict(options)}: {error}") from error

    def options(self) -> set[str]:
        """Names of the keyword options the function takes."""
        named = inspect.signature(self.function).parameters.values()
        return {p.name for p in named if p.kind != p.VAR_KEYWORD} - {"widths"}

    def takes_any(self) -> bool:
        """Whether the function takes options of any name."""
        named = inspect.signature(self.function).parameters.values()
        return any(p.kind == p.VAR_KEYWORD for p in named)


BUILDERS: dict[str, Builder] = {
    "convnet": Builder(convnet.convnet, convnet.WIDTHS),
    "toy": Builder(toy.toy, toy.WIDTHS),
    "cifar_quick": Builder(cifar_quick.cifar_quick, cifar_quick.WIDTHS),
    "alexnet": Builder(alexnet.alexnet, alexnet.WIDTHS),
    "vgg16": Builder(vgg.vgg16, vgg.widths),
    "resnet": Builder(resnet.resnet, resnet.WIDTHS, resnet.branch, resnet.inner, resnet.blocks),
    "resnet18": Builder(resnet.resnet18, resnet.WIDTHS18, resnet.branch18, resnet.inner18),
    "wrn": Builder(wrn.wrn, wrn.widths, wrn.branch, wrn.inner, wrn.blocks),
    "densenet": Builder(densenet.densenet, densenet.WIDTHS, densenet.branch),
    "mobilenet": Builder(mobilenet.mobilenet, mobilenet.WIDTHS, mobilenet.branch),
}

_DATA_OPTIONS = {"classes", "image"}
_LISTED = 6


def import_object(place: str) -> Any:
    """The object at "package.module:name". Raises ValueError that says which half is missing."""
    module_name, _, name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module runs: whatever it raises is told
        raise ValueError(f"cannot import {module_name!r} for {place!r}: {error}") from error
    if not hasattr(module, name):
        how = "; what a script or notebook defined is gone with it, a module file stays"
        how = how if module_name == "__main__" else ""
        raise ValueError(f"module {module_name!r} has no {name!r}{how}")
    return getattr(module, name)


def find_builder(key: str) -> Builder:
    """The builder of that name, torchvision's or timm's model as "torchvision:resnet18" and
    "timm:resnet18", or what stands at "my_pkg.nets:build" or was given by name in Python: a
    function of `widths` (default widths: its attribute `widths`, if it has one: a mapping, or a
    function of the options; inner ones: its attribute `inner`, a list or a function likewise), or
    a plain network (see `planter.backbones.outside.own`)."""
    if key in BUILDERS:
        return BUILDERS[key]
    if key.startswith(torchvision_nets.PREFIX):
        made = torchvision_nets.torchvision_net(key.removeprefix(torchvision_nets.PREFIX))
        traced = Traced(made, key, torchvision_nets.layer_name)
        return Builder(traced, None, torchvision_branch.branch, traced=traced)
    if key.startswith(timm_nets.PREFIX):
        traced = Traced(timm_nets.timm_net(key.removeprefix(timm_nets.PREFIX)), key)
        return Builder(traced, None, traced=traced)
    if ":" in key or key in own.NETWORKS:
        function = own.NETWORKS[key] if key in own.NETWORKS else import_object(key)
        if own.is_plain(function):
            traced = Traced(own.plain_net(function, key), key)
            return Builder(traced, None, traced=traced)
        inner = getattr(function, "inner", None)
        blocks = getattr(function, "blocks", None)
        return Builder(function, getattr(function, "widths", {}), inner=inner, blocks=blocks)
    raise ValueError(
        f"unknown builder {key!r}; builders are {', '.join([*BUILDERS, *own.NETWORKS])}, "
        "torchvision's and timm's as 'torchvision:resnet18' and 'timm:resnet18', or your own as "
        "'my_pkg.nets:build'; a network of a script or notebook is given, also to go on with its "
        f"run, as planter.search(study, networks={{{key!r}: ...}})"
    )


def is_known(key: str) -> bool:
    """Whether the key names a builder of planter, torchvision or timm, so that to build it runs no
    code of the user's."""
    return key in BUILDERS or key.startswith((torchvision_nets.PREFIX, timm_nets.PREFIX))


def builds_without_data(architecture: Architecture) -> bool:
    """Whether a network can be made on torch's meta device: a user's code may compute with tensors
    while it builds one, but of one whose widths were traced there is a copy without data."""
    if is_known(architecture.builder):
        return True
    return bool(architecture.widths) and is_traced(architecture)


def is_traced(architecture: Architecture) -> bool:
    """Whether a network was not written for planter: its widths are found by tracing."""
    return find_builder(architecture.builder).traced is not None


def source_key(key: str) -> str:
    """16 hexadecimal digits of the source that builds `key`: another source may be another
    function of the same weights."""
    function = find_builder(key).function
    given = own.network_of(function)
    source = inspect.unwrap(function) if given is None else type(given)
    content = source_of(source) or key.encode()
    if key.startswith(torchvision_nets.PREFIX):  # the file makes stages of what torchvision builds
        content += torchvision_nets.installed_version().encode()
    if key.startswith(timm_nets.PREFIX):
        content += timm_nets.installed_version().encode()
    if given is not None:
        content += own.weights_key(given)
    return hashlib.sha256(content).hexdigest()[:16]


def code_key(function: Any) -> str:
    """16 hexadecimal digits of the source of a function of a user's."""
    content = source_of(inspect.unwrap(function)) or repr(function).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def convolutions(widths: Mapping[str, int]) -> list[str]:
    """The names among `widths` that are not fully connected (do not start with "fc")."""
    return [name for name in widths if not name.startswith("fc")]


def full_widths(
    key: str,
    widths: int | Mapping[str, int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Every width of a builder by name: its defaults under the options, with those given put in.

    One number stands for every convolution; fully connected layers then keep their default. An
    inner width (`group1_1.conv1`) is there only where one is given that differs from its owner's:
    equal networks have equal widths. A network that was not written for planter has none unless
    some are given, and then all, found by tracing. Raises ValueError for a width that the builder
    does not have.
    """
    builder = find_builder(key)
    if builder.traced is not None:
        return _traced_widths(key, builder.traced, widths or {}, options or {})
    full = builder.default_widths(options or {})
    if isinstance(widths, int):
        if not full:
            raise ValueError(f"builder {key!r} names no default widths; give each width by name")
        return {**full, **dict.fromkeys(convolutions(full), widths)}
    given = dict(widths or {})
    merged = {**full, **given}
    if set(given) <= set(full):
        return merged
    inner = _owners(key, merged, options or {})
    if full and (unknown := sorted(set(given) - set(full) - set(inner))):
        told = _told(full, inner)
        raise ValueError(f"{key} has no width {', '.join(unknown)}; widths are {told}")
    followed = {name for name, owner in inner.items() if merged.get(name) == merged[owner]}
    return {name: width for name, width in merged.items() if name not in followed}


def _traced_widths(
    key: str, traced: Traced, widths: int | Mapping[str, int], options: Mapping[str, Any]
) -> dict[str, int]:
    """All widths of a traced network, where some are given."""
    if not widths:
        return {}
    found = traced.groups({}, options)
    sizes = {group.widths[0]: group.size for group in found.groups}
    if isinstance(widths, int):
        raise ValueError(f"{key}: give each width by name; widths are {_few(sizes)}")
    for name in widths:
        if name in found.fixed and name not in sizes:
            raise ValueError(f"{key}: {name} cannot change, because of {found.fixed[name]}")
        if name not in sizes:
            raise ValueError(f"{key} has no width {name}; widths are {_few(sizes)}")
    return {**sizes, **widths}


def _owners(key: str, widths: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, str]:
    """The inner widths of a builder, each with the one among `widths` that it follows."""
    builder = find_builder(key)
    names = builder.inner_names(options)
    own = builder.default_widths(options) if names else {}
    owners: dict[str, str] = {}
    for name in (name for name in names if name not in own):
        owner = owner_of(name, widths)
        if owner is None:
            raise ValueError(
                f"inner width {name!r} of {key} follows no width: a name is STAGE.LAYER, where the "
                f"stage is a width, or one and a number (group1_1); widths are {', '.join(widths)}"
            )
        owners[name] = owner
    return owners


def _told(widths: Iterable[str], inner: Iterable[str]) -> str:
    """Names of widths for a message; of many inner ones the first and the last."""
    within = list(inner)
    told = _few([name for name in widths if name not in within], most=3 * _LISTED)
    if len(within) > _LISTED:
        return f"{told}, and {len(within)} inner ones, {within[0]} ... {within[-1]}"
    return f"{told}, and inner ones, {', '.join(within)}" if within else told


def _few(names: Iterable[str], most: int = _LISTED) -> str:
    """Names for a message; of many the first and the last."""
    every = list(names)
    if len(every) <= most:
        return ", ".join(every)
    return f"{', '.join(every[: most - 1])}, ... {every[-1]} ({len(every)})"


def inner_widths(architecture: Architecture) -> dict[str, str]:
    """The owner of each inner width of an architecture, by name: what it is as wide as unless it is
    given. Raises ValueError as `full_widths` does."""
    key, options = architecture.builder, architecture.options
    return _owners(key, full_widths(key, architecture.widths, options), options)


def free_widths(architecture: Architecture) -> dict[str, int]:
    """Every width that can be set of an architecture's builder, by its finest name: those of
    `full_widths`, then the inner ones, which are their owners' unless given. Raises ValueError as
    `full_widths` does."""
    full = full_widths(architecture.builder, architecture.widths, architecture.options)
    if (traced := find_builder(architecture.builder).traced) is not None:
        return {**traced.sizes(architecture.options), **full}
    inner = inner_widths(architecture)
    owners = {name: width for name, width in full.items() if name not in inner}
    return {**owners, **{name: width_in(full, name) for name in inner}}


def traced_groups(architecture: Architecture) -> Found | None:
    """The groups of channels of a network that was not written for planter, without its pipelines,
    and the layers that cannot change, with the reasons; None for any other network. Raises
    ValueError where it cannot be traced."""
    traced = find_builder(architecture.builder).traced
    if traced is None:
        return None
    return traced.groups(free_widths(architecture), architecture.options)


def told_widths(architecture: Architecture) -> str:
    """The names of an architecture's free widths, for a message."""
    return _told(free_widths(architecture), inner_widths(architecture))


def canonical(architecture: Architecture) -> Architecture:
    """The same network without inner widths that are their owners': equal networks have equal
    keys. Raises ValueError as `full_widths` does."""
    given = architecture.widths
    if not any("." in name for name in given) and not is_traced(architecture):
        return architecture
    full = full_widths(architecture.builder, given, architecture.options)
    return replace(architecture, widths={name: given[name] for name in given if name in full})


def with_data_options(
    architecture: Architecture, classes: int, image: Sequence[int]
) -> Architecture:
    """The architecture with every width named, but for inner ones that are their owners', and the
    data's facts (`classes`, `image`) put in."""
    options = {**architecture.options, "classes": classes, "image": list(image)}
    widths = full_widths(architecture.builder, architecture.widths, options)
    return Architecture(architecture.builder, widths, options, architecture.pipelines)


def build_backbone(architecture: Architecture, seed: int = 0) -> nn.Module:
    """A freshly initialised network of the architecture, without its pipelines.

    The initial weights depend on `seed` alone. `classes` and `image` are kept in every
    architecture and passed on to builders that take them. Raises ValueError for an unknown
    builder, width or option and for an image the builder cannot take.
    """
    builder = find_builder(architecture.builder)
    takes = builder.options()
    if builder.takes_any():
        takes = set(architecture.options)
    if unknown := sorted(set(architecture.options) - takes - _DATA_OPTIONS):
        raise ValueError(
            f"{architecture.builder} has no option {', '.join(unknown)}; "
            f"options are {', '.join(sorted(takes))}"
        )
    options = {name: value for name, value in architecture.options.items() if name in takes}
    widths = full_widths(architecture.builder, architecture.widths, architecture.options)
    every = widths if builder.traced is not None else free_widths(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return builder.function(every, **options)
        except ValueError:
            raise
        except Exception as error:  # a builder may be the user's code, its options are
            raise ValueError(
                f"{architecture.builder} cannot be built with "
                f"{f'widths {widths} and ' if widths else ''}options "
                f"{options}: {type(error).__name__}: {error}"
            ) from error
