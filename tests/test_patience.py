"""Validations on the way, and trainings that end when these no longer rise."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import split
from test_driver import write_study
from test_train import DATA, RECIPE, Stopped, entropy, network, same_bits
from torch import Tensor, nn

import planter
from planter.data import Split
from planter.driver.run_folder.read import read_points
from planter.driver.tasks import context as context_module
from planter.networks.checkpoint import read_training
from planter.training import loop as train
from planter.training.loop import Epoch, PausedError, fit
from planter.training.recipe import Recipe, make_optimizer
from planter.training.scores import Score, Validated, evaluate

VALIDATION = split(21, classes=4, seed=9)
LONG = RECIPE.model_copy(update={"epochs": 7, "patience": 2})
RISES = [0.3, 0.5, 0.4, 0.5, 0.2, 0.9, 0.9]
"""Of the first five epochs the second is the best; patience of 2 ends after the fourth."""


def scripted(accuracies: Sequence[float], losses: Sequence[float] = ()) -> Any:
    """A validation that answers as written, by the epoch that is at hand: how often the optimiser
    has stepped is not its to know, so it counts the epochs that `on_epoch` tells."""

    class Script:
        def __init__(self) -> None:
            self.epoch = 0

        def __call__(self, model: nn.Module, images: Split) -> Score:
            loss = losses[self.epoch] if losses else 1.0
            return Score(accuracies[self.epoch], loss)

        def note(self, epoch: Epoch) -> None:
            self.epoch = epoch.epoch

    return Script()


def run(recipe: Recipe, accuracies: Sequence[float], form: str = "plain", **more: Any) -> Any:
    """(the network, its optimiser, the epochs that were told, those that it says it trained)"""
    script, told, ended = scripted(accuracies), [], []
    script.epoch = more.pop("done", 0)
    model = network(form, 1)
    optimizer = make_optimizer(model, recipe)
    on_epoch = more.pop("on_epoch", lambda epoch: None)

    def note(epoch: Epoch) -> None:
        told.append(epoch)
        script.note(epoch)
        on_epoch(epoch)

    keys = {"validation": VALIDATION, "validate": script, "on_end": ended.append} | more
    fit(model, entropy, DATA, recipe, seed=7, optimizer=optimizer, on_epoch=note, **keys)
    return model, optimizer, told, ended


def same_moments(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    states = one.state_dict()["state"], other.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    return all(
        torch.equal(value, states[1][key][name])
        for key, state in states[0].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    )


@pytest.mark.parametrize("ema", [None, 0.8])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("form", ["plain", "expanded"])
def test_the_best_epoch_is_what_stays(form: str, kind: str, ema: float | None) -> None:
    """Bit for bit what a training of the same recipe has after that epoch: weights, statistics,
    average and optimiser."""
    recipe = LONG.model_copy(update={"optimizer": kind, "ema": ema})
    model, optimizer, told, ended = run(recipe, RISES, form)
    assert [epoch.val_accuracy for epoch in told] == RISES[:4]
    assert ended == [4]
    without = recipe.model_copy(update={"patience": None})
    other, its_own, _, _ = run(without, RISES, form, until=2)
    assert same_bits(model, other)
    assert same_moments(optimizer, its_own)
    assert not same_bits(model, run(without, RISES, form, until=4)[0])


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=7, max_size=7),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_a_training_ends_when_its_patience_does(
    scores: list[tuple[int, int]], patience: int, every: int
) -> None:
    """Against a walk over the scores of the epochs that are validated; ties go to the lower loss,
    then to the earlier epoch."""
    best, at, end = (-1.0, 0.0), 0, 7
    for epoch in range(every, 8, every):
        accuracy, loss = scores[epoch - 1]
        if (accuracy, -loss) > best:
            best, at = (accuracy, -loss), epoch
        elif epoch - at >= patience:
            end = epoch
            break
    script = scripted([a for a, _ in scores], [float(loss) for _, loss in scores])
    model, told, ended = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), [], []
    recipe = Recipe(epochs=7, batch=25, lr=0.01, patience=patience, validate_every=every)
    after: list[dict[str, Tensor]] = []

    def note(epoch: Epoch) -> None:
        script.note(epoch)
        told.append(epoch.val_accuracy)
        after.append(copy.deepcopy(model.state_dict()))

    keys = {"validation": VALIDATION, "validate": script, "on_end": ended.append}
    fit(model, entropy, DATA, recipe, seed=0, on_epoch=note, **keys)
    assert ended == [end] == [len(told)]
    assert [told[n] is not None for n in range(end)] == [(n + 1) % every == 0 for n in range(end)]
    kept = after[at - 1 if at else end - 1]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("ema", [None, 0.8])
@pytest.mark.parametrize("killed", [1, 2, 3, 4])
@pytest.mark.parametrize("how", ["killed", "Ctrl-C", "paused"])
def test_an_interrupted_training_with_patience_ends_in_the_same_bits(
    how: str, killed: int, ema: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", 0 if how != "paused" else 1000)
    recipe = LONG.model_copy(update={"ema": ema, "optimizer": "adam"})
    path = tmp_path / "checkpoint.pt"
    whole, its_own, told, _ = run(recipe, RISES)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == killed and how != "paused":  # before its checkpoint is written
            raise KeyboardInterrupt if how == "Ctrl-C" else Stopped

    seen: list[int] = []

    def pausing() -> bool:
        seen.append(1)
        return how == "paused" and len(seen) == killed

    done = killed if how == "paused" else killed - 1
    if how == "paused" and killed == 4:
        run(recipe, RISES, checkpoint=path, pause=pausing)  # it had ended: nothing is paused
    else:
        with pytest.raises((KeyboardInterrupt, Stopped, PausedError)):
            run(recipe, RISES, checkpoint=path, on_epoch=stop, pause=pausing)
    found, optimizer, rest, ended = run(recipe, RISES, checkpoint=path, done=done)
    assert [epoch.epoch for epoch in rest] == list(range(done + 1, 5))
    assert [e[:3] + e[4:] for e in rest] == [e[:3] + e[4:] for e in told[done:]]
    assert ended == [4]
    assert same_bits(found, whole)
    assert same_moments(optimizer, its_own)


def test_a_training_up_to_an_epoch_leaves_the_best_and_goes_on_as_if_it_had_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoint.pt"
    whole = run(LONG, RISES)[0]
    part, _, _, ended = run(LONG, RISES, checkpoint=path, until=3)
    assert ended == [3]
    assert same_bits(part, run(LONG, RISES, until=2)[0])
    state = read_training(path)
    assert state is not None
    assert (state["epoch"], state["best"][0]) == (3, 2)
    rest = run(LONG, RISES, checkpoint=path, until=5, done=3)  # where its patience ends
    assert rest[3] == [4]
    again = run(LONG, RISES, checkpoint=path, done=4)
    assert (again[2], again[3]) == ([], [4])
    assert same_bits(rest[0], whole)
    assert same_bits(again[0], whole)


@pytest.mark.parametrize("ema", [None, 0.8])
@pytest.mark.parametrize("form", ["plain", "expanded", "planted"])
def test_validations_change_nothing_and_are_true(form: str, ema: float | None) -> None:
    """Also of a network that draws and has norms; each says what the weights of then score."""
    recipe = RECIPE.model_copy(update={"ema": ema})
    plain = fit(network(form, 1), entropy, DATA, recipe, seed=7)
    told, scores = [], []

    def noted(model: nn.Module, images: Split) -> Score:
        scores.append(evaluate(copy.deepcopy(model), images))
        torch.rand(3)  # whatever draws
        return evaluate(model, images)

    state = torch.get_rng_state()
    found = fit(
        network(form, 1),
        entropy,
        DATA,
        recipe.model_copy(update={"validate_every": 2}),
        seed=7,
        validation=VALIDATION,
        validate=noted,
        on_epoch=told.append,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(found, plain)
    measured = [(e.val_accuracy, e.val_loss) for e in told]
    assert measured == [(None, None), tuple(scores[0]), (None, None), tuple(scores[1])]
    if ema is None:  # an average has its own statistics computed anew at the end
        assert tuple(evaluate(found, VALIDATION)) == pytest.approx(tuple(scores[1]), rel=1e-5)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 40))
def test_unasked_validations_take_two_percent_at_most(
    images: int, validation: int, epochs: int
) -> None:
    """A pass forward is a third of what an image costs in training."""
    recipe = Recipe()
    taken = sum(recipe.validates(n, images, validation) for n in range(1, epochs + 1))
    assert taken * validation <= 0.02 * 3 * images * epochs * (1 + 1e-9)
    if 0 < validation <= 0.06 * images * (1 - 1e-9):
        assert taken == epochs


def test_patience_without_validation_images_is_refused() -> None:
    with pytest.raises(ValueError, match="patience 2 needs validation images"):
        fit(network("plain", 1), entropy, DATA, LONG, seed=0)


FEW = ["plant=null", "sample.trials=1", "keep=all"]
IMPATIENT = [*FEW, "recipe.epochs=6", "recipe.patience=1", "recipe.lr=0.5"]


def lines_of(run_folder: Path, trial: str) -> list[dict[str, Any]]:
    text = (run_folder / "trials" / trial / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


def test_trainings_of_a_search_count_the_epochs_that_they_took(study: Path, tmp_path: Path) -> None:
    """At a rate so bold that they do not get better for long."""
    folder = tmp_path / "run"
    planter.search(study, out=folder, overrides=IMPATIENT)
    points = {point.trial: point for point in read_points(folder)}
    validation = planter.load_data(folder).validation
    short = 0
    for trial, point in points.items():
        lines = lines_of(folder, trial)
        scores = [(line["val_accuracy"], -line["val_loss"]) for line in lines]
        best = max(range(len(scores)), key=lambda at: (scores[at], -at))
        assert len(lines) == min(best + 2, 6), trial
        short += len(lines) < 6
        assert point.train_macs == lines[-1]["train_macs"]
        assert lines[-1]["train_macs"] == len(lines) * lines[0]["train_macs"]
        if point.pipeline == "base" and trial != "s0000":
            # Its last epoch is another's: what is saved is the best one.
            assert point.accuracy == pytest.approx(scores[best][0], abs=1 / len(validation))
    assert short, "no training ended early: the test says nothing"
    again = tmp_path / "again"
    planter.search(study, out=again, overrides=[*IMPATIENT, "name=again"])
    macs = {point.trial: point.train_macs for point in read_points(again)}
    assert macs["teacher"] == points["teacher"].train_macs  # of the cache, which was not trained
    assert not (again / "trials" / "teacher" / "metrics.jsonl").is_file()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_search_interrupted_in_an_impatient_training_finds_the_same(
    at: int, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", 0)
    overrides = [*IMPATIENT, "recipe.patience=2", "recipe.ema=0.5"]
    whole = planter.search(study, out=tmp_path / "a" / "run", overrides=overrides)
    metrics: Callable[..., Any] = context_module.Context.metrics
    hits: list[str] = []

    def cut_off(self: Any, trial: str, *args: Any) -> Callable[[Epoch], None]:
        note = metrics(self, trial, *args)

        def noted(epoch: Epoch) -> None:
            note(epoch)
            if trial == "b-width4" and epoch.epoch == at and not hits:
                hits.append(trial)
                raise KeyboardInterrupt

        return noted

    monkeypatch.setattr(context_module.Context, "metrics", cut_off)
    folder = tmp_path / "b" / "run"
    with pytest.raises(KeyboardInterrupt):
        planter.search(study, out=folder, overrides=overrides)
    assert hits
    found = planter.search(study, out=folder, overrides=overrides)
    assert found["points"] == whole["points"]


def test_a_search_tells_a_curve_without_being_asked(study: Path, tmp_path: Path) -> None:
    """240 images, a quarter of which validates: a pass is a ninth of an epoch, one in six."""
    folder = tmp_path / "run"
    planter.search(study, out=folder, overrides=[*FEW, "sample.trials=0", "recipe.epochs=6"])
    lines = lines_of(folder, "b-width4")
    assert ["val_accuracy" in line for line in lines] == [False] * 5 + [True]
    (point,) = (p for p in read_points(folder) if p.trial == "b-width4")
    assert lines[-1]["val_accuracy"] == pytest.approx(point.accuracy, abs=1e-9)
    assert lines[-1]["val_loss"] == pytest.approx(point.loss, rel=1e-4)
    assert lines[-1]["train_macs"] == point.train_macs


@pytest.mark.parametrize(("measure", "value", "best"), [("f1_macro", 0.9, 1), ("loss", None, 3)])
def test_the_measure_decides_which_epoch_is_the_best(
    measure: str, value: float | None, best: int
) -> None:
    """Accuracy rises all the time, the measure is the best after another epoch."""
    accuracies, losses = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [2.0, 1.9, 0.5, 1.8, 1.7, 1.6]
    epochs = iter(range(6))

    def judged(model: nn.Module, images: Split) -> Validated:
        at = next(epochs)
        own = None if value is None else value - 0.1 * at
        return Validated(accuracies[at], losses[at], measure, own)

    recipe = LONG.model_copy(update={"patience": 2})
    told: list[Epoch] = []
    model = network("plain", 1)
    settings = {"validation": VALIDATION, "validate": judged, "on_epoch": told.append}
    fit(model, entropy, DATA, recipe, seed=7, **settings)
    assert len(told) == best + 2
    expected = network("plain", 1)
    without = recipe.model_copy(update={"patience": None, "validate_every": 0})
    fit(expected, entropy, DATA, without, seed=7, until=best, checkpoint=None)
    assert same_bits(model, expected)


def test_a_log_has_the_metric_that_the_study_is_after(study: Path, tmp_path: Path) -> None:
    """After the last epoch it is that of the point (test_searched_for.py: sklearn's)."""
    folder = tmp_path / "run"
    metric = ["objectives.metric=f1_macro", "recipe.validate_every=1"]
    planter.search(study, out=folder, overrides=[*FEW, "recipe.epochs=2", *metric])
    points = read_points(folder)
    alone = [point for point in points if [p.trial for p in points].count(point.trial) == 1]
    assert alone
    for point in alone:
        lines = lines_of(folder, point.trial)
        assert lines[-1]["val_f1_macro"] == pytest.approx(point.values["f1_macro"])
