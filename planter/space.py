"""What a search space returns for a trial, and how a space is found by its name."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from planter.arch import Architecture
from planter.forms import Kernels
from planter.study_file import shipped_folder


@dataclass(frozen=True)
class Candidate:
    """One network to train, with all that a trial may choose.

    `weights` are the pipelines' in the loss (1 where none is given); `kernels` the form they train
    in, one for the network or one for each stage (and "head") that is named; `kd_weight` and
    `temperature` the teacher's part; `recipe` replaces keys of the study's.
    """

    architecture: Architecture
    weights: Mapping[str, float] = field(default_factory=dict)
    reduction: Literal["sum", "mean"] = "sum"
    kernels: Kernels | None = None
    kd_weight: float = 0.0
    temperature: float = 1.0
    recipe: Mapping[str, Any] = field(default_factory=dict)


Space = Callable[[Any], Candidate]


def load_space(place: str, *, image: tuple[int, int, int], classes: int) -> Space:
    """The function `space(trial)` of a shipped space's name or of "file.py:function".

    A space may ask for facts of the data by naming keyword arguments: `image` (channels, height,
    width) and `classes`. Raises ValueError where there is no such file or function.
    """
    file, colon, name = place.rpartition(":")
    if not colon:
        file, name = str(shipped_folder("search_spaces") / f"{place}.py"), "space"
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        shipped = sorted(f.stem for f in shipped_folder("search_spaces").glob("*.py"))
        raise ValueError(
            f"no search space at {place!r}: expected file.py:function, "
            f"or the name of a shipped one: {', '.join(shipped)}"
        )
    module_name = f"planter_space_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path} has no function {name!r}")
    asked = inspect.signature(function).parameters
    facts = {"image": image, "classes": classes}
    given = {fact: value for fact, value in facts.items() if fact in asked}
    return lambda trial: function(trial, **given)
