"""Networks in their training forms: expanded for the training, collapsed to plain ones after.

What a form is, and on which layers it may stand, is its own file's matter (`kernels/forms/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from planter.arch import Architecture
from planter.kernels.blocks import Block, replace_
from planter.kernels.filters import generated, is_conv_or_linear
from planter.kernels.forms import FORMS, Kernels, TrainingForm, form_types, growing_form
from planter.machine.torch_state import remove_parametrization_
from planter.networks.assembly import build_without_data, code_called

Where = Callable[[nn.Module, str], bool]


def expand_kernels_(
    model: nn.Module, form: Kernels, where: Where | None = None, seed: int = 0
) -> nn.Module:
    """Gives every layer `where(module, name)` accepts its training form, in place.

    `KernelFilter` and `DOConv` keep each layer's type, its readable `.weight` and `.bias` and the
    function it computes. `AsymmetricBlock` and `FeatureFilter` replace convolutions by blocks that
    start as another function. Without `where` a form takes the layers it is made for: see
    `is_cheap_to_filter` for KFLO; the others take convolutions with a kernel larger than 1,
    ACNet's block square ones of 3 or 5 whose bias or batch norm can take the block's bias in.

    A mapping gives parts of the network forms of their own (None: plain), without `where`: a key is
    the name of a stage, "head", or the full name of any module, within which every layer the form
    can take is expanded.

    `seed` draws the weights that have no value at the start. Raises ValueError, naming the layer,
    before anything is changed: for a layer the form is not made for, one that is lazy, quantised,
    frozen, parametrized already or shares a parameter with another, where no layer is accepted,
    and for a part the network does not have.
    """
    if isinstance(form, Mapping):
        if where is not None:
            raise ValueError("forms by part say where they go: give them without where=")
        chosen = _by_part(model, form)
    else:
        chosen = [(form, _accepted(model, form, where))]
    used = {parameter.device for parameter in model.parameters()}
    with torch.random.fork_rng(devices=[device for device in used if device.type == "cuda"]):
        torch.manual_seed(seed)
        for one, layers in chosen:
            for layer in layers.values():
                one.expand_(model, layer)
    return model


def check_kernels(architecture: Architecture, kernels: Kernels | None) -> None:
    """Raises ValueError where the architecture's network cannot be expanded so."""
    if kernels is not None:
        check = _known_to_expand if are_data(architecture, kernels) else _expand
        check(architecture, kernels)


def _expand(architecture: Architecture, kernels: Kernels) -> None:
    expand_kernels_(build_without_data(architecture), kernels)


# A search asks about the same networks before, while and after it draws them.
_known_to_expand: Callable[[Architecture, Any], None] = lru_cache(maxsize=1024)(_expand)


def are_data(architecture: Architecture, kernels: Kernels | None) -> bool:
    """Whether no code of the user's takes part in an architecture's network in its form, so that
    what was found of them holds: planter's own forms compare by their settings."""
    own = kernels is None or type(kernels) in form_types()
    return own and not code_called(architecture)


def check_growing(architecture: Architecture, form: str) -> None:
    """Raises ValueError where a network that starts as the architecture's cannot grow in the form
    of that short name."""
    check_kernels(architecture, growing_form(form))


def collapse_kernels_(model: nn.Module) -> nn.Module:
    """Writes every generated kernel and bias into its plain layer and forgets the factors: the
    model has its plain state-dict names, in their order, and types again. Blocks are fused as they
    compute in eval mode."""
    for module in list(model.modules()):
        if isinstance(module, Block):
            _fuse_(model, module)
    for module, tensor, _ in generated(model):
        remove_parametrization_(module, tensor)
        if tensor == "weight" and "bias" in module._parameters:
            module._parameters["bias"] = module._parameters.pop("bias")  # weight, then bias
    return model


def _by_part(
    model: nn.Module, forms: Mapping[str, TrainingForm | None]
) -> list[tuple[TrainingForm, dict[str, nn.Module]]]:
    """The layers of each part that its form can take."""
    chosen: list[tuple[TrainingForm, dict[str, nn.Module]]] = []
    parts: dict[str, str] = {}
    places = {part: tuple(f"{name}." for name in _places(model, part)) for part in forms}
    for part, inside in places.items():
        if not inside:
            known = ", ".join(_part_names(model))
            raise ValueError(
                f"the network has no part {part!r} to expand; parts are "
                f"{known}{' or ' if known else ''}the full name of any module"
            )
    plain = tuple(place for part, form in forms.items() if form is None for place in places[part])
    for part, form in forms.items():
        if form is None:
            continue
        inside = places[part]

        def within(
            module: nn.Module,
            name: str,
            form: TrainingForm = form,
            inside: tuple[str, ...] = inside,
        ) -> bool:
            return (
                f"{name}.".startswith(inside)
                and not f"{name}.".startswith(plain)
                and is_conv_or_linear(module, name)
                and _trains(module, form)
                and _unsuited(model, module, form) is None
            )

        layers = _accepted(model, form, within, f"part {part!r} has no layer it can take")
        for name in layers:
            if (other := parts.setdefault(name, part)) != part:
                raise ValueError(f"{name} is in both parts {other!r} and {part!r}")
        chosen.append((form, layers))
    return chosen


