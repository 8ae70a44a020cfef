"""Edits that leave the network as it is: it is trained further, or in another form."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planter.arch import Architecture
from planter.edits.expand import check_kernels
from planter.evolution.edit import Bench, EditError, Individual, alone
from planter.kernels.forms import form_of


@dataclass(frozen=True)
class GoOn:
    """The same network, trained further."""

    def check(self, architecture: Architecture, pipeline: str) -> None:
        """Any network can be trained further."""

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        return replace(parent, architecture=alone(parent.architecture, parent.pipeline)), 0


@dataclass(frozen=True)
class Reform:
    """The same network, its kernels in another form (`kflo:2x4`, `do_conv`, ...) while it trains;
    collapsed afterwards. Composed with others it comes last."""

    form: str

    def check(self, architecture: Architecture, pipeline: str) -> None:
        try:
            check_kernels(alone(architecture, pipeline), form_of(self.form))
        except ValueError as error:
            raise EditError(str(error)) from error

    def apply(self, parent: Individual, bench: Bench) -> tuple[Individual, int]:
        return parent, 0
