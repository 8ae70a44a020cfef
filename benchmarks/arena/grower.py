"""GroMo: a ResNet-8 whose blocks grow inside, each child from the next smaller one.

GroMo grows the inner width of a residual block and leaves the width of the residual stream as it
is: the stream has half of the teacher's widths, blocks start with one inner channel.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from counting import Passes
from gromo.containers.resnet import init_full_resnet_structure
from gromo.utils.utils import set_device
from task import Arena, guided_loss
from torch import nn

from planter import cost
from planter.training.batches import Batch

PLAN = ((True, 4), (True, 1), (False, 1))
"""Whether every block grows at once or the best alone, and channels that each is given at most; the
next entry where one would grow beyond the size. One block at a time from the start took 200 rounds
of statistics, an eighth of the budget."""
SCALING = 0.5
"""Of what GroMo adds to the weights there are and of the new ones."""
BATCHES, BATCH = 8, 64
"""Images whose statistics choose where a network grows and what its new channels compute."""


def run(arena: Arena, variant: str) -> None:
    set_device("cpu")
    network, begun = _start(arena), False
    for target in sorted(arena.targets()):
        if not begun and cost(network, arena.data.image).macs > target:
            continue  # the stream alone is larger than this size
        network = _grown(network, target, arena)
        arena.child(network, scratch=not begun)
        begun = True


def _start(arena: Arena) -> nn.Module:
    stream = arena.task.widths["group1"] // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arena.seed)
        network: nn.Module = init_full_resnet_structure(
            input_shape=arena.data.image,
            out_features=arena.data.classes,
            nb_stages=3,
            number_of_blocks_per_stage=1,
            inplanes=stream,
            hidden_channels=(1, 1, 1),
            small_inputs=True,
            skip_first_downsample=False,
            use_preactivation=False,
            normalization="batch",
            device=torch.device("cpu"),
        )
    return network


def _grown(network: nn.Module, macs: int, arena: Arena) -> nn.Module:
    """The network, grown as far as it goes within so many multiply-adds."""
    step = 0
    for everywhere, neurons in PLAN:
        while True:
            wider = copy.deepcopy(network)
            with Passes(wider) as passes:
                _grow_(wider, neurons, step, arena, everywhere=everywhere)
            arena.search_macs += 3 * passes.macs  # each forward pass has its backward pass
            step += 1
            before, after = (cost(one, arena.data.image).macs for one in (network, wider))
            if not before < after <= macs:  # too large, or no new channel would lower the loss
                break
            network = wider
    return network


def _grow_(network: Any, neurons: int, step: int, arena: Arena, *, everywhere: bool) -> None:
    """New inner channels where the loss falls, to the first order."""
    train = arena.data.train
    generator = torch.Generator().manual_seed(1000 * arena.seed + step)
    order = torch.randperm(len(train), generator=generator)
    network.set_growing_layers("all")
    network.init_computation()
    network.eval()
    for index in order[: BATCHES * BATCH].split(BATCH):
        images = train.normalise(train.batch(index))
        with torch.no_grad():
            guide = arena.teacher.eval()(images)
        network.zero_grad()
        batch = Batch(images, train.labels[index], guide)
        guided_loss(network, batch, temperature=arena.task.temperature).backward()
        network.update_computation()
        arena.search_macs += arena.teacher_macs * len(index)
    network.compute_optimal_updates(maximum_added_neurons=neurons)
    layers = list(network._growing_layers)
    if not everywhere:
        layers = [layers[network.select_best_update()]]
    network.reset_computation()
    network.set_scaling_factor(SCALING)
    for layer in layers:
        layer.apply_change()
        layer.delete_update()
    network.currently_updated_layer_index = None
    network.zero_grad()
