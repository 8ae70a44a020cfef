"""Whether a sampler from elsewhere can do a search's work, tried on draws that are kept nowhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import optuna
from optuna.trial import Trial

from planter.driver.checking.space import Drawn
from planter.driver.proposers.offspring import draw_edit
from planter.driver.proposers.samplers import make_sampler
from planter.driver.storage.points import Direction, experimental
from planter.driver.trials.given import Draw
from planter.study.findings import Findings
from planter.study.samplers import SAMPLERS
from planter.study.schema import Study

_TOLD = 12
"""Trials that a sampler is told of before it is asked: many draw at random before their tenth."""


def check_samplers(study: Study, drawn: Drawn | None, found: Findings) -> None:
    """Those that `sample.sampler` and `evolve.sampler` name by a place."""
    if (sample := study.sample) is not None and drawn is not None:
        wide = 1 if study.objectives.family else 2
        _check("sample.sampler", sample.sampler, study, wide, drawn.space, drawn.draws, found)
    if (evolve := study.evolve) is not None:
        edit = partial(draw_edit, settings=evolve)
        some = _random_draws(edit) if evolve.sampler not in SAMPLERS else []
        _check("evolve.sampler", evolve.sampler, study, 1, edit, some, found)


def _check(
    place: str,
    name: str,
    study: Study,
    objectives: int,
    draw: Callable[[Trial], Any],
    draws: Sequence[Draw],
    found: Findings,
) -> None:
    if name in SAMPLERS:
        return

    def tried() -> bool:
        try:
            make_sampler(name, study.seed)
        except ImportError as error:
            raise ValueError(_lacking(error)) from error
        except ValueError:
            raise
        except Exception as error:  # the user's code
            raise ValueError(f"making it raised {type(error).__name__}: {error}") from error
        try:
            with experimental():
                _ask(name, study, objectives, draw, draws)
        except ImportError as error:
            raise ValueError(_lacking(error)) from error
        except Exception as error:  # whatever a sampler raises
            raise ValueError(
                f"it cannot draw for {objectives} objective{'s' * (objectives > 1)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return True

    found.attempt(place, name, tried)


def _ask(
    name: str,
    study: Study,
    objectives: int,
    draw: Callable[[Trial], Any],
    draws: Sequence[Draw],
) -> None:
    """Lets a sampler draw after some trials."""
    directions: list[Direction] = ["maximize", "minimize"]
    book = optuna.create_study(directions=directions[:objectives])
    told = [draws[i % len(draws)] for i in range(_TOLD)] if draws else []
    limits = study.objectives.bounds.limits() if objectives > 1 else {}
    for number, (params, distributions) in enumerate(told):
        book.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions=distributions,
                values=[0.5 + number / 100, 1e6 + 1e3 * number][:objectives],
                constraints=dict.fromkeys(limits, number / 10 - 0.5),
            )
        )
    book.sampler = make_sampler(name, study.seed)
    with suppress(optuna.TrialPruned):
        draw(book.ask())


def _random_draws(draw: Callable[[Trial], Any]) -> list[Draw]:
    book = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    some = [book.ask() for _ in range(_TOLD)]
    for trial in some:
        draw(trial)
    return [Draw(dict(trial.params), dict(trial.distributions)) for trial in some]


def _lacking(error: ImportError) -> str:
    """The package that is missing, by name."""
    name = error.name or getattr(error.__cause__, "name", None)
    told = f"it needs the package {name!r}, which is not installed: pip install {name}"
    return told if name else f"it needs what is not installed: {error}"
