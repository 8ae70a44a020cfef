"""Growth of networks that were not written for planter, in steps and by gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benches import Bench, Probed, counted
from torch import Tensor, nn

from planter import Architecture
from planter.backbones import is_traced, with_data_options
from planter.evolution.edit import Individual
from planter.evolution.grow import Grow
from planter.networks.assembly import build_network

WIDTHS = {"left": 4, "right": 5, "both": 6}
PROBED = {"left": 5, "right": 7, "both": 8}
"""A quarter more, rounded up."""
READERS = {"left": ("both.weight", 4), "right": ("both.weight", 9), "both": ("fc.weight", 6)}
"""What reads a width's channels, and from which place on it reads new ones of this width alone."""


class Beside(nn.Module):
    """Two convolutions whose maps are concatenated: a channel more of the first moves those of the
    second."""

    def __init__(self, left: int = 4, right: int = 5, both: int = 6) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, left, 3, padding=1), nn.Conv2d(3, right, 3, padding=1)
        self.both = nn.Conv2d(left + right, both, 3)
        self.fc = nn.Linear(both, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        return self.fc(self.both(x).relu().mean((2, 3)))


def beside(num_classes: int) -> nn.Module:
    return Beside()


def parent() -> Individual:
    plain = Architecture("test_growing_traced:beside", {}, {})
    architecture = with_data_options(plain, 10, (3, 8, 8))
    network = build_network(architecture, seed=3).eval()
    learned = {name: {"momentum_buffer": p.detach().clone()} for name, p in
               network.named_parameters()}  # fmt: skip
    return Individual(architecture, "base", network, learned)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_traced_network_grows_in_steps_and_keeps_its_function_and_moments(steps):
    one = parent()
    assert is_traced(one.architecture)
    grow, child = Grow(4.0, steps=steps), one
    for number in range(steps):
        child, _ = grow.step(number, one.macs, child, Bench())
        most = 4 ** ((number + 1) / steps)
        assert 0.7 * most < counted(child) / counted(one) <= most
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(child.network(images), one.network(images), rtol=1e-4, atol=1e-5)
    for name, parameter in child.network.named_parameters():
        # As the moments were the weights: those of older weights stand where these do, others are
        # zero.
        known = torch.isin(parameter, one.network.get_parameter(name)) & (parameter != 0)
        assert int(known.sum()) == one.network.get_parameter(name).numel()
        expected = torch.where(known, parameter, 0.0)
        assert torch.equal(child.moments[name]["momentum_buffer"], expected)


def test_growing_by_gradients_is_where_plain_autograd_says():
    """Of each width alone: what is zero and is to read its new channels, behind other channels that
    were concatenated too."""
    one, images = parent(), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bench = Probed(images)
    child, macs = Grow(1.5, "gradient").apply(one, bench)
    (probe,) = bench.seen
    promised = {}
    for width, (reader, first) in READERS.items():
        sizes = {**WIDTHS, width: PROBED[width]}
        left, right, both = sizes.values()
        columns = [*range(left), *range(PROBED["left"], PROBED["left"] + right)]
        network = Beside(**sizes)
        network.load_state_dict({
            "left.weight": probe["left.weight"][:left], "left.bias": probe["left.bias"][:left],
            "right.weight": probe["right.weight"][:right],
            "right.bias": probe["right.bias"][:right],
            "both.weight": probe["both.weight"][:both, columns],
            "both.bias": probe["both.bias"][:both],
            "fc.weight": probe["fc.weight"][:, :both], "fc.bias": probe["fc.bias"],
        })  # fmt: skip
        torch.testing.assert_close(network(images), one.network(images))
        new = bench.gradients_of(network).values[reader][
            :, first : first + PROBED[width] - WIDTHS[width]
        ]
        added = counted(replace(one, network=network)) - counted(one)
        promised[width] = float(new.square().sum()) / added
    best = max(promised, key=promised.__getitem__)
    assert promised[best] > 1.05 * sorted(promised.values())[-2]
    assert macs == 1234
    layers = {n: len(child.network.get_submodule(n).weight) for n in WIDTHS}
    assert {name for name, size in layers.items() if size > WIDTHS[name]} == {best}
