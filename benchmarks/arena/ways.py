"""The ways of the arena: what each is called, where its code lies, what it needs to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Way:
    """`module` of this folder has `run(arena, variant)`; `peer` is the tool whose environment it
    needs, None for planter's own. `full_budget`: whether it may spend all of the task's budget."""

    label: str
    module: str
    variant: str = ""
    peer: str | None = None
    evolves: bool = False
    full_budget: bool = True


WAYS = {
    "scratch": Way("uniform widths from scratch, distilled", "scratch"),
    "chain": Way("each child from the next larger one, by group magnitude", "chain"),
    "torch-pruning": Way(
        "Torch-Pruning in one shot", "torch_pruning_ways", "one-shot", "torch-pruning"
    ),
    "torch-pruning-chain": Way(
        "Torch-Pruning, each from the next larger one",
        "torch_pruning_ways",
        "chain",
        "torch-pruning",
    ),
    "fastnas": Way("ModelOpt FastNAS", "fastnas", peer="fastnas"),
    "gromo": Way("GroMo, each grown from the next smaller one", "grower", peer="gromo"),
    "planter-evolve": Way("planter evolve", "planter_ways", "evolve", evolves=True),
    "planter-evolve-less": Way(
        "planter evolve, three quarters of the budget",
        "planter_ways",
        "evolve-less",
        evolves=True,
        full_budget=False,
    ),
    "planter-evolve-asked": Way(
        "planter evolve, the teacher asked in every step",
        "planter_ways",
        "evolve-asked",
        evolves=True,
    ),
    "planter-small": Way(
        "planter evolve from the small end", "planter_ways", "small", evolves=True
    ),
    "planter-sample": Way("planter sample alone", "planter_ways", "sample"),
}
PEERS = ("torch-pruning", "fastnas", "gromo")
RIVALS = tuple(name for name, way in WAYS.items() if way.module != "planter_ways")
"""What planter is compared with."""


def missing(way: Way, pythons: dict[str, Path]) -> str | None:
    """Why a way cannot run here, in words; None where it can."""
    if way.peer is not None:
        if way.peer not in pythons:
            return f"no environment: give --python-{way.peer} PATH (README.md)"
        if not pythons[way.peer].is_file():
            return f"--python-{way.peer}: no interpreter at {pythons[way.peer]}"
    if way.evolves:
        from planter.study.schema import Study

        if "evolve" not in Study.model_fields:
            return "this planter has no evolve"
    return None
