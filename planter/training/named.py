"""Named recipes: what a study starts from by `recipe: {base: NAME}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

RecipeName = Literal["fast", "strong", "paper"]
NAMED: Mapping[RecipeName, Mapping[str, Any]] = {
    "fast": {
        "epochs": 10,
        "batch": 128,
        "lr": 0.2,
        "nesterov": True,
        "weight_decay": 5e-4,
        "clip_grad": 1.0,
        "schedule": "onecycle",
        "label_smoothing": 0.05,
        "augment": {"crop": 4, "flip": True},
    },
    "strong": {
        "epochs": 40,
        "batch": 128,
        "lr": 0.2,
        "nesterov": True,
        "weight_decay": 5e-4,
        "no_decay": True,
        "clip_grad": 1.0,
        "schedule": "cosine",
        "warmup": 12.0,
        "label_smoothing": 0.05,
        "augment": {"crop": 4, "flip": True},
    },
    # The code of channel planting's first author for the same data sets; the slides give none.
    "paper": {
        "epochs": 100,
        "batch": 128,
        "lr": 0.01,
        "weight_decay": 5e-4,
        "schedule": "step",
        "step": 100 / 3,
        "gamma": 0.2,
        "augment": {"crop": 4, "flip": True},
    },
}
"""By name; a key that is not there has the default of every recipe."""
_LENGTHS = ("warmup", "step")


def named(base: RecipeName, **keys: Any) -> dict[str, Any]:
    """The keys of a named recipe, replaced by those given; where these say `epochs`, lengths of the
    schedule are stretched alike."""
    made = dict(NAMED[base])
    epochs = keys.get("epochs")
    if isinstance(epochs, int):  # what is no number of epochs is told by the recipe's own check
        stretch = epochs / made["epochs"]
        made |= {key: made[key] * stretch for key in _LENGTHS if key in made}
    return {**made, **keys}
