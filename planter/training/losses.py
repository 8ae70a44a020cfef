"""Training losses, pure functions of logits (KFLO's kernel decay stands in kernels/filters.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Synergy = Literal["top_down", "bottom_up", "bidirectional"]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`T^2 * KL(softmax(teacher/T) || softmax(student/T))`, batch mean of the sum over classes.

    Both logits are `[batch, classes]`, else ValueError; no gradient reaches the teacher's. The
    formula printed in channel planting's slides lacks the sign and the teacher's entropy; this is
    the divergence.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the teacher gives logits {list(teacher.shape)}, the student {list(student.shape)}: "
            "both need the same images and classes"
        )
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
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """`ce_weight * cross-entropy + kd_weight * distillation_loss` of one pipeline.

    `logits` are `[batch, classes]`, labels indices `[batch]` or, of mixed images, shares
    `[batch, classes]`, which may leave out last classes of which there is nothing. The
    cross-entropy is torch's with `class_weights` `[classes]` (of indices a mean weighted by those
    of the labels) and `label_smoothing`; no image counts where all of a batch weigh 0. Raises
    ValueError where `kd_weight` is not 0 and there are no teacher logits.
    """
    loss = logits.new_zeros(())
    if ce_weight:
        labels = _full(labels, logits)
        loss = loss + ce_weight * _cross_entropy(logits, labels, label_smoothing, class_weights)
    if kd_weight:
        if teacher is None:
            raise ValueError(f"kd_weight {kd_weight} needs the teacher's logits")
        loss = loss + kd_weight * distillation_loss(logits, teacher, temperature)
    return loss


def _full(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels as `cross_entropy` takes them: shares are of all classes, and of the logits' type."""
    if labels.dim() == 1:
        return labels
    missing = max(logits.shape[1] - labels.shape[1], 0)
    return functional.pad(labels, (0, missing)).to(logits.dtype)


def _cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float, class_weights: Tensor | None
) -> Tensor:
    weights = class_weights.to(logits) if class_weights is not None else None
    if weights is None or labels.is_floating_point():
        return functional.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing)
    total = functional.cross_entropy(
        logits, labels, weights, label_smoothing=label_smoothing, reduction="sum"
    )
    counted = weights[labels].sum()
    return total * (counted > 0) / counted.clamp_min(torch.finfo(weights.dtype).tiny)


