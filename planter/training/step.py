"""One step of a training: the place of all that concerns a single update of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrize

from planter.kernels.filters import kernel_decay


class Part(NamedTuple):
    """Some of a step's images: their loss, and its share in that of the step."""

    loss: Callable[[], Tensor]
    share: float = 1.0


def shares(labels: Sequence[Tensor], weights: Tensor | None) -> list[float]:
    """How much the mean loss of each part of a step counts, where these are their labels: by images
    or, where classes weigh differently, by the `weights` `[classes]` of their images, so that the
    sum is the weighted mean over all of them."""
    sums = [float(len(part)) for part in labels]
    # Of mixed labels torch's mean is over images.
    if weights is not None and not labels[0].is_floating_point():
        sums = torch.stack([weights[part].double().sum() for part in labels]).tolist()
    total = sum(sums) or 1.0
    return [of_part / total for of_part in sums]


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Part],
    *,
    lr: float,
    kernel_weight_decay: float = 0.0,
    expanded: bool = True,
    clip_grad: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Updates the optimiser's parameters at a learning rate; the loss before, a detached number:
    that of one part, or the sum of those of several by their shares, which go through the model
    one after another.

    The norm of all gradients together is at most `clip_grad`. Generated kernels decay by
    `kernel_weight_decay` in the loss (KFLO, sec. 3.3: their factors do not). A model that is not
    `expanded` has none, and may take its steps beside others in threads. A `scaler` keeps small
    gradients of float16 from becoming 0, and leaves out the updates of steps in which it made
    others infinite.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    values = []
    for number, (loss, share) in enumerate(parts):
        # Each generated kernel is computed once a part, for the network and for its decay.
        with parametrize.cached() if expanded else nullcontext():
            value = loss() if len(parts) == 1 else share * loss()
            decayed = value
            decays = kernel_weight_decay and number == 0
            if decays and (decay := kernel_decay(model)) is not None:
                decayed = value + kernel_weight_decay * decay
            scaled = decayed if scaler is None else scaler.scale(decayed)
            scaled.backward()  # type: ignore[no-untyped-call]
        values.append(value.detach())
    if clip_grad is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), clip_grad)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return values[0] if len(values) == 1 else torch.stack(values).sum()
