"""The names of `trackers`, in one table, and places of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from planter.study.places import known_in, listed

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
