"""The names of `sample.sampler`, in one table."""

from __future__ import annotations

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


def _known(name: Any) -> Any:
    """The name itself. Raises ValueError for anything that is none, saying what is expected."""
    if not isinstance(name, str) or name not in SAMPLERS:
        *most, last = map(repr, SAMPLERS)
        raise ValueError(f"{', '.join(most)} or {last}")
    return name


def _listed(schema: dict[str, Any]) -> None:
    schema["enum"] = list(SAMPLERS)


SamplerName = Annotated[
    str,
    BeforeValidator(_known),
    Field(description="Optuna's sampler of that name", json_schema_extra=_listed),
]
"""One of the names, those added since among them."""
