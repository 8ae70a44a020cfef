"""Channels planted, all weights inherited: the child starts as its parent's function.

The rule "gradient" is GradMax's measure (arXiv 2201.05125) of where to grow: the squared norm of
the loss's gradient in the weights, zero as yet, that are to read new channels. To the first order
a step of gradient descent lowers the loss by it. Here new channels have fresh filters, GradMax
optimises them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from planter.arch import Architecture
from planter.backbones import is_traced
from planter.channels.groups import groups, with_widths
from planter.edits.inherit import inherit_weights
from planter.edits.widen import inherit_parts_, widened
from planter.evolution.edit import Bench, EditError, Individual, Measured, alone, macs_of
from planter.evolution.shrink import EVEN
from planter.evolution.sizes import even, sizes_for
from planter.networks.assembly import build_network
from planter.tracing.axes import Group

MEASURED, GRADIENT = "measured", "gradient"
_LARGEST = 64.0
_GROWING = 0.5
"""Share of a training in which a network grows that grows while it trains: what comes late has
little of the schedule left to learn."""
_PROBED = 0.25
"""Channels, as a share of those there are, that gradients are measured with."""


@dataclass(frozen=True)
class Grow:
    """Plants channels until the network costs `size` times its parent's multiply-adds.

    With the rule "even" in every width by one factor; with "measured" in that width whose channels
    lower the loss most for each multiply-add, as a short planting round of all of them measures
    it; with "gradient" where they promise to, by one pass of gradients; with the name of a width in
    that one. What reads a new channel starts at zero.

    In several `steps`, of equal factors, each follows the rule anew: a task trains between them.
    New channels then read each other from the start.
    """

    size: float
    rule: str = EVEN
    steps: int = field(default=1, metadata={"told": False})

    def check(self, architecture: Architecture, pipeline: str) -> None:
        if not self.size > 1:
            raise EditError(f"size {self.size}: a larger network costs more than once the macs")
        if self.steps < 1:
            raise EditError(f"steps {self.steps}: a network grows in one step or more")
        found = groups(architecture, pipeline)
        if not found:
            raise EditError(f"{architecture.builder} has no width that can change by itself")
        names = [name for group in found for name in group.widths]
        rules = (EVEN, MEASURED, GRADIENT)
        if self.rule not in (*rules, *names):
            raise EditError(
                f"rule {self.rule!r}: expected {', '.join(rules)} or a width: {', '.join(names)}"
            )
        most = self.size * macs_of(architecture, pipeline)
        wider = (
            with_widths(architecture, dict.fromkeys(group.widths, group.size + 1))
            for group in found
            if self.rule in (*rules, *group.widths)
        )
        if all(macs_of(one, pipeline) > most for one in wider):
            raise EditError(f"one channel more costs more than {self.size:g} times the macs")

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        self.check(parent.architecture, parent.pipeline)
        child, macs = parent, 0
        for number in range(self.steps):
            child, more = self.step(number, parent.macs, child, bench)
            macs += more
        return child, macs

    def step(
        self, number: int, first: int, parent: Individual, bench: Bench
    ) -> tuple[Individual, int]:
        """What `apply` does in one step, counted from 0, of a network that cost `first`
        multiply-adds before all of them. Where no channel fits into it, the parent itself: a later
        step has room for it. Raises EditError where the last step leaves it as small as it was."""
        most = first * self.size ** ((number + 1) / self.steps)
        try:
            return self._planted(parent, most, bench)
        except EditError:
            if number + 1 < self.steps or parent.macs > first:
                return parent, 0
            raise

    def parts(self, epochs: int) -> list[tuple[int, int]]:
        """The epochs between which a network trains after each step, of a training of so many that
        it grows in: the first step before it, the others within its first half."""
        begins = [round(_GROWING * epochs * number / self.steps) for number in range(self.steps)]
        return list(pairwise([*begins, epochs]))

    def mean_size(self, epochs: int) -> float:
        """What the network costs on average over such a training, beside its parent."""
        sizes = [self.size ** ((number + 1) / self.steps) for number in range(self.steps)]
        parts = zip(sizes, self.parts(epochs), strict=True)
        return float(sum(size * (end - begin) for size, (begin, end) in parts)) / epochs

    def _planted(self, parent: Individual, most: float, bench: Bench) -> tuple[Individual, int]:
        """The child of at most so many multiply-adds, and what choosing where it grows took."""
        found = groups(parent.architecture, parent.pipeline)
        if self.rule not in (MEASURED, GRADIENT):
            growing = [g for g in found if self.rule in (EVEN, *g.widths)]
            child = self._grown(parent, found, growing, most, bench.seed)
            if child.macs <= parent.macs:
                raise EditError(f"no width can grow within {self.size:g} times the macs")
            return child, 0
        children = {}
        for group in found:
            try:
                child = self._grown(parent, found, [group], most, bench.seed)
            except EditError:
                continue  # one channel of it costs more than all that may be added
            if child.macs > parent.macs:
                children["+".join(group.widths)] = child
        if not children:
            raise EditError(f"a channel of any width costs more than {self.size:g} times the macs")
        # A width may cost far more parameters than multiply-adds: the others, if there are any.
        within = {
            name: child
            for name, child in children.items()
            if bench.within_bounds(child.architecture, child.pipeline)
        }
        children = within or children
        if self.rule == GRADIENT:
            measured = _first_order(parent, found, bench)
            best = max(children, key=lambda name: measured.values.get(name, -math.inf))
            return children[best], measured.macs
        measured = bench.falls(parent, children)
        if not measured.values:
            raise EditError("no width of it can be planted in by itself; rule: even or gradient")
        best = max(
            measured.values,
            key=lambda name: measured.values[name] / (children[name].macs - parent.macs),
        )
        return children[best], measured.macs

    def _grown(
        self,
        parent: Individual,
        every: list[Group],
        growing: list[Group],
        most: float,
        seed: int,
    ) -> Individual:
        growing = _that_keep_the_function(growing)
        before = alone(parent.architecture, parent.pipeline)
        factors = even(every, 1.0, _LARGEST)

        def sizes_at(at: float) -> list[int]:
            sizes = zip(every, factors(at), strict=True)
            return [size if group in growing else group.size for group, size in sizes]

        after, _ = sizes_for(before, parent.pipeline, every, most, sizes_at)
        child = build_network(after, parent.pipeline, seed)
        child.to(next(parent.network.parameters()))
        moments = parent.moments
        if is_traced(after):
            wider = groups(after, parent.pipeline)
            inherit_parts_(child, parent.network, every, wider)
            moments = widened(moments, child, every, wider)
        else:
            inherit_weights(child, parent.network, "zero" if self.steps == 1 else "new")
        return Individual(after, parent.pipeline, child.eval(), moments)


def probe_of(architecture: Architecture, pipeline: str) -> Architecture:
    """The network that gradients are measured in: with some channels more in every width."""
    found = _that_keep_the_function(groups(architecture, pipeline))
    more = {name: _probed(group) for group in found for name in group.widths}
    return with_widths(alone(architecture, pipeline), more)


def _that_keep_the_function(found: list[Group]) -> list[Group]:
    """Where some shortcuts pad, the other groups alone do; all where there is no other."""
    return [group for group in found if group.free and group.keeps] or found


def _probed(group: Group) -> int:
    return group.size + math.ceil(_PROBED * group.size)


def _first_order(parent: Individual, found: list[Group], bench: Bench) -> Measured:
    """By how much a small step along the gradient lowers the loss through new channels of each
    group, for each multiply-add that they cost; up to one factor for all."""
    before = alone(parent.architecture, parent.pipeline)
    after = probe_of(before, parent.pipeline)
    probe = build_network(after, parent.pipeline, bench.seed)
    probe.to(next(parent.network.parameters()))
    # Zero also where new channels would read each other: each group is measured as if alone.
    traced, wider = is_traced(after), found
    if traced:
        wider = groups(after, parent.pipeline)
        inherit_parts_(probe, parent.network, found, wider)
    else:
        inherit_weights(probe, parent.network, "zero")
    measured = bench.gradients(Individual(after, parent.pipeline, probe.eval()))
    axes = {group.widths: group.axes for group in wider}
    values = {}
    for group in _that_keep_the_function(found):
        new = torch.arange(group.size, _probed(group))
        fall = 0.0
        for axis in axes[group.widths]:
            gradient = measured.values.get(axis.tensor)
            # Groups that are not traced do not say what reads: it is the second axis.
            reads = axis.reads if traced else axis.axis == 1
            if reads and gradient is not None:
                places = axis.indices(new).to(gradient.device)
                fall += float(gradient.index_select(axis.axis, places).square().sum())
        more = with_widths(before, dict.fromkeys(group.widths, _probed(group)))
        added = macs_of(more, parent.pipeline) - parent.macs
        values["+".join(group.widths)] = fall / added
    return Measured(values, measured.macs)
