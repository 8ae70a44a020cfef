"""From an architecture, which is data, to its network with all pipelines."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.backbones import build_backbone, is_known
from planter.machine.torch_state import ShapesOnly
from planter.networks.branches import branch
from planter.networks.cut_points import (
    Cut,
    backbone_without_data,
    cuts,
    find_entry,
    find_exit,
    image_of,
    is_staged,
    stage_names,
    staged,
)
from planter.networks.image_heads import image_head
from planter.networks.logits import check_logits
from planter.networks.norms import NormMode
from planter.networks.pipelines import Entry, Exit, Pipelines

# What the data of a pipeline may say, by the word that tells its kind.
_KEYS: dict[str, dict[str, type]] = {
    "before": {"before": str, "kernel": int, "stride": int, "norm": str},
    "after": {"after": str, "branch": str},
    "head": {"head": str, "residual": bool},
}
_KINDS = {str: "a text", int: "a whole number", bool: "true or false"}


def build(architecture: Architecture, seed: int = 0, norms: NormMode = "switch_stats") -> nn.Module:
    """The network of an architecture, freshly initialised from `seed`: its backbone, or `Pipelines`
    around it where the architecture has pipelines. The data of a pipeline says what it is:

    - `{"before": CUT, "kernel": 4, "stride": 2, "norm": "batch"}`: a sub-model behind a step-down
      convolution. CUT is an alias (`cut2`), a stage or a group of stages (`cut_points.py`), by
      default the pipeline's own name; the stride is by default that of what was cut, the kernel
      the stride.
    - `{"after": CUT, "branch": "blocks"}`: an auxiliary branch (`branches.py`); by default
      "blocks" where the family has it, else "rest".
    - `{"head": "fsrcnn", "residual": True}`: an image head before the first stage
      (`planter.networks.image_heads`).

    Raises ValueError where the builder or a pipeline cannot be built, naming it.
    """
    backbone = build_backbone(architecture, seed)
    if not architecture.pipelines:
        return backbone
    return _around(backbone, architecture, seed, norms)


def build_without_data(architecture: Architecture, norms: NormMode = "switch_stats") -> nn.Module:
    """The network of an architecture on torch's meta device: shapes without numbers."""
    backbone = backbone_without_data(architecture)
    if not architecture.pipelines:
        return backbone
    with torch.device("meta"):
        return _around(backbone, architecture, 0, norms).to("meta")


def build_network(architecture: Architecture, pipeline: str = "base", seed: int = 0) -> nn.Module:
    """One pipeline of an architecture as the plain network that is saved, planted and shipped."""
    if pipeline == "base":
        architecture = replace(architecture, pipelines={})  # a branch may be larger than the base
    network = build(architecture, seed)
    if not isinstance(network, Pipelines):
        network = Pipelines(network, {})
    # A copy takes as long as the building; a user's own function may return one network each time.
    return network.detach(pipeline, spent=is_known(architecture.builder))


def code_called(architecture: Architecture) -> list[str]:
    """The functions of the user's own ("my_pkg.nets:build") that `build` would call."""
    heads = [str(spec["head"]) for spec in architecture.pipelines.values() if "head" in spec]
    builder = [] if is_known(architecture.builder) else [architecture.builder]
    return [*builder, *(place for place in heads if ":" in place)]


def step_down(
    in_channels: int, out_channels: int, *, kernel: int, stride: int, norm: str = "batch"
) -> nn.Sequential:
    """CNSN's step-down convolution (sec. 2.1) with its own norm ("batch" or "none") and ReLU.

    A kernel as large as the stride needs no padding; a larger one is padded so that the output is
    still the input's size over the stride, where the stride divides it.
    """
    if stride < 1 or kernel < stride:
        raise ValueError(f"step-down needs kernel >= stride >= 1, got {kernel} and {stride}")
    if stride == 1 and kernel % 2 == 0:
        raise ValueError(f"step-down with stride 1 needs an odd kernel, got {kernel}")
    if norm not in ("batch", "none"):
        raise ValueError(f"step-down norm is 'batch' or 'none', got {norm!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    padding = (kernel - stride + 1) // 2
    layers["conv"] = nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding, bias=norm == "none"
    )
    if norm == "batch":
        layers["norm"] = nn.BatchNorm2d(out_channels)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def check_architecture(architecture: Architecture, images: Tensor | None = None) -> None:
    """Raises ValueError, naming the pipeline, unless every pipeline of the architecture takes an
    image and gives `classes` logits. Costs no arithmetic but, for a builder of the user's own, two
    passes of `images` `[n, channels, height, width]`, by default one of noise, to see that it gives
    logits, and that its stages and head are all it does."""
    image_of(architecture)
    if is_known(architecture.builder) and not code_called(architecture):
        _known_to_fit(architecture)
    else:
        _check(architecture, images)


