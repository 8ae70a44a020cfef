"""A step-down entry in place of the first stages: the tail keeps what it learned (CNSN)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planter.arch import Architecture
from planter.edits.inherit import inherit_weights
from planter.evolution.edit import Bench, EditError, Individual, alone
from planter.networks.assembly import build_network, check_architecture
from planter.networks.cut_points import cuts, find_entry


@dataclass(frozen=True)
class Cut:
    """Enters before the stage or group `before`, through a convolution of this `kernel` and
    `stride`; by default the stride of what is cut and a kernel as large."""

    before: str
    kernel: int | None = None
    stride: int | None = None

    def check(self, architecture: Architecture, pipeline: str) -> None:
        try:
            check_architecture(self.described(architecture, pipeline)[0])
        except ValueError as error:
            raise EditError(str(error)) from error

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        self.check(parent.architecture, parent.pipeline)
        after, name = self.described(parent.architecture, parent.pipeline)
        child = build_network(after, name, bench.seed)
        child.to(next(parent.network.parameters()))
        inherit_weights(child, parent.network)
        return Individual(after, name, child.eval(), parent.moments), 0

    def described(self, architecture: Architecture, pipeline: str) -> tuple[Architecture, str]:
        """The architecture with the entry as its one pipeline, and that one's name."""
        known = cuts(alone(architecture, "base"))
        place = find_entry(known, self.before)
        before = architecture.pipelines.get(pipeline, {})
        if "after" in before:
            raise EditError(f"{pipeline} is a branch: what it reads of the base would be cut away")
        names = list(known.values())
        if "before" in before:
            entered = find_entry(known, str(before["before"]))
            if names.index(place) <= names.index(entered):
                raise EditError(f"{pipeline} enters before {entered.before} already")
        stride = place.stride if self.stride is None else self.stride
        kernel = stride if self.kernel is None else self.kernel
        name = f"from-{place.before}".replace(".", "-")
        way = {"before": place.before, "kernel": kernel, "stride": stride}
        return replace(architecture, pipelines={name: way}), name
