"""A training over two processes (gloo, on the CPU) is that of one process with the same batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planter import Architecture, Recipe, build
from planter.data import InMemorySplit
from planter.training.batches import Batch
from planter.training.distributed import fit_in_processes
from planter.training.loop import fit
from planter.training.losses import classification_loss

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


def in_a_function() -> Any:
    return lambda model, batch: loss(model, batch)


@pytest.mark.parametrize(
    ("told", "changed"),
    [
        ("has 0: ask for as many", {"device": "cuda", "processes": 2}),
        ("expected 1 or more", {"processes": 0}),
        ("batches of 14 images for 16 processes", {"processes": 16}),
        ("pause: not for a training in several", {"pause": bool}),
        ("cannot be sent to another process", {"loss": in_a_function()}),
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
