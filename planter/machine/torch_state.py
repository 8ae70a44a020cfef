"""How a model is run: torch as a fresh process has it, all left as it was found, or for its shapes
alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode within the block; afterwards every part has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


class ShapesOnly(TorchFunctionMode):
    """Within it, networks without numbers make no more of a ReLU, a batch norm or the sum of two
    maps of one shape than a tensor of that shape.

    They change no shape, and torch, which works shapes out in Python on its meta device, takes most
    of a forward pass for them: of a resnet in eval mode four fifths for its batch norms.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        rectifies = function in (functional.relu, torch.relu) and len(args) == 1
        rectifies = rectifies and not kwargs.get("inplace")
        rectifies = rectifies and args[0].is_meta
        if rectifies or _normalises(function, args, kwargs) or _adds(function, args, kwargs):
            return torch.empty_like(args[0])  # one of its own: what follows may write to it
        return function(*args, **kwargs)


def _normalises(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call is a batch norm in eval mode of a map without numbers that fits its
    statistics: of another one torch is to say what is wrong."""
    if function is not functional.batch_norm or len(args) < 3 or not args[0].is_meta:
        return False
    if kwargs.get("training", len(args) > 5 and args[5]):
        return False
    image, known = args[0], (*args[1:5], kwargs.get("weight"), kwargs.get("bias"))
    return image.dim() > 1 and all(
        values is None or (values.dim() == 1 and len(values) == image.shape[1]) for values in known
    )


def _adds(function: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if function not in (torch.add, Tensor.add, Tensor.__add__) or kwargs or len(args) != 2:
        return False
    one, other = args
    both = isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_meta and other.is_meta
    return both and one.shape == other.shape and one.dtype == other.dtype


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """So many threads for torch's operators within the block; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def plain_torch() -> Iterator[None]:
    """torch as a fresh process has it within the block, whatever the caller's notebook has set:
    float32 and the CPU where nothing else is said, gradients, no autocast. Afterwards as before.

    Without it a training depends on who calls: under `no_grad` it has no gradients, and a default
    of float64 meets images of float32.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))  # else each call of torch would pass by it
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def remove_parametrization_(module: nn.Module, tensor: str) -> None:
    """Makes a parametrized tensor the plain parameter it computes.

    A deep copy shares the class torch generated for the original, and torch removes the property
    from that class: without a class of its own, the other copy would lose its tensor as well.
    """
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
