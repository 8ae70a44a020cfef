"""Samplers of a study's trials, each from a seed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from planter.driver.storage.points import experimental
from planter.study.samplers import SAMPLERS


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler of that name in `SAMPLERS`, or what stands at the place MODULE:NAME, from a seed.

    Raises ValueError where there is no such place, where what is there takes no seed or needs more
    than one, or where what it makes is no sampler; ImportError, naming it, where a package that
    the sampler needs is not installed.
    """
    maker = SAMPLERS.get(name, name)
    if isinstance(maker, str):
        maker = _imported(maker)
    if name not in SAMPLERS:
        _check_arguments(maker)
    with experimental():
        made = maker(seed=seed)
    if not isinstance(made, BaseSampler):
        raise ValueError(f"it makes a {type(made).__name__}: expected one of Optuna's samplers")
    return made


def _imported(place: str) -> Callable[..., Any]:
    module, _, function = place.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that this one needs
        raise ValueError(f"there is no module {module!r} to import ({error})") from error
    except AttributeError:
        raise ValueError(f"the module {module!r} has no {function!r}") from None
    if not callable(found):
        raise ValueError(f"it is a {type(found).__name__}: expected a class or a function")
    maker: Callable[..., Any] = found
    return maker


def _check_arguments(maker: Callable[..., Any]) -> None:
    """Raises ValueError unless `maker(seed=...)` says all that there is to say."""
    parameters = inspect.signature(maker).parameters
    kinds = inspect.Parameter
    named = [p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_seed = any(p.name == "seed" and p.kind != kinds.POSITIONAL_ONLY for p in named)
    if not takes_seed and not any(p.kind == kinds.VAR_KEYWORD for p in parameters.values()):
        raise ValueError(
            "it takes no seed, so that the same study would draw otherwise each time: expected a "
            "class or function that takes seed"
        )
    more = [p.name for p in named if p.default is kinds.empty and p.name != "seed"]
    if more:
        raise ValueError(
            f"it needs {', '.join(more)} beside the seed: expected a function of yours that takes "
            "the seed alone and returns the sampler"
        )


def tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def nsgaii(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed)


def random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)
