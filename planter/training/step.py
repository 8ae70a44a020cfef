"""One step of a training: the place of all that concerns a single update of weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from planter.kernels.filters import kernel_decay


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    *,
    lr: float,
    kernel_weight_decay: float = 0.0,
    expanded: bool = True,
) -> Tensor:
    """Updates the optimiser's parameters at a learning rate; the loss before, a detached number.

    Generated kernels decay by `kernel_weight_decay` in the loss (KFLO, sec. 3.3: their factors do
    not). A model that is not `expanded` has none, and may take its steps beside others in threads.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    # Each generated kernel is computed once a step, for the network and for its decay.
    with parametrize.cached() if expanded else nullcontext():
        value = loss()
        decayed = value
        if kernel_weight_decay and (decay := kernel_decay(model)) is not None:
            decayed = value + kernel_weight_decay * decay
        decayed.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value.detach()
