"""Channels planted, all weights inherited: the child starts as its parent's function."""

from __future__ import annotations

from dataclasses import dataclass

from planter.arch import Architecture
from planter.backbones import is_traced
from planter.channels.groups import groups, with_widths
from planter.edits.inherit import inherit_weights
from planter.edits.widen import inherit_parts_, widened
from planter.evolution.edit import Bench, EditError, Individual, alone, macs_of
from planter.evolution.shrink import EVEN
from planter.evolution.sizes import even, sizes_for
from planter.networks.assembly import build_network
from planter.tracing.axes import Group

MEASURED = "measured"
_LARGEST = 64.0


@dataclass(frozen=True)
class Grow:
    """Plants channels until the network costs `size` times its parent's multiply-adds.

    With the rule "even" in every width by one factor; with "measured" in that width whose channels
    lower the loss most for each multiply-add, as a short planting round of all of them measures
    it; with the name of a width in that one. What reads a new channel starts at zero.
    """

    size: float
    rule: str = EVEN

    def check(self, architecture: Architecture, pipeline: str) -> None:
        if not self.size > 1:
            raise EditError(f"size {self.size}: a larger network costs more than once the macs")
        found = groups(architecture, pipeline)
        if not found:
            raise EditError(f"{architecture.builder} has no width that can change by itself")
        names = [name for group in found for name in group.widths]
        if self.rule not in (EVEN, MEASURED, *names):
            raise EditError(
                f"rule {self.rule!r}: expected {EVEN}, {MEASURED} or a width: {', '.join(names)}"
            )
        most = self.size * macs_of(architecture, pipeline)
        wider = (
            with_widths(architecture, dict.fromkeys(group.widths, group.size + 1))
            for group in found
            if self.rule in (EVEN, MEASURED, *group.widths)
        )
        if all(macs_of(one, pipeline) > most for one in wider):
            raise EditError(f"one channel more costs more than {self.size:g} times the macs")

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        self.check(parent.architecture, parent.pipeline)
        found = groups(parent.architecture, parent.pipeline)
        if self.rule != MEASURED:
            growing = [g for g in found if self.rule in (EVEN, *g.widths)]
            child = self._grown(parent, found, growing, bench.seed)
            if child.macs <= parent.macs:
                raise EditError(f"no width can grow within {self.size:g} times the macs")
            return child, 0
        children = {}
        for group in found:
            try:
                child = self._grown(parent, found, [group], bench.seed)
            except EditError:
                continue  # one channel of it costs more than all that may be added
            if child.macs > parent.macs:
                children["+".join(group.widths)] = child
        if not children:
            raise EditError(f"a channel of any width costs more than {self.size:g} times the macs")
        measured = bench.falls(parent, children)
        if not measured.values:
            raise EditError("no width of it can be planted in by itself; rule: even")
        best = max(
            measured.values,
            key=lambda name: measured.values[name] / (children[name].macs - parent.macs),
        )
        return children[best], measured.macs

    def _grown(
        self, parent: Individual, every: list[Group], growing: list[Group], seed: int
    ) -> Individual:
        # Where some shortcuts pad, the other groups alone keep the function.
        growing = [group for group in growing if group.free and group.keeps] or growing
        before = alone(parent.architecture, parent.pipeline)
        most = self.size * macs_of(before, parent.pipeline)
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
            if moments is not None:
                moments = widened(moments, child, every, wider)
        else:
            inherit_weights(child, parent.network, "zero")
        return Individual(after, parent.pipeline, child.eval(), moments)
