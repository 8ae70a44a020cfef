"""A child of a trained network, as it was decided on and stands in the books."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from planter.front.aim import Place
from planter.front.objectives import OBJECTIVES


def child_id(number: int) -> str:
    """The id of a child, by the number of its row."""
    return f"e{number:04d}"


@dataclass(frozen=True)
class Offspring:
    """A child as it was decided on: of which point, by which edits (`to_data`), trained how; `macs`
    and `accuracy`, the study's metric whatever it is, are what it is aimed at, and `costs` where
    they are others than macs; `train_macs` what its training is expected to take."""

    parent: str
    edits: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]
    macs: float
    accuracy: float
    train_macs: int
    costs: Sequence[float] = ()

    @property
    def edit(self) -> str:
        """The name of its first edit."""
        return str(self.edits[0]["edit"])

    @property
    def all_but_seed(self) -> str:
        """What another child has in common with it that is trained in another order of images."""
        return json.dumps([self.parent, list(self.edits), self.recipe["lr"]], sort_keys=True)

    def place(self, objectives: Sequence[str]) -> Place:
        merit = OBJECTIVES[objectives[0]].merit_of(self.accuracy)
        return Place(merit, *(self.costs or (self.macs,)))

    def to_data(self) -> dict[str, Any]:
        data = asdict(self)
        return data if self.costs else {k: v for k, v in data.items() if k != "costs"}
