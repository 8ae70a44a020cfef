"""The names of `sample.sampler`, in one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SAMPLERS: dict[str, str | Callable[..., Any]] = {
    "tpe": "planter.driver.proposers.samplers:tpe",
    "nsgaii": "planter.driver.proposers.samplers:nsgaii",
    "random": "planter.driver.proposers.samplers:random",
}
"""By name, a function of `seed` that makes one of Optuna's samplers, or where that is: a study is
read without Optuna."""


def known_sampler(name: str) -> str:
    """The name itself. Raises ValueError for an unknown one."""
    if name not in SAMPLERS:
        raise ValueError(f"expected one of {', '.join(map(repr, SAMPLERS))}")
    return name
