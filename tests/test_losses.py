from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from planter.losses import classification_loss, distillation_loss, multi_pipeline_loss

Array = NDArray[np.float64]


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    batch, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    return rng.normal(size=(batch, classes)) * scale, rng.normal(size=(batch, classes)) * scale


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(student: Array, teacher: Array, temperature: float) -> float:
    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return float(temperature**2 * (np.exp(p) * (p - q)).sum(axis=1).mean())


def entropy_loss(logits: Array, labels: Array) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def close(found: torch.Tensor, expected: float) -> bool:
    # Differences of logarithms of size 100 at most, in float64.
    return float(found) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(logit_pairs(), st.floats(0.5, 8))
def test_distillation_is_the_scaled_divergence(pair: tuple[Array, Array], t: float) -> None:
    student, teacher = (torch.from_numpy(a) for a in pair)
    assert close(distillation_loss(student, teacher, t), divergence(*pair, t))


@given(logit_pairs(), st.floats(0.5, 8), st.floats(-5, 5))
def test_distillation_is_zero_where_the_distributions_agree(
    pair: tuple[Array, Array], t: float, shift: float
) -> None:
    student = torch.from_numpy(pair[0])
    assert float(distillation_loss(student, student.clone(), t)) == 0.0
    # A constant added to all logits changes no probability.
    assert abs(float(distillation_loss(student, student + shift, t))) < 1e-12


@given(logit_pairs(), st.floats(0.5, 8))
def test_distillation_pulls_the_student_by_the_difference_of_probabilities(
    pair: tuple[Array, Array], t: float
) -> None:
    student, teacher = (torch.from_numpy(a).requires_grad_() for a in pair)
    distillation_loss(student, teacher, t).backward()
    q, p = np.exp(log_softmax(pair[0] / t)), np.exp(log_softmax(pair[1] / t))
    expected = t * (q - p) / len(q)  # T^2 of the loss, 1/T of the chain rule
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert teacher.grad is None


@given(logit_pairs(), st.floats(0, 3), st.floats(0.1, 3), st.floats(0.5, 4))
def test_classification_loss_weighs_its_two_terms(
    pair: tuple[Array, Array], ce: float, kd: float, t: float
) -> None:
    labels = np.arange(len(pair[0])) % pair[0].shape[1]
    student, teacher = (torch.from_numpy(a) for a in pair)
    found = classification_loss(
        student, torch.from_numpy(labels), teacher, ce_weight=ce, kd_weight=kd, temperature=t
    )
    assert close(found, ce * entropy_loss(pair[0], labels) + kd * divergence(*pair, t))


@given(
    st.lists(st.floats(0, 5), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01),
    st.sampled_from(["sum", "mean"]),
    st.sampled_from([0.0, 0.7]),
    st.integers(0, 2**16),
)
def test_several_pipelines_are_the_weighted_sum_or_mean(
    weights: list[float], reduction: str, kd: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    names = ["base", "cut2", "cut7"]
    arrays = {name: rng.normal(size=(4, 3)) for name in names}
    teacher, labels = rng.normal(size=(4, 3)), rng.integers(0, 3, size=4)
    each = [
        entropy_loss(arrays[name], labels) + kd * divergence(arrays[name], teacher, 2.0)
        for name in names
    ]
    total = sum(w * loss for w, loss in zip(weights, each, strict=True))
    found = multi_pipeline_loss(
        {name: torch.from_numpy(a) for name, a in arrays.items()},
        torch.from_numpy(labels),
        torch.from_numpy(teacher),
        weights=dict(zip(names, weights, strict=True)),
        reduction=reduction,
        kd_weight=kd,
        temperature=2.0,
    )
    assert close(found, total / sum(weights) if reduction == "mean" else total)


def test_pipelines_without_a_weight_count_once() -> None:
    rng = np.random.default_rng(0)
    a, b, labels = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), np.array([0, 1, 2, 0])
    logits = {"base": torch.from_numpy(a), "cut2": torch.from_numpy(b)}
    ce_a, ce_b = entropy_loss(a, labels), entropy_loss(b, labels)
    y = torch.from_numpy(labels)
    assert close(multi_pipeline_loss(logits, y), ce_a + ce_b)
    assert close(multi_pipeline_loss(logits, y, weights={"cut2": 3.0}), ce_a + 3 * ce_b)
    mean = multi_pipeline_loss(logits, y, weights={"cut2": 3.0}, reduction="mean")
    assert close(mean, (ce_a + 3 * ce_b) / 4)


def test_a_pipeline_of_weight_zero_gets_no_gradient() -> None:
    a, b = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([0, 1])
    multi_pipeline_loss({"base": a, "cut2": b}, labels, weights={"cut2": 0.0}).backward()
    assert a.grad.any()
    assert b.grad is None


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"cut9": 1.0}, r"weights name cut9; pipelines are base, cut2"),
        ({"base": -1.0}, ">= 0"),
        ({"base": 0.0, "cut2": 0.0}, "one above 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float], words: str) -> None:
    logits = {"base": torch.zeros(2, 3), "cut2": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=words):
        multi_pipeline_loss(logits, torch.tensor([0, 1]), weights=weights)


def test_distilling_without_a_teacher_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"kd_weight 0.5 needs the teacher"):
        classification_loss(torch.zeros(2, 3), torch.tensor([0, 1]), kd_weight=0.5)
