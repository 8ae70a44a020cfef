"""Training losses as pure functions of logits (KFLO's kernel decay stands in kernels.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`T^2 * KL(softmax(teacher/T) || softmax(student/T))`, batch mean of the sum over classes.

    Both logits are `[batch, classes]`; no gradient reaches the teacher's. The formula printed in
    channel planting's slides lacks the sign and the teacher's entropy; this is the divergence.
    """
    return temperature**2 * functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher.detach() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None = None,
    *,
    ce_weight: float = 1.0,
    kd_weight: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """`ce_weight * cross-entropy + kd_weight * distillation_loss` of one pipeline.

    Raises ValueError where `kd_weight` is not 0 and there are no teacher logits.
    """
    loss = logits.new_zeros(())
    if ce_weight:
        loss = loss + ce_weight * functional.cross_entropy(logits, labels)
    if kd_weight:
        if teacher is None:
            raise ValueError(f"kd_weight {kd_weight} needs the teacher's logits")
        loss = loss + kd_weight * distillation_loss(logits, teacher, temperature)
    return loss


def multi_pipeline_loss(
    logits: Mapping[str, Tensor],
    labels: Tensor,
    teacher: Tensor | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    kd_weight: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """`sum_j W_j * loss_j` over pipelines (CNSN eq. 1, Hu eq. 3), or that over `sum_j W_j`.

    `logits` maps each pipeline to `[batch, classes]`; `weights` default to 1 for each. Raises
    ValueError for weights of pipelines that are not there, negative ones, or none above 0.
    """
    weights = dict(weights or {})
    if unknown := sorted(set(weights) - set(logits)):
        raise ValueError(f"weights name {', '.join(unknown)}; pipelines are {', '.join(logits)}")
    full = {name: float(weights.get(name, 1.0)) for name in logits}
    if min(full.values()) < 0 or sum(full.values()) <= 0:
        raise ValueError(f"pipeline weights must be >= 0 and one above 0, got {full}")
    terms = [
        weight
        * classification_loss(
            logits[name], labels, teacher, kd_weight=kd_weight, temperature=temperature
        )
        for name, weight in full.items()
        if weight
    ]
    total = torch.stack(terms).sum()
    return total / sum(full.values()) if reduction == "mean" else total
