"""A training over two processes (gloo, on the CPU) is that of one process with the same batches."""

from __future__ import annotations

import copy
import multiprocessing
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planter import Architecture, Recipe, build
from planter.data import InMemorySplit
from planter.training.batches import Batch
from planter.training.distributed import _last_words, fit_in_processes
from planter.training.loop import Epoch, PausedError, fit
from planter.training.losses import classification_loss
from planter.training.recipe import make_optimizer

RECIPE = Recipe(epochs=2, batch=15, lr=0.05, clip_grad=1.0, augment={"crop": 1, "flip": True})
SMALL: dict[str, Any] = {"classes": 10, "image": [1, 8, 8]}


def images(count: int = 44) -> InMemorySplit:
    """Random images of 8 x 8, float64; of batches of 15, two processes have 8 and 7."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    half = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    return InMemorySplit(pixels, torch.randint(10, (count,), generator=generator), half, half)


def network(kind: str = "convnet") -> nn.Module:
    if kind == "resnet":
        return build(Architecture("resnet", {}, {**SMALL, "depth": 8}, {}), seed=0).double()
    widths = {f"conv{i}": 4 for i in range(1, 6)} | {"fc1": 16}
    return build(Architecture("convnet", widths, SMALL, {}), seed=0).double()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return classification_loss(model(batch.images), batch.labels)


def far(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    alone, divided = network(), network()
    fit(alone, loss, images(), RECIPE, seed=3)
    file = tmp_path / "checkpoint.pt"
    # One process trains the first epoch, both go on from its checkpoint.
    fit(divided, loss, images(), RECIPE, seed=3, checkpoint=file, until=1)
    divided = network()
    fit_in_processes(divided, loss, images(), RECIPE, seed=3, processes=2, checkpoint=file)
    assert far(alone, divided) < 1e-12
    assert far(alone, network()) > 1e-3  # it learned


def test_batch_norms_see_the_parts_as_with_accumulate() -> None:
    parts, divided = network("resnet"), network("resnet")
    fit(parts, loss, images(), RECIPE.model_copy(update={"accumulate": 2}), seed=3)
    fit_in_processes(divided, loss, images(), RECIPE, seed=3, processes=2)
    assert far(parts, divided) < 1e-12
    statistics = {n: b for n, b in divided.named_buffers() if n.endswith("running_mean")}
    assert all(bool(b.abs().max() > 0) for b in statistics.values())


class Sometimes(nn.Module):
    """A layer that no image passes, and one that half of the parts of batches pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.never, self.bright = (nn.Linear(64, 10).double() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        logits: Tensor = self.first(flat)
        return logits + self.bright(flat) if float(flat.mean()) > -0.15 else logits


def test_layers_that_a_step_leaves_out_are_no_mistake() -> None:
    torch.manual_seed(0)
    alone = Sometimes()
    divided, begun = copy.deepcopy(alone), copy.deepcopy(alone)
    # With the parts of a batch as another training has them: the branch is taken by part.
    fit(alone, loss, images(), RECIPE.model_copy(update={"accumulate": 2}), seed=3)
    fit_in_processes(divided, loss, images(), RECIPE, seed=3, processes=2)
    assert far(alone, divided) < 1e-12
    assert far(divided.bright, begun.bright) > 1e-3


def test_processes_say_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    fit_in_processes(network(), loss, images(), RECIPE, seed=3, processes=2)
    assert capfd.readouterr() == ("", "")


def test_what_is_told_of_a_process_is_the_error_itself() -> None:
    text = """
-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "spawn.py", line 90, in _wrap
    fn(i, *args)
    ~~^^^^^^^^^^
  File "net.py", line 3, in forward
    raise ValueError(told)
ValueError: the first line
 advice (1)
  and more of it
"""
    assert _last_words(text) == "ValueError: the first line"
    assert _last_words("process 1 exited") == "process 1 exited"


def test_what_is_told_and_left_is_that_of_one_process(tmp_path: Path) -> None:
    """Epochs with their validations, the best one's weights, the optimiser and the average."""
    recipe = RECIPE.model_copy(update={"epochs": 6, "lr": 0.3, "patience": 2, "ema": 0.5})
    found = []
    for train in (fit, partial(fit_in_processes, processes=2)):
        model, epochs, ended = network(), [], []
        optimizer = make_optimizer(model, recipe)
        train(
            model,
            loss,
            images(),
            recipe,
            seed=3,
            optimizer=optimizer,
            validation=images(20),
            on_epoch=epochs.append,
            on_end=ended.append,
        )
        learned = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
        found.append((model, [(e.loss, e.lr, e.val_loss) for e in epochs], ended, learned))
    (alone, epochs, ended, learned), (divided, others, other, same) = found
    assert far(alone, divided) < 1e-12
    assert others == [pytest.approx(epoch, rel=1e-6) for epoch in epochs]  # summed in float32
    assert ended == other
    assert len(epochs) == ended[0]
    torch.testing.assert_close(learned, same, rtol=0, atol=1e-12)


def test_a_training_that_is_paused_goes_on(tmp_path: Path) -> None:
    whole, paused = network(), network()
    fit(whole, loss, images(), RECIPE, seed=3)
    go_on = {"seed": 3, "processes": 2, "checkpoint": tmp_path / "checkpoint.pt"}
    with pytest.raises(PausedError, match="paused after epoch 1 of 2"):
        fit_in_processes(paused, loss, images(), RECIPE, pause=lambda: True, **go_on)
    resumed: list[Epoch] = []
    fit_in_processes(
        paused, lambda *of: loss(*of), images(), RECIPE, on_epoch=resumed.append, **go_on
    )
    assert [epoch.epoch for epoch in resumed] == [2]
    assert far(whole, paused) < 1e-12


def fails(model: nn.Module, batch: Batch) -> Tensor:
    raise ValueError(f"no loss of {len(batch.labels)} images")


def lost(model: nn.Module, batch: Batch) -> Tensor:
    return loss(model, batch) * torch.inf


@pytest.mark.long
def test_what_goes_wrong_in_a_process_is_raised_here_and_none_is_left() -> None:
    model, before = network(), network()
    with pytest.raises(RuntimeError, match=r"process . of the training: ValueError: no loss of"):
        fit_in_processes(model, fails, images(), RECIPE, seed=0, processes=2)
    with pytest.raises(FloatingPointError, match="in epoch 1 of 2"):
        fit_in_processes(model, lost, images(), RECIPE, seed=0, processes=2)
    assert not multiprocessing.active_children()
    assert far(model, before) == 0.0


def of_a_lock() -> Any:
    lock = threading.Lock()
    return lambda model, batch: loss(model, batch) if lock else None


@pytest.mark.parametrize(
    ("told", "changed"),
    [
        ("has 0: ask for as many", {"device": "cuda", "processes": 2}),
        ("expected 1 or more", {"processes": 0}),
        ("batches of 14 images for 16 processes", {"processes": 16}),
        ("together: not for a training in several", {"together": "others"}),
        ("cannot be sent to another process", {"loss": of_a_lock()}),
        ("patience 3", {"recipe": RECIPE.model_copy(update={"patience": 3})}),
        ("precision bfloat16", {"recipe": RECIPE.model_copy(update={"precision": "bfloat16"})}),
        ("precision auto", {"recipe": RECIPE.model_copy(update={"precision": "auto"})}),
        ("compile auto", {"recipe": RECIPE.model_copy(update={"compile": "auto"})}),
        ("accumulate 2", {"recipe": RECIPE.model_copy(update={"accumulate": 2})}),
    ],
)
def test_what_cannot_be_divided_is_refused(
    told: str, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    model = network()
    before = copy.deepcopy(model)
    given = {"loss": loss, "recipe": RECIPE, "processes": 2, **changed}
    with pytest.raises(ValueError, match=told):
        fit_in_processes(model, split=images(), seed=0, **given)
    assert far(model, before) == 0.0
