"""Samplers of a study's trials, each from a seed."""

from __future__ import annotations

import importlib

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from planter.driver.storage.points import experimental
from planter.study.samplers import SAMPLERS


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler of that name in `SAMPLERS`."""
    maker = SAMPLERS[name]
    if isinstance(maker, str):
        module, _, function = maker.partition(":")
        maker = getattr(importlib.import_module(module), function)
    made: BaseSampler = maker(seed=seed)
    return made


def tpe(seed: int) -> BaseSampler:
    with experimental():
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def nsgaii(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed)


def random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)
