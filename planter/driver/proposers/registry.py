"""The proposers of a search, in the order in which they are asked for jobs."""

from __future__ import annotations

from collections.abc import Callable

from planter.driver.proposers.evolving import Evolving
from planter.driver.proposers.fixed import Baselines, Teacher
from planter.driver.proposers.planting import Rounds
from planter.driver.proposers.proposer import Proposer, SearchContext
from planter.driver.proposers.sampling import Sampling

Maker = Callable[[SearchContext], Proposer | None]
"""Makes a proposer; None for a study that does not ask for it."""

PROPOSERS: list[Maker] = [Teacher.of, Baselines, Rounds.of, Sampling.of, Evolving.of]


def proposers_for(context: SearchContext) -> list[Proposer]:
    """Those that the study asks for."""
    made = (make(context) for make in PROPOSERS)
    return [proposer for proposer in made if proposer is not None]
