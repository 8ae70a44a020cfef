"""Channels removed: the child is a part of its parent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from planter.arch import Architecture
from planter.channels.groups import groups, with_widths
from planter.channels.importance import MEASURES
from planter.edits.narrow import inherit_channels_, narrowed, widths_of
from planter.evolution.edit import Bench, EditError, Individual, alone, macs_of
from planter.evolution.sizes import chosen, even, ranked, sizes_for
from planter.networks.assembly import build_network

EVEN = "even"
_LEAST = 0.2
"""Share of each group that stays, whatever the scores say: at once a layer would be cut through."""


@dataclass(frozen=True)
class Shrink:
    """Removes channels until `size`, a share of the parent's multiply-adds, is left, or less where
    the study's bounds (of parameters) ask for it.

    With the rule "even" every width shrinks by one factor, and loses the channels of the least
    magnitude; with a measure of `planter.channels.importance` as rule, the channels that matter
    least over all widths go.
    """

    size: float
    rule: str = EVEN

    def check(self, architecture: Architecture, pipeline: str) -> None:
        if self.rule != EVEN and self.rule not in MEASURES:
            raise EditError(f"rule {self.rule!r}: expected {EVEN}, {', '.join(MEASURES)}")
        if not 0 < self.size < 1:
            raise EditError(f"size {self.size}: a smaller network has a share of the macs")
        found = groups(architecture, pipeline)
        if not found:
            raise EditError(f"{architecture.builder} has no width that can change by itself")
        least = 0.0 if self.rule == EVEN else _LEAST
        sizes = [max(math.ceil(least * group.size), 1) for group in found]
        smallest = macs_of(with_widths(architecture, widths_of(found, sizes)), pipeline)
        most = self.size * macs_of(architecture, pipeline)
        if smallest > most:
            raise EditError(
                f"its narrowest network costs {smallest:,} macs, more than the {int(most):,} wanted"
            )

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        self.check(parent.architecture, parent.pipeline)
        before = alone(parent.architecture, parent.pipeline)
        found = groups(before, parent.pipeline)
        macs, gradients = 0, {}
        if self.rule == "taylor":
            measured = bench.gradients(parent)
            macs, gradients = measured.macs, dict(measured.values)
        state = parent.network.state_dict()
        measure = MEASURES["magnitude" if self.rule == EVEN else self.rule]
        scores = [measure(group, state, gradients) for group in found]
        most = self.size * macs_of(before, parent.pipeline)
        at = even(found, 1e-3, 1.0) if self.rule == EVEN else ranked(scores, _LEAST)
        # A rank over all layers leaves more parameters than the share of multiply-adds says.
        within = partial(bench.within_bounds, pipeline=parent.pipeline)
        after, sizes = sizes_for(before, parent.pipeline, found, most, at, within)
        kept = [chosen(*one) for one in zip(found, scores, sizes, strict=True)]
        child = build_network(after, parent.pipeline, bench.seed)
        child.to(next(parent.network.parameters()))
        inherit_channels_(child, parent.network, found, kept)
        moments = narrowed(parent.moments, found, kept)
        return Individual(after, parent.pipeline, child.eval(), moments), macs
