"""The names of `sample.sampler`, in one table, and places of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from planter.study.places import known_in, listed

SAMPLERS: dict[str, str | Callable[..., Any]] = {
    "tpe": "planter.driver.proposers.samplers:tpe",
    "nsgaii": "planter.driver.proposers.samplers:nsgaii",
    "random": "planter.driver.proposers.samplers:random",
}
"""By name, a function of `seed` that makes one of Optuna's samplers, or where that is: a study is
read without Optuna."""

SamplerName = Annotated[
    str,
    BeforeValidator(known_in(SAMPLERS, "optuna.samplers:GPSampler")),
    Field(
        description="Optuna's sampler of that name, or the place of a class or function that takes "
        "a seed: optuna.samplers:GPSampler, my_pkg:make",
        json_schema_extra=listed(SAMPLERS),
    ),
]
"""One of the names, those added since among them, or MODULE:NAME."""
