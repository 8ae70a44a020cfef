"""Plain networks of a user's: a class or function that returns an `nn.Module`, or one at hand."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from planter.backbones.staged import StagedNet

Made = Callable[..., nn.Module] | nn.Module
"""What a plain network is made by: a class, a function, or a network, of which copies are taken."""

NETWORKS: dict[str, Made] = {}
"""Plain networks that were given in Python (`planter.search(study, networks=...)`), by name."""

# The names under which networks ask for what the data know, and of what it is made.
_CLASSES = ("classes", "num_classes", "n_classes")
_CHANNELS = ("in_channels", "in_chans", "input_channels")
_FACTS = ("classes", "image")


def is_plain(made: Any) -> bool:
    """Whether something is a plain network or makes one: it takes no `widths`, and has none."""
    if isinstance(made, nn.Module):
        return True
    if not callable(made) or (hasattr(made, "widths") and not isinstance(made, type)):
        return False
    return "widths" not in _parameters(made)


def plain_net(made: Made, place: str) -> Callable[..., nn.Module]:
    """A builder function of a plain network. It hands on those of the data's facts and of a
    study's options that the class or function takes: the number of classes as `classes`,
    `num_classes` or `n_classes`, channels of an image as `in_channels`, `in_chans` or
    `input_channels`, the whole shape as `image`.

    Raises ValueError where what is returned is no network; `place` is its name in messages.
    """
    takes = {} if isinstance(made, nn.Module) else _parameters(made)

    def build(widths: Mapping[str, int], **options: Any) -> nn.Module:
        if isinstance(made, nn.Module):
            return whole(copy.deepcopy(made))
        known = dict.fromkeys(_CLASSES, options.get("classes"))
        if (image := options.get("image")) is not None:
            known |= {"image": image, **dict.fromkeys(_CHANNELS, image[0])}
        given = {name: known[name] for name in takes if known.get(name) is not None}
        given |= {name: value for name, value in options.items() if name not in _FACTS}
        network: object = made(**given)
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"{place} returned {type(network).__name__}, expected a network: a class or "
                "function that returns a torch.nn.Module"
            )
        return whole(network)

    vars(build)["__signature__"] = _signature(takes)
    vars(build)["__wrapped__"] = made
    return build


def whole(network: nn.Module) -> nn.Module:
    """The network, marked as one without stages, whatever it calls its parts: what a network that
    was not written for planter calls `stages` and `head` need not be all that it does."""
    if not isinstance(network, StagedNet):
        network.without_stages = True  # type: ignore[assignment]
    return network


def network_of(function: Callable[..., nn.Module]) -> nn.Module | None:
    """The network of which a builder function takes copies, if it is such a one."""
    made = vars(function).get("__wrapped__")
    return made if isinstance(made, nn.Module) else None


def weights_key(network: nn.Module) -> bytes:
    """What a network that is given as it is has learned: its source does not tell."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.digest()


def register(networks: Mapping[str, Made], known: Mapping[str, Any]) -> None:
    """Makes plain networks known in this process by their names. Raises ValueError for a name that
    is taken, and for what is no network and makes none."""
    for name, made in networks.items():
        if name in known or ":" in name or not name:
            raise ValueError(
                f"networks: {name!r} is the name of another builder; expected one without ':' "
                f"that is none of {', '.join(known)}"
            )
        if not isinstance(made, nn.Module) and not callable(made):
            raise ValueError(
                f"networks: {name!r} is {type(made).__name__}, expected a torch.nn.Module, or a "
                "class or function that returns one"
            )
    NETWORKS.update(networks)


def _parameters(made: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """By name; none where Python cannot tell."""
    try:
        return dict(inspect.signature(made).parameters)
    except (ValueError, TypeError):
        return {}


def _signature(takes: Mapping[str, inspect.Parameter]) -> inspect.Signature:
    """What `build` takes: `widths`, the data's facts, and what the network's own maker takes."""
    kind = inspect.Parameter
    names = [n for n, p in takes.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    found = [kind("widths", kind.POSITIONAL_OR_KEYWORD)]
    found += [kind(n, kind.KEYWORD_ONLY) for n in dict.fromkeys([*_FACTS, *names])]
    if any(p.kind == p.VAR_KEYWORD for p in takes.values()):
        found.append(kind("options", kind.VAR_KEYWORD))
    return inspect.Signature(found)
