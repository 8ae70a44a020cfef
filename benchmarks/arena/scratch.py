"""Networks of uniform widths, trained from nothing under the teacher's guidance."""

from __future__ import annotations

from task import Arena

from planter import build


def run(arena: Arena, variant: str) -> None:
    for numerator in arena.task.scratch:
        architecture = arena.task.architecture(arena.data, numerator)
        network = build(architecture, seed=arena.seed)
        arena.child(network, scratch=True, widths=architecture.widths)
