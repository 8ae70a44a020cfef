"""Networks trained in a stack become what each becomes alone, in float64 to the last digits."""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planter import Architecture, Recipe, build
from planter.data import InMemorySplit
from planter.driver.run_folder.logs import logged_to
from planter.edits.expand import expand_kernels_
from planter.kernels.forms import form_of
from planter.training.batches import Batch
from planter.training.loop import Epoch, PausedError, fit
from planter.training.losses import classification_loss
from planter.training.stacked import choice
from planter.training.stacked.epoch import check_stack, first_batches, kind_of
from planter.training.stacked.passes import Pass
from planter.training.stacked.together import Together

SMALL: dict[str, Any] = {"classes": 10, "image": [1, 8, 8]}
RECIPE = Recipe(epochs=2, batch=16, lr=0.05, augment={"crop": 1, "flip": True})


def images(count: int = 50) -> InMemorySplit:
    """Random images of 8 x 8, float64."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    half = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    return InMemorySplit(pixels, torch.randint(10, (count,), generator=generator), half, half)


def network(kind: str, seed: int) -> nn.Module:
    if kind == "resnet":
        return build(Architecture("resnet", {}, {**SMALL, "depth": 8}, {}), seed=seed).double()
    widths = {f"conv{i}": 4 for i in range(1, 6)} | {"fc1": 16}
    pipelines: dict[str, dict[str, Any]] = {"cut2": {}} if kind == "pipelines" else {}
    made = build(Architecture("convnet", widths, SMALL, pipelines), seed=seed)
    if kind == "kflo":
        form = form_of("kflo:2x2")
        assert form is not None
        expand_kernels_(made, form, seed=seed)
    return made.double()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    given = model(batch.images)
    if isinstance(given, dict):
        return torch.stack([classification_loss(one, batch.labels) for one in given.values()]).sum()
    return classification_loss(given, batch.labels)


def always(passes: Any, batches: Any) -> bool:
    return True


def fitted(
    models: list[nn.Module], recipes: list[Recipe], together: Together[Any], **more: Any
) -> list[Any]:
    """What becomes of trainings of the models, each with a seed of its own."""
    return together.all(
        [
            partial(fit, model, loss, images(), recipe, seed=at, together=together, **more)
            for at, (model, recipe) in enumerate(zip(models, recipes, strict=True))
        ]
    )


def far(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


RECIPES = {
    "rates": [RECIPE.model_copy(update={"lr": 0.05 / (1 + k)}) for k in range(3)],
    "clipped": [RECIPE.model_copy(update={"clip_grad": 0.1 * (1 + k)}) for k in range(3)],
    "averaged": [RECIPE.model_copy(update={"ema": 0.5 + 0.1 * k}) for k in range(3)],
    "optimisers": [
        RECIPE.model_copy(update={"optimizer": name, "lr": 0.01})
        for name in ("sgd", "adam", "adamw")
    ],
}


@pytest.mark.parametrize(
    ("kind", "recipes"),
    [
        *(("convnet", name) for name in RECIPES),
        ("resnet", "rates"),
        ("kflo", "rates"),
        ("pipelines", "averaged"),
    ],
)
def test_a_stack_trains_what_each_training_does_alone(kind: str, recipes: str) -> None:
    apart = [network(kind, seed) for seed in range(3)]
    stacked = copy.deepcopy(apart)
    for at, model in enumerate(apart):
        fit(model, loss, images(), RECIPES[recipes][at], seed=at)
    chosen: list[int] = []

    def noted(passes: Any, batches: Any) -> bool:
        chosen.append(len(passes))
        return True

    fitted(stacked, RECIPES[recipes], Together(noted))
    assert chosen == [3]  # they did stand in one
    assert max(map(far, apart, stacked)) < 1e-12
    assert far(stacked[0], stacked[1]) > 1e-3  # each with its own seed


def test_a_training_that_diverges_leaves_the_others_alone() -> None:
    apart = [network("convnet", seed) for seed in range(3)]
    stacked = copy.deepcopy(apart)
    recipes = [RECIPE, RECIPE.model_copy(update={"lr": 1e200}), RECIPE]
    results = fitted(stacked, recipes, Together(always))
    assert isinstance(results[1], FloatingPointError)
    for at in (0, 2):
        fit(apart[at], loss, images(), RECIPE, seed=at)
        assert far(apart[at], stacked[at]) < 1e-12


class _Draws(nn.Module):
    """A network that draws at random where no layer says so."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(nn.functional.dropout(x.flatten(1), 0.5, self.training))
        return logits


class _Mixes(_Draws):
    """One that takes a mean over channels."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean(1).flatten(1))
        return logits


class _Own(_Draws):
    """One with a parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.scale * x.flatten(1))
        return logits


@pytest.mark.parametrize("kind", [_Draws, _Mixes, _Own])
def test_what_cannot_be_stacked_is_trained_alone_to_the_same_bits(kind: type[nn.Module]) -> None:
    apart = [kind().double() for _ in range(2)]
    beside = copy.deepcopy(apart)
    for at, model in enumerate(apart):
        fit(model, loss, images(), RECIPE, seed=at)
    fitted(beside, [RECIPE] * 2, Together(always))
    assert max(map(far, apart, beside)) == 0.0


