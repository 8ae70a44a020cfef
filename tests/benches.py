"""Benches of edits that measure what a test puts in, or by plain autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from planter.evolution.edit import Measured


@dataclass
class Bench:
    """Measures nothing but what a test puts in."""

    seed: int = 7
    found: dict = None  # type: ignore[assignment]
    beyond: tuple = ()

    def gradients(self, parent):
        network = parent.network
        torch.manual_seed(0)
        network.zero_grad()
        network(torch.randn(4, *parent.architecture.options["image"])).square().sum().backward()
        return Measured({n: p.grad.clone() for n, p in network.named_parameters()}, 1234)

    def within_bounds(self, architecture, pipeline):
        return architecture.key() not in self.beyond

    def falls(self, parent, children):
        self.asked = dict(children)
        return Measured({n: self.found[n] for n in children if n in self.found}, 77)


class Probed(Bench):
    """Gradients by plain autograd of one loss, and the state of each network that was asked for."""

    def __init__(self, images):
        super().__init__()
        self.images = images
        self.seen = []

    def gradients(self, probe):
        self.seen.append(probe.network.state_dict())
        return self.gradients_of(probe.network)

    def gradients_of(self, network):
        network.zero_grad()
        network(self.images).logsumexp(1).sum().backward()
        return Measured({n: p.grad.clone() for n, p in network.named_parameters()}, 1234)


def counted(one):
    """Multiply-adds as torch counts them, of the module itself."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        one.network(torch.zeros(1, *one.architecture.options["image"]))
    return counter.get_total_flops() // 2