def _check(architecture: Architecture, images: Tensor | None = None) -> None:
    image = image_of(architecture)
    classes = architecture.options.get("classes")
    if not is_known(architecture.builder):
        noise = torch.rand(1, *image, device="cpu") if images is None else images
        _check_forward(architecture, noise)
    network = build_without_data(architecture).eval()
    if not isinstance(network, Pipelines):
        network = Pipelines(network, {})
    blank = torch.empty(1, *image, device="meta")
    for name in network.names:
        try:
            with ShapesOnly():
                logits = network(blank, [name])[name]
        except RuntimeError as error:
            raise _refusal(architecture, name, error) from error
        check_logits(logits, blank, classes, _place(architecture, name))


def _place(architecture: Architecture, pipeline: str) -> str:
    return f"pipeline {pipeline} of {architecture.builder}"


def _refusal(architecture: Architecture, pipeline: str, error: Exception) -> ValueError:
    """What is told of a pipeline whose forward pass has failed."""
    shown = "x".join(map(str, image_of(architecture)))
    what = architecture.pipelines.get(pipeline)
    return ValueError(
        f"{_place(architecture, pipeline)} cannot take a {shown} image"
        f"{f' with {dict(what)}' if what else ''}: {error}"
    )


# A check, a space and a bound ask for the same networks one after another.
_known_to_fit = lru_cache(maxsize=1024)(_check)


def takes_stride(architecture: Architecture, before: str, stride: int) -> bool:
    """Whether the rest of the network accepts a step-down of that stride at the cut."""
    plain = replace(architecture, pipelines={})
    if is_known(architecture.builder):
        return _known_to_take(plain, before, stride)
    return _takes_stride(plain, before, stride)


def _takes_stride(architecture: Architecture, before: str, stride: int) -> bool:
    probe = Architecture(
        architecture.builder,
        architecture.widths,
        architecture.options,
        {"probe": {"before": before, "stride": stride, "kernel": stride}},
    )
    try:
        check_architecture(probe)
    except ValueError:
        return False
    return True


_known_to_take = lru_cache(maxsize=4096)(_takes_stride)


def _around(
    backbone: nn.Module, architecture: Architecture, seed: int, norms: NormMode
) -> Pipelines:
    known = cuts(architecture)
    backbone = staged(backbone)
    ways: dict[str, Entry | Exit] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for name, spec in architecture.pipelines.items():
            try:
                ways[name] = _way(name, spec, architecture, known, stage_names(backbone)[0])
            except ValueError as error:
                raise ValueError(f"pipeline {name}: {error}") from error
        return Pipelines(backbone, ways, norms)


def _way(
    name: str,
    spec: Mapping[str, Any],
    architecture: Architecture,
    known: Mapping[str, Cut],
    first: str,
) -> Entry | Exit:
    kind = next((word for word in ("head", "after") if word in spec), "before")
    if unknown := sorted(set(spec) - set(_KEYS[kind])):
        others = ", ".join(sorted(set(_KEYS[kind]) - {kind}))
        raise ValueError(f"unknown {', '.join(unknown)}; beside {kind!r} known are {others}")
    for key, value in spec.items():
        if type(value) is not _KEYS[kind][key]:
            raise ValueError(f"{key} is {_KINDS[_KEYS[kind][key]]}, got {value!r}")
    image = image_of(architecture)
    if kind == "head":
        head = image_head(spec["head"], image[0], residual=spec.get("residual", True))
        _check_size(head, image)
        return Entry(first, head)
    if kind == "after":
        cut = find_exit(known, spec["after"])
        return Exit(cut.after, branch(architecture, cut.after, cut.channels, spec.get("branch")))
    cut = find_entry(known, spec.get("before", name))
    stride = spec.get("stride", cut.stride)
    kernel, norm = spec.get("kernel", stride), spec.get("norm", "batch")
    return Entry(
        cut.before, step_down(image[0], cut.channels, kernel=kernel, stride=stride, norm=norm)
    )


def _check_forward(architecture: Architecture, images: Tensor) -> None:
    """Raises ValueError where a user's network gives no logits, and where it has stages and a head
    but computes something else than `head(stages(images))`, which is what planter trains and ships.
    """
    with torch.device("cpu"), torch.no_grad():
        network = build_backbone(architecture).eval()
        try:
            whole = network(images)
        except Exception as error:  # the network is the user's code
            raise _refusal(architecture, "base", error) from error
        classes = architecture.options.get("classes")
        check_logits(whole, images, classes, _place(architecture, "base"))
        if not is_staged(network):
            return
        try:
            parts = Pipelines(network, {})(images)["base"]
        except RuntimeError:
            return  # told with its shape by the caller
    if not torch.allclose(whole, parts, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ValueError(
            f"{architecture.builder}: its forward is not head(stages(images)); move what else it "
            "does into a stage, or give the network no attribute called stages"
        )


def _check_size(head: nn.Module, image: tuple[int, int, int]) -> None:
    """Raises ValueError unless an image head keeps the shape of an image."""
    blank = torch.empty(1, *image, device="meta")
    try:
        found = tuple(copy.deepcopy(head).to("meta").eval()(blank).shape[1:])
    except Exception as error:  # a head may be the user's code
        raise ValueError(
            f"its head cannot take an image {image} (is every tensor it holds among its parameters "
            f"or buffers?): {error}"
        ) from error
    if found != image:
        raise ValueError(
            f"its head makes {found} of an image {image}; a head must keep channels and size"
        )