def _places(model: nn.Module, part: str) -> list[str]:
    """Full names of a part: as they are, or as a stage or head of a network with stages."""
    known = dict(model.named_modules())
    places = [part] if part in known else []
    for name, module in known.items():
        if hasattr(module, "stages") and hasattr(module, "head"):
            own = "head" if part == "head" else f"stages.{part}"
            places += [place for place in [f"{name}.{own}".lstrip(".")] if place in known]
    return list(dict.fromkeys(places))


def _part_names(model: nn.Module) -> list[str]:
    for module in model.modules():
        stages = getattr(module, "stages", None)
        if isinstance(stages, nn.Module) and hasattr(module, "head"):
            return [*(name for name, _ in stages.named_children()), "head"]
    return []


def _accepted(
    model: nn.Module, form: TrainingForm, where: Where | None, otherwise: str | None = None
) -> dict[str, nn.Module]:
    """The layers to expand by name, each checked; `otherwise` says why there is none."""
    if not isinstance(form, tuple(calls := form_types())):
        *most, last = calls.values()
        example = next(iter(FORMS.values())).example
        raise ValueError(
            f"a training form is {', '.join(most)} or {last}, got {form!r}; "
            f"form_of({example!r}) reads a short name"
        )
    if form.is_plain:
        return {}
    owners: dict[int, str] = {}
    layers, shared = {}, {}
    blocks = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, Block))
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            other = owners.setdefault(id(parameter), name)
            if parameter is not None and other != name:
                shared[name] = shared[other] = (key, other, name)
        # A quantised layer has a method where others have their parameter.
        weight = getattr(module, "weight", None)
        quantised = callable(weight) and not isinstance(weight, nn.Module)
        if where is not None:
            taken = where(module, name)
        else:
            taken = quantised or (_trains(module, form) and form.takes(model, module, name))
        if taken:
            layers[name] = module
    for name, layer in layers.items():
        place = name or "the model itself"
        if name.startswith(blocks):
            raise ValueError(f"{place} is already expanded; collapse_kernels_(model) first")
        if reason := _unusable(layer) or _unsuited(model, layer, form):
            raise ValueError(f"{place} {reason}")
        if name in shared:
            key, *owning = shared[name]
            one, other = (owner or "the model itself" for owner in owning)
            raise ValueError(
                f"{one} and {other} share a parameter ({key}): expanded, they would be two; "
                "leave both out with where="
            )
    if not layers:
        why = "the model has none it is made for" if where is None else "where accepted none"
        raise ValueError(f"no layer to expand as {form}: {otherwise or why}")
    form.check(model)
    return layers


def _trains(module: nn.Module, form: TrainingForm) -> bool:
    """Whether the tensors that a form would make anew are trained."""
    tensors = [getattr(module, name, None) for name in form.makes]
    return all(tensor.requires_grad for tensor in tensors if isinstance(tensor, Tensor))


def _unusable(layer: nn.Module) -> str | None:
    """Why a layer cannot be expanded in any form, None where it can."""
    kind = type(layer).__name__
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
        return f"is a {kind} without a shape yet: run the model once before expanding"
    if callable(getattr(layer, "weight", None)):
        return f"is quantised ({kind}): expand before that, or leave it out with where="
    if isinstance(layer, Block) or parametrize.is_parametrized(layer):
        return "is already expanded or parametrized; collapse_kernels_(model) first"
    if not is_conv_or_linear(layer, ""):
        return f"is a {kind}: only Conv1d/2d/3d, transposed or not, and Linear can be expanded"
    weight = layer._parameters.get("weight")
    if weight is None:
        return f"({kind}) has no parameter weight of its own; undo what computes it first"
    if type(weight.detach()) is not Tensor or not weight.is_floating_point():
        return f"({kind}) has a weight that is no plain float tensor (quantised?)"
    return None


def _unsuited(model: nn.Module, layer: nn.Module, form: TrainingForm) -> str | None:
    """Why a sound layer cannot get this form, None where it can."""
    if not _trains(layer, form):
        kind = type(layer).__name__
        return f"({kind}) does not train (requires_grad is False); leave it out with where="
    return form.unsuited(model, layer)


def _fuse_(model: nn.Module, block: Block) -> None:
    plain = block.plain
    with torch.no_grad():
        kernel, bias = block.fused()
        block.restore_(model, bias)
    plain.weight = nn.Parameter(kernel.detach().clone())
    if plain.bias is not None:
        assert bias is not None
        plain.bias = nn.Parameter(bias.detach().clone())
    plain.train(block.training)
    replace_(model, block, plain)
