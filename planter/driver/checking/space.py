"""What only draws from a search space can tell of it, before anything is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FixedTrial

from planter.backbones import with_data_options
from planter.costs.macs import cost
from planter.data import Data
from planter.driver.checking.growable import check_plants
from planter.driver.checking.recipes import check_drawn_augmentation
from planter.driver.proposers.redraws import IN_A_ROW
from planter.driver.trials.affordable import affordable
from planter.driver.trials.bounds import LATENCY, excess
from planter.driver.trials.cost import candidate_macs
from planter.driver.trials.given import Draw, Ranges, add_ranges
from planter.driver.trials.networks import (
    Planned,
    candidate_architecture,
    check_network,
    recipes_of,
)
from planter.study.findings import Findings
from planter.study.schema import Study
from planter.study.space import Candidate, Space, load_space

_CHECKED = 8
"""Networks that are checked in full."""
_WEIGHED, _WEIGHED_S = 50, 4.0
"""Draws that are compared with the bounds at most, and seconds that may take."""
_FEW = 0.1
"""Share of the draws within the bounds below which a warning is given."""
_PLACE = "sample.space"


@dataclass
class Drawn:
    """The space, the networks that were checked, and how draws stand to the bounds on macs and
    parameters: `within` of `weighed` (None without such bounds)."""

    space: Space
    networks: list[Planned] = field(default_factory=list)
    weighed: int = 0
    within: int | None = None
    train_macs: list[int] = field(default_factory=list)
    """What the training of each draw would take."""
    draws: list[Draw] = field(default_factory=list)

    @property
    def ranges(self) -> Ranges:
        """The space's parameters, as far as these draws show them."""
        found: Ranges = {}
        for draw in self.draws:
            add_ranges(found, draw.distributions)
        return found

    @property
    def mean_train_macs(self) -> float:
        return fmean(self.train_macs)


def check_space(study: Study, data: Data, teacher_macs: int, found: Findings) -> Drawn | None:
    """The study's search space, tried on random trials that are written nowhere; None where there
    is none, or where it has problems, which are `found`."""
    settings = study.sample
    if settings is None:
        return None
    space = found.attempt(
        _PLACE,
        settings.space,
        lambda: load_space(
            settings.space,
            image=data.image,
            classes=data.classes,
            multiple=settings.multiple,
            teacher_macs=teacher_macs or None,
        ),
    )
    if space is None:
        return None
    if ":" not in settings.space:  # those of one's own draw what they say
        drawn = Drawn(affordable(space, study, data, teacher_macs))
        try:
            _try(drawn, study, data, teacher_macs, found)
            return drawn
        except _PrunedError as error:
            found.warnings.append(
                f"{_PLACE}: no draw of {settings.space} is as cheap as a shipped space is to be; "
                f"any is trained ({error})"
            )
        except ValueError:
            pass  # told below
    drawn = Drawn(space)
    tried = partial(_try, drawn, study, data, teacher_macs, found)
    return drawn if found.attempt(_PLACE, settings.space, tried) else None


class _PrunedError(ValueError):
    """The space raised TrialPruned again and again."""


