from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from planter.training.losses import (
    classification_loss,
    distillation_loss,
    full_weights,
    multi_pipeline_loss,
    synergy_loss,
)

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
        ({"cut2": math.nan}, ">= 0"),
        ({"cut2": math.inf}, ">= 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float], words: str) -> None:
    logits = {"base": torch.zeros(2, 3), "cut2": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=words):
        multi_pipeline_loss(logits, torch.tensor([0, 1]), weights=weights)
    with pytest.raises(ValueError, match=words):
        full_weights(logits, weights)


def test_distilling_without_a_teacher_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"kd_weight 0.5 needs the teacher"):
        classification_loss(torch.zeros(2, 3), torch.tensor([0, 1]), kd_weight=0.5)


def test_a_teacher_of_other_classes_or_images_is_refused() -> None:
    logits, labels = {"base": torch.zeros(2, 3)}, torch.tensor([0, 1])
    for teacher in (torch.zeros(2, 4), torch.zeros(1, 3), torch.zeros(3)):
        with pytest.raises(ValueError, match="both need the same images and classes"):
            multi_pipeline_loss(logits, labels, teacher, kd_weight=1.0)
    # Nobody learns from it.
    multi_pipeline_loss(logits, labels, torch.zeros(2, 4))


def soft_loss(guide: Array, pupil: Array) -> float:
    """Cross-entropy of the pupil under the guide's probabilities, by loops (DKS, L_mn)."""
    total = 0.0
    for g, p in zip(guide, pupil, strict=True):
        weights, denominator = np.exp(g - g.max()), np.log(np.exp(p - p.max()).sum()) + p.max()
        total += sum(
            -w * (x - denominator) for w, x in zip(weights / weights.sum(), p, strict=True)
        )
    return float(total / len(guide))


# Classifiers by depth, and where `base`, the deepest, stands in the mapping does not matter.
ORDERS = [["x1", "base"], ["base", "x1"], ["x1", "x2", "base"], ["x1", "base", "x2"],
          ["base", "x1", "x2"], ["x1", "base", "x2", "x3"]]  # fmt: skip


def pairs_of(names: list[str], strategy: str) -> list[tuple[str, str]]:
    """Ordered pairs (guide, pupil)."""
    deep = {name: (name == "base", name) for name in names}
    wanted = {
        "top_down": lambda guide, pupil: deep[guide] > deep[pupil],
        "bottom_up": lambda guide, pupil: deep[guide] < deep[pupil],
        "bidirectional": lambda guide, pupil: True,
    }[strategy]
    return [pair for pair in permutations(names, 2) if wanted(*pair)]