def test_the_check_refuses_channels_that_meet() -> None:
    models = [_Mixes().double() for _ in range(2)]
    optimizer = torch.optim.SGD(models[0].parameters())
    passes = [
        Pass(m, loss, images(), RECIPE, optimizer, 0, at, None, None, float)
        for at, m in enumerate(models)
    ]
    with pytest.raises(ValueError, match=r"cannot be stacked|train them apart"):
        check_stack(passes, first_batches(passes))
    parts = passes[0]._replace(recipe=RECIPE.model_copy(update={"accumulate": 2}))
    assert kind_of(parts) is None


def test_networks_of_other_shapes_and_lengths_go_on_side_by_side() -> None:
    apart = [network("convnet", 0), network("convnet", 1), network("resnet", 2)]
    beside = copy.deepcopy(apart)
    recipes = [RECIPE, RECIPE.model_copy(update={"epochs": 3}), RECIPE]
    for at, model in enumerate(apart):
        fit(model, loss, images(), recipes[at], seed=at)
    fitted(beside, recipes, Together(always))
    assert max(map(far, apart, beside)) < 1e-12
    assert far(apart[2], beside[2]) == 0.0


def test_paused_trainings_go_on_from_their_checkpoints(tmp_path: Path) -> None:
    whole = [network("convnet", seed) for seed in range(2)]
    parts = copy.deepcopy(whole)
    fitted(whole, [RECIPE] * 2, Together(always))

    def again(pause: bool) -> list[Any]:
        together: Together[Any] = Together(always)
        return together.all(
            [
                partial(
                    fit, model, loss, images(), RECIPE, seed=at, together=together,
                    checkpoint=tmp_path / f"{at}.pt", pause=lambda: pause,
                )
                for at, model in enumerate(parts)
            ]
        )  # fmt: skip

    assert all(isinstance(result, PausedError) for result in again(pause=True))
    parts = [network("convnet", seed) for seed in range(2)]
    again(pause=False)
    assert max(map(far, whole, parts)) == 0.0


def test_an_interruption_ends_every_training() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    together: Together[Any] = Together(always)
    before = threading.active_count()
    trainings = [
        partial(fit, network("convnet", at), loss, images(), RECIPE, seed=at, together=together)
        for at in range(2)
    ]
    with pytest.raises(KeyboardInterrupt):
        together.all(trainings, interrupted)
    assert threading.active_count() == before


def test_each_training_counts_its_share_of_the_seconds() -> None:
    epochs: list[Epoch] = []
    began = time.monotonic()
    fitted(
        [network("convnet", seed) for seed in range(3)],
        [RECIPE] * 3,
        Together(always),
        on_epoch=epochs.append,
    )
    wall = time.monotonic() - began
    assert len(epochs) == 6
    assert 0 < sum(epoch.seconds for epoch in epochs) <= wall


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """A function that sets what a measurement finds, and returns a list of those made."""
    monkeypatch.setenv("PLANTER_CACHE", str(tmp_path / "cache"))

    def finds(**times: float) -> list[int]:
        made: list[int] = []

        def step_times(passes: Any, batches: Any) -> dict[str, float]:
            made.append(len(passes))
            return times

        monkeypatch.setattr(choice, "step_times", step_times)
        return made

    return finds


@pytest.mark.parametrize(("stacked", "chosen"), [(1.0, True), (1.99, False), (3.0, False)])
def test_the_faster_way_is_measured_once_and_kept(
    stacked: float, chosen: bool, measured: Callable[..., list[int]], tmp_path: Path
) -> None:
    made = measured(apart=2.0, stacked=stacked)
    models = [network("convnet", seed) for seed in range(2)]
    optimizer = torch.optim.SGD(models[0].parameters())
    passes = [
        Pass(m, loss, images(), RECIPE, optimizer, 0, at, None, None, float)
        for at, m in enumerate(models)
    ]
    batches = first_batches(passes)
    assert [choice.is_faster(passes, batches) for _ in range(2)] == [chosen] * 2
    assert made == [2]
    (file,) = (tmp_path / "cache" / "stacked").glob("*.json")
    assert json.loads(file.read_text())["step_ms"] == {"apart": 2.0, "stacked": stacked}
    file.write_text("{}")  # damaged
    assert choice.is_faster(passes, batches) == chosen
    assert made == [2, 2]


def test_a_measurement_leaves_the_networks_as_they_are() -> None:
    models = [network("resnet", seed) for seed in range(2)]
    before = copy.deepcopy(models)
    optimizer = torch.optim.SGD(models[0].parameters())
    passes = [
        Pass(m, loss, images(), RECIPE, optimizer, 0, at, None, None, float)
        for at, m in enumerate(models)
    ]
    found = choice.step_times(passes, first_batches(passes))
    assert set(found) == {"apart", "stacked"}
    assert max(map(far, before, models)) == 0.0
    assert all(p.grad is None for model in models for p in model.parameters())


def test_logs_of_several_threads_hold_their_own_lines(tmp_path: Path) -> None:
    log = logging.getLogger("planter.test")
    level = logging.getLogger("planter").level
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with logged_to(tmp_path / "other.txt"):
            inside.set()
            done.wait(10)
            log.info("other's")

    thread = threading.Thread(target=other)
    with logged_to(tmp_path / "mine.txt"):
        thread.start()
        inside.wait(10)
        log.info("mine")
    done.set()  # the first to open is the first to close
    thread.join()
    assert "mine" in (tmp_path / "mine.txt").read_text()
    assert "other's" not in (tmp_path / "mine.txt").read_text()
    assert (tmp_path / "other.txt").read_text().split()[-1] == "other's"
    assert logging.getLogger("planter").level == level
