"""The moving average of weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from nets import residual
from test_train import DATA, RECIPE, Stopped, entropy, network, same_bits
from torch import Tensor, nn

from planter.edits.expand import collapse_kernels_, expand_kernels_
from planter.kernels.forms import KernelFilter
from planter.training import loop as train
from planter.training.augment import Augment
from planter.training.batches import Batch, augmented, batch_order
from planter.training.loop import Epoch, fit
from planter.training.recipe import Recipe

AVERAGED = Recipe(
    epochs=3, batch=16, lr=0.05, momentum=0.5, weight_decay=0.0, schedule="constant", ema=0.7
)


def normed_net(form: str) -> nn.Module:
    torch.manual_seed(4)
    net = residual(residual.widths, classes=4, image=(3, 8, 8))
    if form == "expanded":
        expand_kernels_(net, KernelFilter(rho=2), seed=4)
    return net


@pytest.mark.parametrize("form", ["plain", "expanded"])
def test_ema_leaves_the_moving_average_of_weights(form: str) -> None:
    """Against a loop in plain torch over the batches that were given. Statistics are those of the
    averaged weights: see `test_ema_has_the_statistics_of_its_weights`."""
    batches: list[Batch] = []

    def note(model: nn.Module, batch: Batch) -> Tensor:
        batches.append(batch)
        return entropy(model, batch)

    found = fit(normed_net(form), note, DATA, AVERAGED, seed=7).state_dict()
    model = normed_net(form).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    average: dict[str, Tensor] = {}
    for batch in batches:
        optimizer.zero_grad()
        entropy(model, batch).backward()
        optimizer.step()
        for name, tensor in model.state_dict().items():
            kept = average.get(name, tensor.clone())
            average[name] = 0.7 * kept + 0.3 * tensor
    assert len(batches) == 3 * 4
    assert set(found) == set(average)
    for name, tensor in found.items():
        if tensor.is_floating_point() and "running" not in name:
            # float32 over twelve steps, in two memory formats.
            torch.testing.assert_close(tensor, average[name], rtol=1e-3, atol=1e-5)
            last = model.state_dict()[name]
            assert not torch.allclose(tensor, last, rtol=1e-3, atol=1e-5), f"{name} is the last one"


def test_ema_has_the_statistics_of_its_weights() -> None:
    """The mean over one more pass of augmented images, norm by norm, in plain torch."""
    recipe = AVERAGED.model_copy(update={"augment": Augment(crop=1, flip=True)})
    model = fit(normed_net("plain"), entropy, DATA, recipe, seed=7)
    found = {name: t.clone() for name, t in model.state_dict().items() if "running" in name}
    own = copy.deepcopy(model).train()
    parts, generator = batch_order(DATA, recipe, 7, recipe.epochs)
    totals: dict[str, Tensor] = {}
    for part in parts:
        for norm in own.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0  # the statistics of this batch
        with torch.no_grad():
            own(DATA.normalise(augmented(DATA.images[part], recipe.augment, generator)))
        for name, tensor in own.state_dict().items():
            if "running" in name:
                totals[name] = totals.get(name, 0) + tensor / len(parts)
    assert len(found) == 2 * 6
    for name, tensor in found.items():
        # float32, in two memory formats.
        torch.testing.assert_close(tensor, totals[name], rtol=1e-4, atol=1e-5)


def test_ema_does_not_change_the_training_itself() -> None:
    plain, averaged = [], []
    fit(network("plain", 1), entropy, DATA, RECIPE, seed=7, on_epoch=plain.append)
    recipe = RECIPE.model_copy(update={"ema": 0.9})
    fit(network("plain", 1), entropy, DATA, recipe, seed=7, on_epoch=averaged.append)
    assert [(e.epoch, e.loss, e.lr) for e in averaged] == [(e.epoch, e.loss, e.lr) for e in plain]


def test_ema_of_one_step_is_that_step() -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1, "batch": 50, "warmup": 0.0})
    last = fit(network("plain", 1), entropy, DATA, recipe, seed=7)
    recipe = recipe.model_copy(update={"ema": 0.999})
    averaged = fit(network("plain", 1), entropy, DATA, recipe, seed=7)
    for name, parameter in averaged.named_parameters():
        assert torch.equal(parameter, last.get_parameter(name))


@pytest.mark.parametrize("form", ["plain", "expanded", "planted"])
def test_a_resumed_training_with_ema_ends_in_the_same_bits(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", 0)
    recipe = RECIPE.model_copy(update={"ema": 0.8})
    path = tmp_path / "checkpoint.pt"

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise Stopped

    whole = fit(network(form, 1), entropy, DATA, recipe, seed=7)
    with pytest.raises(Stopped):
        fit(network(form, 1), entropy, DATA, recipe, seed=7, checkpoint=path, on_epoch=stop)
    other = network(form, 2 if form != "planted" else 1)
    seen: list[Epoch] = []
    resumed = fit(other, entropy, DATA, recipe, seed=7, checkpoint=path, on_epoch=seen.append)
    assert [epoch.epoch for epoch in seen] == [3, 4]
    assert same_bits(whole, resumed)
    # The average, not the weights of the last step.
    assert not same_bits(whole, fit(network(form, 1), entropy, DATA, RECIPE, seed=7))


def test_ema_of_expanded_kernels_collapses_to_the_product_of_the_averages() -> None:
    plain = normed_net("plain")
    model = fit(normed_net("expanded"), entropy, DATA, AVERAGED, seed=7).double().eval()
    products = {
        name.removesuffix(".parametrizations.weight"): (
            chain.original.detach().clone(),
            chain[0].mixing.factors[0].detach().clone(),
        )
        for name, chain in model.named_modules()
        if name.endswith("parametrizations.weight")
    }
    assert len(products) == 7  # six convolutions and the linear layer
    x = (DATA.images.double() / 255 - 0.5) / 0.25
    with torch.no_grad():
        before = model(x)
        collapse_kernels_(model)
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert list(model.state_dict()) == list(plain.state_dict())
    for name, (bank, mixing) in products.items():
        kernel = (mixing @ bank.flatten(1)).view(-1, *bank.shape[1:])
        torch.testing.assert_close(
            model.get_submodule(name).weight.detach(), kernel, rtol=1e-12, atol=1e-12
        )


class Shuffled(nn.Module):
    """A network with a whole-number buffer that its forward reads, as many a user's has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(192, generator=torch.Generator()))
        self.linear = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)[:, self.order])


def test_ema_leaves_whole_number_buffers_as_they_are() -> None:
    model = Shuffled()
    order = model.order.clone()
    # 3 * 0.9 + 3 * 0.1 is a little less than 3: rounded down, it is another place.
    fit(model, entropy, DATA, AVERAGED.model_copy(update={"ema": 0.9}), seed=7)
    assert torch.equal(model.order, order)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_decays_of_an_average_that_are_none_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="ema"):
        Recipe(ema=decay)
    assert Recipe().ema is None
