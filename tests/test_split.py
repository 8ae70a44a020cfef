"""Splits: one in memory, and one of another kind that has no more than the protocol."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from planter import Architecture
from planter.backbones import full_widths, with_data_options
from planter.data import InMemorySplit, Split
from planter.networks.assembly import build_network
from planter.planting.plants import live_channels, plant
from planter.planting.round import train_round
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.loop import fit
from planter.training.recipe import Recipe
from planter.training.scores import evaluate, predict


def logits_loss(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    return functional.cross_entropy(logits, labels)


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    return logits_loss(model(batch.images), batch.labels, None)


class Computed:
    """A split that holds no images: it draws them as they are asked for, as a stream would."""

    def __init__(self, split: InMemorySplit) -> None:
        self._split = split
        self.labels, self.mean, self.std = split.labels, split.mean, split.std
        self.image, self.dtype = split.image, split.dtype
        self.normalise, self.update = split.normalise, split.update
        self.asked = 0

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, index: Tensor | slice) -> Tensor:
        self.asked += 1
        return self._split.batch(index).clone()

    def sample(self, index: Tensor | slice) -> Split:
        return Computed(self._split.sample(index))

    def taken_by(self, mean: Tensor, std: Tensor) -> Split:
        return Computed(self._split.taken_by(mean, std))

    def to(self, device: str | torch.device) -> Split:
        return Computed(self._split.to(device))


def test_a_split_of_another_kind_trains_scores_and_plants_as_one_in_memory() -> None:
    """Nothing that trains asks a split for more than the protocol has."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (60,), generator=generator)
    half = torch.full((1, 1, 1), 0.5)
    held = InMemorySplit(images, labels, half, half)
    architecture = with_data_options(
        Architecture("convnet", full_widths("convnet", 3, {})), 4, (1, 8, 8)
    )
    recipe = Recipe(epochs=2, batch=20, ema=0.5, augment=Augment(crop=1, views=2))
    plain = Recipe(epochs=2, batch=20, augment=Augment(flip=True))
    found = []
    for split in (held, Computed(held)):
        network = build_network(architecture, seed=0)
        fit(network, entropy, split, recipe, seed=0)
        _, child = plant(architecture, network, "conv1", 2, seed=0)
        train_round(network, {"plant": child}, split, plain, logits_loss, teacher=None, seed=0)
        live = live_channels(child, "conv1", 3, split, images=30)
        found.append((evaluate(child, split), live, predict(child, split), child.state_dict()))
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2])
    for name, tensor in found[0][3].items():
        assert torch.equal(tensor, found[1][3][name]), name