@given(
    names=st.sampled_from(ORDERS),
    strategy=st.sampled_from(["top_down", "bottom_up", "bidirectional"]),
    weighted=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_synergy_is_the_sum_over_its_pairs(
    names: list[str], strategy: str, weighted: bool, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=(4, 3)) * scale for name in names}
    pairs = pairs_of(names, strategy)
    count = len(names) * (len(names) - 1)
    assert len(pairs) == (count if strategy == "bidirectional" else count // 2)
    # Some pairs without a weight count once.
    weights = {pair: float(rng.uniform(0, 2)) for pair in pairs[::2]} if weighted else {}
    expected = sum(weights.get(p, 1.0) * soft_loss(arrays[p[0]], arrays[p[1]]) for p in pairs)
    logits = {name: torch.from_numpy(a) for name, a in arrays.items()}
    assert close(synergy_loss(logits, strategy, weights or None), expected)


@pytest.mark.parametrize("names", [["x1", "base", "x2", "x3"]])
def test_a_pair_teaches_its_pupil_alone(names: list[str]) -> None:
    """The gradient of one pair: (q - p) / batch for the pupil, none for the guide."""
    rng = np.random.default_rng(1)
    arrays = {name: rng.normal(size=(4, 3)) for name in names}
    pairs = list(permutations(names, 2))
    for guide, pupil in pairs:
        logits = {name: torch.from_numpy(a).requires_grad_() for name, a in arrays.items()}
        weights = {pair: float(pair == (guide, pupil)) for pair in pairs}
        synergy_loss(logits, "bidirectional", weights).backward()
        p, q = (np.exp(log_softmax(arrays[name])) for name in (guide, pupil))
        for name, x in logits.items():
            expected = (q - p) / 4 if name == pupil else np.zeros((4, 3))
            np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_the_directions_of_synergy_are_those_of_their_names() -> None:
    arrays = {name: torch.randn(4, 3, dtype=torch.float64) for name in ("base", "x1", "x2")}
    for strategy, never_guided in (("top_down", "base"), ("bottom_up", "x1")):
        logits = {name: x.clone().requires_grad_() for name, x in arrays.items()}
        synergy_loss(logits, strategy).backward()
        guided = {name for name, x in logits.items() if x.grad is not None and x.grad.any()}
        assert guided == {"base", "x1", "x2"} - {never_guided}


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        (["base"], {}, "two classifiers or more, got base"),
        ([], {}, "got none"),
        (["x1", "base"], {"strategy": "sideways"}, "top_down, bottom_up, bidirectional, got 'side"),
        (["x1", "base"], {"weights": {("x1", "x9"): 1.0}}, "no pair .*'x1', 'x9'"),
        (
            ["x1", "base"],
            {"strategy": "top_down", "weights": {("x1", "base"): 1.0}},
            r"no pair \('x1', 'base'\) of \(guide, pupil\) in top_down",
        ),
    ],
)
def test_a_synergy_of_nothing_is_refused(
    names: list[str], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        synergy_loss({name: torch.zeros(2, 3) for name in names}, **settings)


SETTINGS: dict[str, dict[str, Any]] = {
    # What DKS compares (section 4.5 of facts.md): C1 is the network's own classifier.
    "C1": {"kd_weight": {"base": 0.9}, "weights": {"x1": 0.0, "x2": 0.0}},
    "C1+DS": {"kd_weight": {"base": 0.9}},
    "C2C3+DS": {"kd_weight": {"x1": 0.9, "x2": 0.9}},
    "DKS": {"synergy": "bidirectional"},
    "all": {
        "kd_weight": 0.9, "synergy": "top_down", "synergy_weight": 0.3, "weights": {"x2": 0.5},
        "reduction": "mean",
    },
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_settings_of_dks_are_their_sums(setting: str) -> None:
    rng = np.random.default_rng(3)
    base, x1, x2, teacher = (rng.normal(size=(5, 4)) for _ in range(4))
    labels = rng.integers(0, 4, size=5)
    ce = [entropy_loss(a, labels) for a in (base, x1, x2)]
    kd = [0.9 * divergence(a, teacher, 3.0) for a in (base, x1, x2)]
    both = [(x1, base), (x2, base), (x1, x2)]
    expected = {
        "C1": ce[0] + kd[0],
        "C1+DS": sum(ce) + kd[0],
        "C2C3+DS": sum(ce) + kd[1] + kd[2],
        "DKS": sum(ce) + sum(soft_loss(a, b) + soft_loss(b, a) for a, b in both),
        # The mean is that of the losses; the synergy is not divided.
        "all": (ce[0] + kd[0] + ce[1] + kd[1] + 0.5 * (ce[2] + kd[2])) / 2.5
        + 0.3 * sum(soft_loss(deep, shallow) for shallow, deep in both),
    }
    found = multi_pipeline_loss(
        {"x2": torch.from_numpy(x2), "base": torch.from_numpy(base), "x1": torch.from_numpy(x1)},
        torch.from_numpy(labels),
        torch.from_numpy(teacher),
        temperature=3.0,
        exits=["x1", "x2"],
        **SETTINGS[setting],
    )
    assert close(found, expected[setting])


def test_entries_take_no_part_in_synergy() -> None:
    logits = {name: torch.randn(4, 3).double() for name in ("base", "cut2", "exit")}
    labels = torch.tensor([0, 1, 2, 0])
    added = multi_pipeline_loss(logits, labels, exits=["exit"], synergy="bottom_up")
    added = added - multi_pipeline_loss(logits, labels)
    assert close(added, soft_loss(logits["exit"].numpy(), logits["base"].numpy()))


def test_distillation_of_pipelines_that_are_not_there_is_refused() -> None:
    logits, labels = {"base": torch.zeros(2, 3)}, torch.tensor([0, 1])
    with pytest.raises(ValueError, match="kd_weight name cut9; pipelines are base"):
        multi_pipeline_loss(logits, labels, torch.zeros(2, 3), kd_weight={"cut9": 1.0})
    with pytest.raises(ValueError, match=r"kd_weight 0.5 needs the teacher"):
        multi_pipeline_loss(logits, labels, kd_weight={"base": 0.5})


@pytest.mark.parametrize(
    "settings",
    [
        {"reduction": "avg"},
        {"kd_weight": math.nan},
        {"kd_weight": -1.0},
        {"kd_weight": {"cut2": -1.0}},
        {"exits": ["x9"], "synergy": "top_down"},
        {"exits": ["cut2"], "synergy": "top_down", "synergy_weight": -1.0},
        {"exits": ["cut2"], "synergy": "top_down", "synergy_weight": math.nan},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    logits = {"base": torch.zeros(2, 3), "cut2": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=r"reduction|kd_weight|exits|x9|synergy_weight"):
        multi_pipeline_loss(logits, torch.tensor([0, 1]), torch.zeros(2, 3), **settings)


def test_synergy_without_the_base_is_refused() -> None:
    logits = {"x1": torch.zeros(2, 3), "x2": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="base"):
        multi_pipeline_loss(
            logits, torch.tensor([0, 1]), exits=["x1", "x2"], synergy="bidirectional"
        )
