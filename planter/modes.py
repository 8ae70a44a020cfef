"""Leaving a model, and torch, as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize


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


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """So many threads for torch's operators within the block; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def remove_parametrization_(module: nn.Module, tensor: str) -> None:
    """Makes a parametrized tensor the plain parameter it computes.

    A deep copy shares the class torch generated for the original, and torch removes the property
    from that class: without a class of its own, the other copy would lose its tensor as well.
    """
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
