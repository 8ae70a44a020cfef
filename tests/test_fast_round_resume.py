"""A fast round that is taken up from its checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from test_fast_round import (
    ADAM,
    SGD,
    assert_same,
    data,
    fast,
    loss_of,
    planted,
    states,
    teacher_logits,
)
from torch import Tensor, nn

from planter.planting import round as fast_round


class Stopped(Exception):
    pass


def stopping_after(calls: int) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """`loss_of`, until it has been asked `calls` times."""
    left = [calls]

    def loss(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        if not left[0]:
            raise Stopped
        left[0] -= 1
        return loss_of(logits, labels, teacher)

    return loss


LONG = {
    "sgd": SGD.model_copy(update={"epochs": 4}),
    "adam": ADAM.model_copy(update={"epochs": 4}),
}


@pytest.mark.parametrize("optimizer", LONG)
@pytest.mark.parametrize("family", ["flat", "flat_norm", "residual", "dropping"])
def test_a_round_taken_up_goes_on_as_if_it_had_not_stopped(
    family: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_round, "_CHECKPOINT_EVERY_S", -1.0)
    recipe, images, teacher = LONG[optimizer], data(20), teacher_logits(20)
    parent, expected = planted(family)
    courses = fast(parent, expected, images, recipe, teacher)
    file = tmp_path / "round.pt"
    steps = 2 * len(expected)  # of an epoch
    _, stopped = planted(family)
    with pytest.raises(Stopped):
        fast(parent, stopped, images, recipe, teacher, stopping_after(2 * steps + 1),
             checkpoint=file)  # fmt: skip
    _, children = planted(family)
    # Two epochs are done: two are left, no step more.
    taken_up = fast(parent, children, images, recipe, teacher, stopping_after(2 * steps),
                    checkpoint=file)  # fmt: skip
    assert_same(states(children), states(expected))
    for name, course in courses.items():
        found = [(e.epoch, e.loss, e.lr) for e in taken_up[name].epochs]
        assert found == [(e.epoch, e.loss, e.lr) for e in course.epochs]


def test_a_checkpoint_serves_some_of_its_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_round, "_CHECKPOINT_EVERY_S", -1.0)
    images, file = data(20), tmp_path / "round.pt"
    parent, expected = planted("flat")
    fast(parent, expected, images, LONG["sgd"])
    _, stopped = planted("flat")
    with pytest.raises(Stopped):
        fast(parent, stopped, images, LONG["sgd"], None, stopping_after(13), checkpoint=file)
    _, children = planted("flat")
    some = {"fc1": children["fc1"]}
    fast(parent, some, images, LONG["sgd"], None, checkpoint=file)
    assert_same(states(some), states({"fc1": expected["fc1"]}))


@pytest.mark.parametrize("other", ["wider", "more", "renamed"])
def test_a_checkpoint_of_other_candidates_is_not_taken(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fast_round, "_CHECKPOINT_EVERY_S", -1.0)
    images, file = data(20), tmp_path / "round.pt"
    parent, stopped = planted("flat")
    stopped.pop("fc1")
    with pytest.raises(Stopped):
        fast(parent, stopped, images, LONG["sgd"], None, stopping_after(9), checkpoint=file)
    assert file.exists()

    def children() -> dict[str, nn.Module]:
        _, made = planted("flat", 3 if other == "wider" else 2)
        last = made.pop("fc1")
        if other == "more":
            made["fc1"] = last
        if other == "renamed":
            made = {f"{name}-too": child for name, child in made.items()}
        return made

    expected, found = children(), children()
    fast(parent, expected, images, LONG["sgd"])
    with caplog.at_level(logging.WARNING):
        fast(parent, found, images, LONG["sgd"], None, checkpoint=file)
    assert "the round starts afresh" in caplog.text
    assert_same(states(found), states(expected))
