"""What a shipped search space may draw, so that it spends what a study has."""

from __future__ import annotations

from typing import Any

import optuna

from planter.backbones import with_data_options
from planter.costs.macs import cost
from planter.data import Data
from planter.driver.trials.cost import candidate_macs
from planter.study.schema import Study
from planter.study.space import Candidate, Space

_PART = 0.1
"""Of `budget.train_macs` that one training takes at most."""


def affordable(space: Space, study: Study, data: Data, teacher_macs: int) -> Space:
    """The space, which prunes draws of which a pipeline costs more than the teacher, where there is
    one, or whose training takes more than a tenth of the budget, where there is one."""
    budget = study.budget.train_macs

    def drawn(trial: Any) -> Any:
        candidate: object = space(trial)
        if not isinstance(candidate, Candidate):
            return candidate
        grown = with_data_options(candidate.grown, data.classes, data.image)
        ways = cost(grown).pipelines
        dearest = max(candidate.trained, key=lambda name: ways[name].macs)
        if teacher_macs and ways[dearest].macs > teacher_macs:
            told = f"{dearest} of {ways[dearest].macs:,} macs costs more than the teacher"
            raise optuna.TrialPruned(told)
        takes = candidate_macs(candidate, study, data, teacher_macs)
        if budget is not None and takes > _PART * budget:
            told = f"its training takes {takes / budget:.0%} of budget.train_macs"
            raise optuna.TrialPruned(told)
        return candidate

    return drawn
