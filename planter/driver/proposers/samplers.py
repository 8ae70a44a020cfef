"""The samplers of `sample.sampler`, in one table."""

from __future__ import annotations

from collections.abc import Callable

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from planter.driver.storage.points import experimental


def _tpe(seed: int) -> BaseSampler:
    with experimental():
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "nsgaii": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""By name; each from a seed."""


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler of that name. Raises KeyError for an unknown one, which `check` refuses."""
    return SAMPLERS[name](seed)