def _try(drawn: Drawn, study: Study, data: Data, teacher_macs: int, found: Findings) -> bool:
    """Raises ValueError for what is wrong with the space."""
    limits = {k: v for k, v in study.objectives.bounds.limits().items() if k != LATENCY}
    drawn.within = 0 if limits else None
    beyond: list[Planned] = []
    ends = math.inf
    for params, candidate in _draws(drawn.space, study.seed):
        first = drawn.weighed < _CHECKED
        planned = _planned(candidate, study, data, check=first)
        if first:
            _check_repeats(drawn.space, params, planned, study, data)
            found.warnings += [text for text in candidate.warnings if text not in found.warnings]
        drawn.weighed += 1
        drawn.draws.append(Draw(dict(params.params), dict(params.distributions)))
        drawn.train_macs.append(candidate_macs(candidate, study, data, teacher_macs))
        fits = not limits or _within(limits, planned, candidate)
        if limits and fits:
            drawn.within = (drawn.within or 0) + 1
        if drawn.weighed == _CHECKED:  # full checks may take longer than all that follows
            ends = time.monotonic() + _WEIGHED_S
        if len(drawn.networks) < _CHECKED and (fits or first):
            (drawn.networks if fits else beyond).append(planned)
        if drawn.weighed >= (_WEIGHED if limits else _CHECKED) or (
            drawn.weighed >= _CHECKED and time.monotonic() > ends
        ):
            break
    # Where hardly any fits, the others still say what such networks cost.
    drawn.networks += beyond[: _CHECKED - len(drawn.networks)] if not drawn.networks else []
    _warn_of_few(drawn, study, found)
    return True


def _draws(space: Space, seed: int) -> Iterator[tuple[optuna.trial.Trial, Candidate]]:
    """Random draws that the space does not prune. Raises ValueError where it prunes too many in a
    row, draws nothing, or raises anything else."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    pruned, why = 0, ""
    while pruned < IN_A_ROW:
        trial = study.ask()
        try:
            candidate = space(trial)
        except optuna.TrialPruned as error:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            pruned, why = pruned + 1, str(error)
            continue
        except Exception as error:  # the user's code
            raise ValueError(f"raised {type(error).__name__}: {error}") from error
        if not isinstance(candidate, Candidate):
            raise ValueError(
                f"a space returns a planter.Candidate, got {type(candidate).__name__}"
                + (": is a return missing?" if candidate is None else "")
            )
        if not trial.params:
            raise ValueError(
                "it suggests nothing, so that every trial would be the same network: "
                "trial.suggest_int, suggest_float or suggest_categorical, or a baseline instead"
            )
        pruned = 0
        yield trial, candidate
    told = f" (the last: {why})" if why else ""
    raise _PrunedError(
        f"it raised TrialPruned for {pruned} random draws in a row{told}: let more through"
    )


def _planned(candidate: Candidate, study: Study, data: Data, *, check: bool) -> Planned:
    architecture = candidate_architecture(candidate, study, data)
    if check:
        check_network(architecture)
        start = with_data_options(candidate.architecture, data.classes, data.image)
        check_plants(candidate, start)
        check_drawn_augmentation(candidate, study, data)
    recipe = recipes_of(candidate, study).network
    return Planned(architecture, recipe, candidate.kernels, guided=candidate.guided)


def _check_repeats(
    space: Space, trial: optuna.trial.Trial, planned: Planned, study: Study, data: Data
) -> None:
    """Raises ValueError unless the same parameters give the same network once more, as a worker
    asks for them."""
    again = space(FixedTrial(dict(trial.params), number=trial.number))
    architecture = candidate_architecture(again, study, data)
    if architecture != planned.architecture or again.kernels != planned.kernels:
        raise ValueError(
            f"it gives another network for the same parameters {trial.params}: a space must depend "
            "on its trial alone (no random, no counters)"
        )


def _within(limits: Mapping[str, float], planned: Planned, candidate: Candidate) -> bool:
    costs = cost(planned.architecture).pipelines
    ways: list[dict[str, Any]] = [
        {"macs": costs[name].macs, "params": costs[name].params} for name in candidate.trained
    ]
    return all(value <= 0 for value in excess(limits, ways).values())


def _warn_of_few(drawn: Drawn, study: Study, found: Findings) -> None:
    if drawn.within is None or drawn.within >= _FEW * drawn.weighed:
        return
    found.warnings.append(
        f"{drawn.within} of {drawn.weighed} random draws of the space keep to objectives.bounds: "
        f"others are drawn in their place, but after {IN_A_ROW} in a row in vain the search ends; "
        "wider bounds, or a space of smaller networks"
    )
