"""The names of `sample.sampler`, in one table, and places of others."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

SAMPLERS: dict[str, str | Callable[..., Any]] = {
    "tpe": "planter.driver.proposers.samplers:tpe",
    "nsgaii": "planter.driver.proposers.samplers:nsgaii",
    "random": "planter.driver.proposers.samplers:random",
}
"""By name, a function of `seed` that makes one of Optuna's samplers, or where that is: a study is
read without Optuna."""

_PLACE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def _known(name: Any) -> Any:
    """The name itself, or the place. Raises ValueError for anything else, saying what is
    expected."""
    if not isinstance(name, str) or (name not in SAMPLERS and not re.match(_PLACE, name)):
        *most, last = map(repr, SAMPLERS)
        raise ValueError(
            f"{', '.join(most)} or {last}, or a place such as optuna.samplers:GPSampler"
        )
    return name


def _listed(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"enum": list(SAMPLERS)}, {"pattern": _PLACE}]


SamplerName = Annotated[
    str,
    BeforeValidator(_known),
    Field(
        description="Optuna's sampler of that name, or the place of a class or function that takes "
        "a seed: optuna.samplers:GPSampler, my_pkg:make",
        json_schema_extra=_listed,
    ),
]
"""One of the names, those added since among them, or MODULE:NAME."""
