"""Torch-Pruning: global group magnitude, to each size from the teacher or from the next larger."""

from __future__ import annotations

import copy

import torch
import torch_pruning
from counting import Passes
from task import Arena
from torch import nn

from planter import cost

STEPS, MOST = 200, 0.97
"""Iterative steps to a pruning ratio, fine enough to meet a size from below."""


def run(arena: Arena, variant: str) -> None:
    parent = arena.teacher
    for target in arena.targets():
        network = copy.deepcopy(parent).requires_grad_(True)
        with Passes(network) as passes:
            pruned = _pruned(network, target, arena.data.image, arena.data.classes)
        arena.search_macs += passes.macs
        trained = arena.child(pruned)
        if variant == "chain":
            parent = trained


def _pruned(network: nn.Module, macs: int, image: tuple[int, int, int], classes: int) -> nn.Module:
    """The network, in place, after the first step that leaves at most so many multiply-adds.

    Raises ValueError where the last step leaves more.
    """
    pruner = torch_pruning.pruner.MetaPruner(
        network.eval(),
        torch.zeros(1, *image),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=MOST,
        iterative_steps=STEPS,
        ignored_layers=[m for m in network.modules() if _gives_logits(m, classes)],
    )
    for _ in range(STEPS):
        if cost(network, image).macs <= macs:
            return network
        pruner.step()
    raise ValueError(f"{STEPS} steps to {MOST} leave more than {macs:,} macs")


def _gives_logits(module: nn.Module, classes: int) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == classes
