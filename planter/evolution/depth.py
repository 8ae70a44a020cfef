"""Blocks added to a group, or taken out of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planter.arch import Architecture
from planter.backbones import find_builder
from planter.channels.groups import network_without_data
from planter.edits.inherit import inherit_weights
from planter.evolution.edit import Bench, EditError, Individual, alone
from planter.networks.assembly import build_network, check_architecture


@dataclass(frozen=True)
class Deepen:
    """Adds a block at the end of `group`, which hands on what it gets until it has learned: the
    function stays."""

    group: str

    def check(self, architecture: Architecture, pipeline: str) -> None:
        check_architecture(self.described(architecture, pipeline))

    def described(self, architecture: Architecture, pipeline: str) -> Architecture:
        """The architecture of the child."""
        return _with_blocks(architecture, pipeline, self.group, +1)

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        after = self.described(parent.architecture, parent.pipeline)
        child = build_network(after, parent.pipeline, bench.seed)
        child.to(next(parent.network.parameters()))
        inherit_weights(child, parent.network)
        count = block_counts(after)[self.group]
        block = child.get_submodule(f"{self.group}_{count}")
        block.start_as_identity_()  # type: ignore[operator]
        return Individual(after, parent.pipeline, child.eval(), parent.moments), 0


@dataclass(frozen=True)
class Remove:
    """Takes the last block of `group` out; what read it reads the block before."""

    group: str

    def check(self, architecture: Architecture, pipeline: str) -> None:
        check_architecture(self.described(architecture, pipeline))

    def described(self, architecture: Architecture, pipeline: str) -> Architecture:
        """The architecture of the child."""
        return _with_blocks(architecture, pipeline, self.group, -1)

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        after = self.described(parent.architecture, parent.pipeline)
        child = build_network(after, parent.pipeline, bench.seed)
        child.to(next(parent.network.parameters()))
        inherit_weights(child, parent.network)
        return Individual(after, parent.pipeline, child.eval(), parent.moments), 0


def block_counts(architecture: Architecture) -> dict[str, int]:
    """The blocks of each group of a family that can have more or fewer; empty for others."""
    builder = find_builder(architecture.builder)
    return {} if builder.blocks is None else dict(builder.blocks(**architecture.options))


def groups_behind(architecture: Architecture, pipeline: str) -> dict[str, int]:
    """Those groups whose last block belongs to a pipeline's network, which may enter late."""
    parts = dict(network_without_data(alone(architecture, pipeline), pipeline).named_children())
    counts = block_counts(architecture)
    return {group: count for group, count in counts.items() if f"{group}_{count}" in parts}


def _with_blocks(architecture: Architecture, pipeline: str, group: str, more: int) -> Architecture:
    counts = groups_behind(architecture, pipeline)
    if group not in counts:
        if not counts:
            raise EditError(f"{architecture.builder} has no blocks that can be added or removed")
        raise EditError(f"{group!r} is no group of blocks here; groups are {', '.join(counts)}")
    if counts[group] + more < 1:
        raise EditError(f"{group} has one block, which cannot be removed")
    last = f"{group}_{counts[group]}"
    entered = architecture.pipelines.get(pipeline, {}).get("before")
    if more < 0 and entered == last:
        raise EditError(f"{pipeline} enters before {last}, which cannot be removed")
    blocks = {**block_counts(architecture), group: counts[group] + more}
    widths = {
        name: width
        for name, width in architecture.widths.items()
        if more > 0 or not name.startswith(f"{last}.")
    }
    options = {**architecture.options, "blocks": list(blocks.values())}
    return replace(alone(architecture, pipeline), widths=widths, options=options)
