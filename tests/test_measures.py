"""Metrics of answers and how sure they are: against scikit-learn, scipy, closed forms."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics
from torch import nn

import planter
from planter.backbones import full_widths
from planter.data import InMemorySplit
from planter.front.certainty import (
    interval_of,
    paired,
    paired_metric,
    resampled,
    value_text,
    wilson,
)
from planter.front.objectives import OBJECTIVES, directions
from planter.networks import checkpoint
from planter.study.schema import Objectives
from planter.training.answers import Answers
from planter.training.scores import answers, evaluate


def given_answers(labels, predicted, classes):
    """Answers of known labels, their losses made up."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    right = labels == predicted
    losses = np.where(right, 0.25, 2.0)
    return Answers(labels, predicted, right, losses, classes, float(losses.mean()))


_pairs = st.integers(1, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)),
            min_size=1,
            max_size=40,
        ),
    )
)


@given(_pairs)
def test_measures_are_those_of_scikit_learn_also_where_classes_are_missing(drawn):
    classes, pairs = drawn
    labels, predicted = map(list, zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ours shows none
        found = given_answers(labels, predicted, classes)
        ours = found.accuracy, found.balanced_accuracy, found.f1_macro
        counts = found.counts()
        each = counts.precision(), counts.recall(), counts.f1()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ours == (
            metrics.accuracy_score(labels, predicted),
            metrics.balanced_accuracy_score(labels, predicted),
            metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        )
        *theirs, support = metrics.precision_recall_fscore_support(
            labels, predicted, labels=range(classes), zero_division=np.nan
        )
        matrix = metrics.confusion_matrix(labels, predicted, labels=range(classes))
    assert counts.images.tolist() == support.tolist()
    assert found.confusion().tolist() == matrix.tolist()
    for mine, its in zip(each, theirs, strict=True):
        assert mine == pytest.approx(its, nan_ok=True)


@pytest.mark.parametrize("classes", [3, 8])
def test_a_networks_answers_are_what_plain_torch_says(classes):
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(700, 1, 2, 2, generator=draw)  # more than a batch of scoring
    labels = torch.randint(classes, (700,), generator=draw)
    split = InMemorySplit(images, labels, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
    with torch.no_grad():
        logits = net(split.normalise(images))
    found = answers(net, split)
    assert found.predicted.tolist() == logits.argmax(1).tolist()
    assert found.labels.tolist() == labels.tolist()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    assert found.losses == pytest.approx(losses.numpy(), rel=1e-5)
    assert found.loss == pytest.approx(
        metrics.log_loss(labels, logits.double().softmax(1)), rel=1e-5
    )
    top = (
        metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        if classes > 5
        else 1
    )
    assert found.top5 == pytest.approx(top, abs=1e-12)
    assert evaluate(net, split) == (found.accuracy, found.loss)


def test_answers_are_kept_and_a_damaged_file_is_told(tmp_path):
    found = given_answers([0, 1, 299, 2], [0, 2, 299, 1], 300)
    found.save(tmp_path / "predictions.npz")
    kept = Answers.read(tmp_path / "predictions.npz")
    for name in ("labels", "predicted", "among_top", "losses"):
        assert getattr(kept, name).tolist() == getattr(found, name).tolist()
    assert (kept.classes, kept.loss) == (300, found.loss)
    whole = (tmp_path / "predictions.npz").read_bytes()
    (tmp_path / "predictions.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"predictions\.npz is damaged"):
        Answers.read(tmp_path / "predictions.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"]


@given(images=st.integers(1, 60_000), share=st.floats(0, 1))
def test_an_interval_is_wilsons(images, share):
    hits = round(share * images)
    theirs = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert wilson(hits / images, images) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_of_a_mean_loss_is_that_of_the_normal_law():
    rng = np.random.default_rng(3)
    losses = rng.exponential(0.7, 4_000)
    labels = rng.integers(0, 3, 4_000)
    found = Answers(labels, labels, labels == labels, losses, 3, float(losses.mean()))
    low, high = interval_of(found, "loss")
    reach = 1.96 * losses.std() / math.sqrt(4_000)
    assert (low, high) == pytest.approx((losses.mean() - reach, losses.mean() + reach), abs=4e-3)
    assert interval_of(found, "loss") == (low, high)  # its seed is its own
    assert interval_of(found, "accuracy") == wilson(1.0, 4_000)


def test_a_resampled_accuracy_agrees_with_wilson():
    labels = np.zeros(2_000, dtype=int)
    found = given_answers(labels, (np.arange(2_000) < 600).astype(int), 2)
    low, high = resampled(lambda drawn: drawn.accuracy, found)
    assert (low, high) == pytest.approx(wilson(0.7, 2_000), abs=3e-3)
    low, high = resampled(lambda drawn: np.array([drawn.accuracy, 1.0]), found)
    assert low.shape == high.shape == (2,)
    assert low[1] == high[1] == 1.0


@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 40), st.integers(1, 40))
def test_two_networks_are_told_apart_by_mcnemars_exact_test(first, second, both, neither):
    ways = [(0, 1)] * first + [(1, 0)] * second + [(0, 0)] * both + [(1, 1)] * neither
    one, other = (given_answers([0] * len(ways), list(way), 2) for way in zip(*ways, strict=True))
    found = paired(one, other)
    assert (found.first_only, found.second_only, found.images) == (first, second, len(ways))
    assert found.difference == pytest.approx(one.accuracy - other.accuracy)
    p = binomtest(first, first + second).pvalue if first + second else 1.0
    assert found.p == pytest.approx(p, rel=1e-9)
    low, high = found.interval
    assert low <= found.difference <= high
    back = paired(other, one)
    assert back.p == found.p
    assert back.interval == pytest.approx((-high, -low))


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says():
    """Over all outcomes of thirty images, by their multinomial chances."""
    images, more, less = 30, 0.3, 0.1
    covered = 0.0
    for ahead, behind in itertools.product(range(images + 1), repeat=2):
        if ahead + behind > images:
            continue
        rest = images - ahead - behind
        ways = math.comb(images, ahead) * math.comb(images - ahead, behind)
        chance = ways * more**ahead * less**behind * (1 - more - less) ** rest
        guesses = [(0, 1)] * ahead + [(1, 0)] * behind + [(0, 0)] * rest
        pair = (given_answers([0] * images, way, 2) for way in zip(*guesses, strict=True))
        low, high = paired(*pair).interval
        covered += chance * (low <= more - less <= high)
    assert covered == pytest.approx(0.95, abs=0.02)


def test_a_difference_of_a_metric_is_resampled_on_the_same_images():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    wrong = rng.random(600)
    one = given_answers(labels, np.where(wrong < 0.1, (labels + 1) % 3, labels), 3)
    other = given_answers(labels, np.where(wrong < 0.2, (labels + 1) % 3, labels), 3)
    apart, (low, high) = paired_metric(one, other, "f1_macro")
    score = [metrics.f1_score(labels, way.predicted, average="macro") for way in (one, other)]
    assert apart == pytest.approx(score[0] - score[1])
    assert low < apart < high
    alone = [interval_of(way, "f1_macro") for way in (one, other)]
    # The same images: much closer than the two intervals by themselves would be.
    assert high - low < 0.8 * math.hypot(*(b - a for a, b in alone))
    assert paired_metric(one, one, "f1_macro") == (0.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="on different images"):
        paired(one, given_answers(labels[::-1], labels, 3))


def test_a_study_names_objectives_that_are_there_and_metrics_have_a_chance():
    schema = Objectives.model_json_schema()["properties"]
    names = schema["metric"]["enum"], schema["costs"]["items"]["enum"]
    assert set(names[0]) == {n for n, o in OBJECTIVES.items() if o.chance is not None}
    assert set(names[1]) == set(OBJECTIVES) - set(names[0])
    assert directions(names[0]) == (True, True, True, True, False)
    assert not any(directions(names[1]))


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0.97, 0.01, 0.01, 0.01]])
def test_no_blind_guess_has_more_macro_f1_than_the_reference(shares):
    """In expectation over many images: always one class, all alike, or by the shares."""
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 100_000, p=shares)
    best = OBJECTIVES["f1_macro"].chance(4)
    guesses = [np.full_like(labels, c) for c in range(4)]
    guesses += [rng.integers(0, 4, len(labels)), rng.choice(4, len(labels), p=shares)]
    scores = [given_answers(labels, guess, 4).f1_macro for guess in guesses]
    assert max(scores) == pytest.approx(best, abs=0.01)


def test_a_value_is_written_with_its_interval():
    row = {"accuracy": 0.9653, "accuracy_low": 0.937, "accuracy_high": 0.981, "test_loss": 0.25}
    assert value_text(row, "accuracy") == "96.53 % (93.7-98.1)"
    assert value_text(row, "loss", "test_") == "loss 0.2500"
    assert value_text(row, "loss", "test_", headed=True) == "0.2500"
    assert value_text(row, "top5") == ""


@pytest.mark.parametrize("builder", ["resnet", "toy"])
def test_bytes_are_those_of_the_tensors_in_the_weights_file(builder, tmp_path):
    architecture = planter.Architecture(
        builder,
        full_widths(builder, 4, {}),
        {"classes": 10, "image": [3, 32, 32], **({"depth": 8} if builder == "resnet" else {})},
    )
    checkpoint.save(tmp_path / "net", planter.build(architecture), architecture, "base")
    file = (tmp_path / "net" / "weights.safetensors").read_bytes()
    header = int.from_bytes(file[:8], "little")
    assert planter.cost(architecture).size_bytes == len(file) - 8 - header
