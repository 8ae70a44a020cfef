from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from nets import fill_, flat, images, residual
from torch import Tensor, nn

from planter.edits.expand import collapse_kernels_, expand_kernels_
from planter.edits.transfer import expand_from_
from planter.kernels.blocks import expanded_layers
from planter.kernels.forms import AsymmetricBlock, KernelFilter


def trained(seed: int, classes: int = 5, builder=residual) -> nn.Module:
    """A network like no other seed's, statistics of its norms included."""
    torch.manual_seed(seed)
    return fill_(builder(builder.widths, classes=classes, image=(3, 8, 8)), seed).double().eval()


def three(classes: int = 5, builder=residual) -> list[nn.Module]:
    return [trained(seed, classes, builder) for seed in (1, 2, 3)]


def bank(layer: nn.Module, tensor: str = "weight") -> Tensor:
    return layer.get_parameter(f"parametrizations.{tensor}.original").detach()


@pytest.mark.parametrize("builder", [residual, flat])
@pytest.mark.parametrize("depth", [2, 3])
def test_it_starts_as_the_first_network(builder, depth: int) -> None:
    nets, model, x = three(builder=builder), trained(9, builder=builder), images(4)
    kept = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    assert not torch.equal(model(x), nets[0](x))
    assert expand_from_(model, nets, depth) == []
    assert torch.equal(model(x), nets[0](x))
    layers = [n for n, m in nets[0].named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert expanded_layers(model) == layers
    plain = collapse_kernels_(model).state_dict()
    for name, tensor in nets[0].state_dict().items():
        assert torch.equal(plain[name], tensor), name
    for net, state in zip(nets, kept, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_banks_hold_the_kernels_and_biases_of_all_networks_in_their_order() -> None:
    nets, model = three(builder=flat), trained(9, builder=flat)
    expand_from_(model, nets)
    for name in expanded_layers(model):
        layer, sources = model.get_submodule(name), [net.get_submodule(name) for net in nets]
        assert torch.equal(bank(layer), torch.cat([source.weight for source in sources]))
        assert torch.equal(bank(layer, "bias"), torch.cat([source.bias for source in sources]))


def test_banks_of_transposed_layers_hold_the_filters_of_all_networks() -> None:
    def net(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.ConvTranspose2d(4, 6, (2, 3), groups=2), nn.Conv2d(6, 4, 3, groups=2)
        ).double()

    nets, model, x = [net(1), net(2)], net(3), images(2, (4, 5, 5))
    assert expand_from_(model, nets) == []
    assert torch.equal(model(x), nets[0](x))
    up, down = bank(model[0]), bank(model[1])
    assert up.shape == (12, 2, 2, 3)
    for row in range(12):
        source, output = nets[row // 6][0].weight, row % 6
        group, place = divmod(output, 3)
        for i in range(2):
            assert torch.equal(up[row, i], source[2 * group + i, place])
    assert torch.equal(down, torch.cat([nets[0][1].weight, nets[1][1].weight]))


def test_the_mixing_starts_with_the_first_network_alone_and_reaches_the_others() -> None:
    nets, model = three(), trained(9)
    expand_from_(model, nets)
    layer = model.stages.down.conv
    (factor,) = layer.parametrizations.weight[0].mixing.factors
    assert torch.equal(factor, torch.eye(*factor.shape).to(factor))
    layer.weight.square().sum().backward()
    # What the first network's filters are to the others' gives the mixing its gradient.
    rows = torch.cat([net.stages.down.conv.weight for net in nets]).flatten(1)
    expected = 2 * nets[0].stages.down.conv.weight.flatten(1) @ rows.T
    torch.testing.assert_close(factor.grad, expected.detach(), rtol=1e-12, atol=1e-13)


def test_another_number_of_classes_leaves_that_layer_fresh_and_no_other() -> None:
    nets, model = three(classes=5), trained(9, classes=7)
    fresh = {name: tensor.detach().clone() for name, tensor in model.head.fc.named_parameters()}
    assert expand_from_(model, nets) == ["head.fc"]
    assert torch.equal(model.head.fc.weight, fresh["weight"])
    assert torch.equal(model.head.fc.bias, fresh["bias"])
    # Its bank is not the other networks' either, nor wider than torch's own bound.
    assert bank(model.head.fc).shape == (21, 6)
    assert float(bank(model.head.fc).abs().max()) <= 6**-0.5
    assert "head.fc" in expanded_layers(model)
    x = images(4)
    assert torch.equal(model.stages(x), nets[0].stages(x))


def test_a_later_network_that_differs_leaves_its_own_filters_fresh() -> None:
    nets, model, x = [trained(1), trained(2, classes=7), trained(3)], trained(9), images(4)
    assert expand_from_(model, nets, seed=4) == []
    assert torch.equal(model(x), nets[0](x))
    rows, bias = bank(model.head.fc), bank(model.head.fc, "bias")
    assert torch.equal(rows[:5], nets[0].head.fc.weight)
    assert torch.equal(rows[10:], nets[2].head.fc.weight)
    assert torch.equal(bias[10:], nets[2].head.fc.bias)
    assert rows[5:10].any(dim=1).all()
    assert not any(
        torch.equal(row, other) for row in rows[5:10] for other in nets[1].head.fc.weight
    )
    down = model.stages.down.conv
    assert torch.equal(bank(down), torch.cat([net.stages.down.conv.weight for net in nets]))
    # Drawn from the seed.
    again = trained(9)
    expand_from_(again, nets, seed=4)
    assert torch.equal(bank(again.head.fc), rows)


def test_a_single_network_is_its_own_bank() -> None:
    net, model, x = trained(1), trained(9), images(4)
    assert expand_from_(model, [net]) == []
    assert torch.equal(model(x), net(x))
    assert torch.equal(bank(model.stages.down.conv), net.stages.down.conv.weight)


def test_depth_one_is_plain_transfer_from_one_network() -> None:
    nets, model, x = three(), trained(9), images(4)
    with pytest.raises(ValueError, match="depth must be >= 2, got 1: a plain kernel cannot hold"):
        expand_from_(model, nets, depth=1)
    assert expand_from_(model, nets[:1], depth=1) == []
    assert not expanded_layers(model)
    assert torch.equal(model(x), nets[0](x))


def test_a_layer_with_a_bias_more_than_the_models_is_listed_fresh() -> None:
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    assert expand_from_(model, [first]) == ["0"]


def test_layers_left_out_are_transferred_and_stay_plain() -> None:
    nets, model, x = three(), trained(9), images(4)
    expand_from_(model, nets, where=lambda module, name: name == "stages.down.conv")
    assert expanded_layers(model) == ["stages.down.conv"]
    assert torch.equal(model(x), nets[0](x))


def test_the_model_owns_what_it_starts_from() -> None:
    nets, model, x = three(), trained(9), images(4)
    expand_from_(model, nets)
    before = nets[0](x)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)
    assert torch.equal(nets[0](x), before)


def test_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pre-trained network"):
        expand_from_(trained(9), [])


@pytest.mark.parametrize("form", [KernelFilter(), AsymmetricBlock()], ids=str)
def test_an_expanded_network_is_refused_by_number_and_layer(form) -> None:
    nets, model = three(), trained(9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expand_kernels_(nets[1], form)
    words = r"pretrained\[1\]: stages.stem.conv is expanded; collapse_kernels_\(model\) first"
    with pytest.raises(ValueError, match=words):
        expand_from_(model, nets)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_is_expanded_already_is_refused_and_keeps_its_weights() -> None:
    model = expand_kernels_(trained(9), KernelFilter())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"stages.stem.conv.*collapse_kernels_\(model\) first"):
        expand_from_(model, three())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_where_that_accepts_nothing_is_refused_and_keeps_the_weights() -> None:
    model = trained(9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="where accepted none"):
        expand_from_(model, three(), where=lambda module, name: False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_networks_of_another_kind_are_refused() -> None:
    other = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))
    model = trained(9)
    with pytest.raises(ValueError, match="no layer of the first pre-trained network has the mod"):
        expand_from_(model, [other])
    assert not expanded_layers(model)