def multi_pipeline_loss(
    logits: Mapping[str, Tensor],
    labels: Tensor,
    teacher: Tensor | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    kd_weight: float | Mapping[str, float] = 0.0,
    temperature: float = 1.0,
    exits: Sequence[str] = (),
    synergy: Synergy | None = None,
    synergy_weight: float | Mapping[tuple[str, str], float] = 1.0,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """`sum_j W_j * loss_j` over pipelines (CNSN eq. 1, Hu eq. 3, DKS eq. 2), or that over
    `sum_j W_j`; and, with `synergy`, `synergy_weight * synergy_loss` of `base` and its `exits`,
    which are given by depth, or `synergy_loss` with a weight for each (guide, pupil).

    `logits` maps each pipeline to `[batch, classes]`; `weights` default to 1 for each. One
    `kd_weight` stands for every pipeline; a mapping names those that learn from the teacher: DKS
    compares with distillation onto C1 (no exits, or weights of 0), C1 beside deep supervision, and
    onto the exits alone. `label_smoothing` and `class_weights` are of each cross-entropy with the
    labels, as in `classification_loss`, and not of synergy. Raises ValueError for weights of
    pipelines that are not there, negative ones, or none above 0, and for other settings that mean
    nothing.
    """
    full = full_weights(logits, weights)
    check_loss(logits, reduction, kd_weight, temperature, synergy_weight)
    guided = kd_weight if isinstance(kd_weight, Mapping) else dict.fromkeys(logits, kd_weight)
    terms = [
        weight
        * classification_loss(
            logits[name],
            labels,
            teacher,
            kd_weight=guided.get(name, 0.0),
            temperature=temperature,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )
        for name, weight in full.items()
        if weight
    ]
    total = torch.stack(terms).sum()
    if reduction == "mean":
        total = total / sum(full.values())
    if synergy is not None:
        _refuse_unknown("synergy", [*exits, "base"], logits)
        classifiers = {name: logits[name] for name in [*exits, "base"]}
        if isinstance(synergy_weight, Mapping):
            total = total + synergy_loss(classifiers, synergy, synergy_weight)
        else:
            total = total + synergy_weight * synergy_loss(classifiers, synergy)
    return total


def full_weights(
    names: Iterable[str], weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The weight of every pipeline in the loss: 1 unless given. Raises ValueError as above."""
    names, weights = list(names), dict(weights or {})
    _refuse_unknown("weights", weights, names)
    full = {name: float(weights.get(name, 1.0)) for name in names}
    sound = all(weight >= 0 and math.isfinite(weight) for weight in full.values())
    if not sound or not any(full.values()):
        raise ValueError(f"pipeline weights must be >= 0 and one above 0, got {full}")
    return full


def check_loss(
    names: Iterable[str],
    reduction: str,
    kd_weight: float | Mapping[str, float],
    temperature: float,
    synergy_weight: float | Mapping[tuple[str, str], float],
) -> None:
    """Raises ValueError for settings of `multi_pipeline_loss` that mean nothing."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is 'sum' or 'mean', got {reduction!r}")
    if isinstance(kd_weight, Mapping):
        _refuse_unknown("kd_weight", kd_weight, names)
    for what, given in (("kd_weight", kd_weight), ("synergy_weight", synergy_weight)):
        for weight in given.values() if isinstance(given, Mapping) else [given]:
            if not (_is_number(weight) and weight >= 0):
                raise ValueError(f"{what} must be >= 0, got {given!r}")
    if not (_is_number(temperature) and temperature > 0):
        raise ValueError(f"temperature must be above 0, got {temperature!r}")


def synergy_loss(
    logits: Mapping[str, Tensor],
    strategy: Synergy = "bidirectional",
    weights: Mapping[tuple[str, str], float] | None = None,
) -> Tensor:
    """Knowledge synergy between the classifiers of one network (DKS, arXiv 1906.00675, eq. 5).

    The sum over ordered pairs (guide, pupil) of the pupil's cross-entropy under the guide's
    softened labels, `-sum_k softmax(guide)_k log softmax(pupil)_k`, batch mean, temperature 1; no
    gradient reaches the guide. `logits` maps each classifier to `[batch, classes]`, shallow ones
    first; `base`, wherever it stands, is the deepest. `top_down`: the deeper of a pair guides,
    `bottom_up`: the shallower, C (C - 1) / 2 terms for C classifiers; `bidirectional`: both.
    `weights` of pairs are 1 unless given.

    Raises ValueError for fewer than two classifiers, an unknown strategy and pairs that are not
    there.
    """
    deep_last = sorted(logits, key=lambda name: name == "base")  # stable
    if len(deep_last) < 2:
        raise ValueError(
            f"synergy needs two classifiers or more, got {', '.join(logits) or 'none'}"
        )
    upward = list(combinations(deep_last, 2))
    downward = [(deep, shallow) for shallow, deep in upward]
    pairs = {"top_down": downward, "bottom_up": upward, "bidirectional": [*downward, *upward]}
    if strategy not in pairs:
        raise ValueError(f"synergy is {', '.join(pairs)}, got {strategy!r}")
    weights = dict(weights or {})
    if unknown := [pair for pair in weights if pair not in pairs[strategy]]:
        raise ValueError(f"no pair {unknown[0]} of (guide, pupil) in {strategy} of {deep_last}")
    terms = [
        weights.get((guide, pupil), 1.0)
        * functional.cross_entropy(logits[pupil], logits[guide].detach().softmax(dim=1))
        for guide, pupil in pairs[strategy]
    ]
    return torch.stack(terms).sum()


def _refuse_unknown(what: str, given: Iterable[str], names: Iterable[str]) -> None:
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"{what} name {', '.join(unknown)}; pipelines are {', '.join(names)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
