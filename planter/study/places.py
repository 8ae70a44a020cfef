"""Texts of a study that are a name of a table, or the place of something that is not in it; the
table of trackers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_PLACE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def known_in(table: Mapping[str, Any], example: str) -> Callable[[Any], Any]:
    """A validator that returns a name of the table, those added since among them, or a place such
    as the example. It raises ValueError for anything else, saying what is expected."""

    def known(name: Any) -> Any:
        if not isinstance(name, str) or (name not in table and not re.match(_PLACE, name)):
            *most, last = map(repr, table)
            raise ValueError(f"{', '.join(most)} or {last}, or a place such as {example}")
        return name

    return known


def listed(table: Mapping[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Writes the names, or a place, into the JSON schema of such a text."""

    def write(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [{"enum": list(table)}, {"pattern": _PLACE}]

    return write


TRACKERS: dict[str, str | Callable[..., Any]] = {
    "tensorboard": "planter.driver.trackers.tensorboard:make",
    "mlflow": "planter.driver.trackers.mlflow_runs:make",
    "wandb": "planter.driver.trackers.wandb_runs:make",
}
"""By name, a function of the run folder and the study as a mapping that makes a
`planter.driver.trackers.tracker.Tracker`, or where that is."""

TrackerName = Annotated[
    str,
    BeforeValidator(known_in(TRACKERS, "my_pkg:make")),
    Field(json_schema_extra=listed(TRACKERS)),
]
"""One of the names, those added since among them, or MODULE:NAME."""
