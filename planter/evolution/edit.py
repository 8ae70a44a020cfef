"""What an edit is, and what it works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from planter.arch import Architecture
from planter.costs.macs import cost

MEASURED_IMAGES = 2048
"""Training images that edits are measured on, at most."""


class EditError(ValueError):
    """A network cannot take an edit; the message says why."""


@dataclass(frozen=True)
class Individual:
    """One network that can be edited: a pipeline of an architecture, as the plain module that is
    saved; and, if known, what an optimiser has learned of its parameters, by name (`moments`)."""

    architecture: Architecture
    pipeline: str
    network: nn.Module
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-adds of a forward pass of one image."""
        return macs_of(self.architecture, self.pipeline)


class Measured(NamedTuple):
    """Numbers by name, and the multiply-adds that it took to measure them."""

    values: Mapping[str, Any]
    macs: int


class Bench(Protocol):
    """What an edit may ask of the search it is part of."""

    @property
    def seed(self) -> int:
        """Every random draw of the edit follows from it."""

    def gradients(self, parent: Individual) -> Measured:
        """Gradients of the loss that its child will learn by, by parameter, over some training
        images."""

    def within_bounds(self, architecture: Architecture, pipeline: str) -> bool:
        """Whether a network costs no more than the study allows, as far as its shapes tell."""

    def falls(self, parent: Individual, children: Mapping[str, Individual]) -> Measured:
        """By how much a short planting round lowers the loss of each child of a parent, channels
        planted in it alone being trained. Those that cannot be measured are left out."""


class Edit(Protocol):
    """Frozen data that makes a child of a parent. Its fields are numbers, texts and None, so that
    it can be saved with the child and done again (`planter.evolution.table`)."""

    def check(self, architecture: Architecture, pipeline: str) -> None:
        """Raises EditError, with the reason, for a network that cannot take the edit: by its
        architecture alone, before anything is computed."""

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        """The child, in eval mode, before any training, and the multiply-adds that the edit took
        itself. The parent stays as it is. The child's moments are the parent's, of the channels
        that stay; of others there are none. Raises EditError as `check`."""


def macs_of(architecture: Architecture, pipeline: str) -> int:
    """Multiply-adds of a pipeline for one image."""
    return cost(architecture).pipelines[pipeline].macs


def alone(architecture: Architecture, pipeline: str) -> Architecture:
    """The architecture with that pipeline, and no other beside base."""
    ways = {name: way for name, way in architecture.pipelines.items() if name == pipeline}
    return replace(architecture, pipelines=ways)


def gradient_sums(sums: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Sums of gradients with those that a network's parameters have now."""
    return {
        name: parameter.grad.detach() + sums.get(name, 0.0)
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
