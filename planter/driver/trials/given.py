"""Points of a search space that a person gives: whether the space draws such, and in its words."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from planter.front.points import Point
from planter.study.space import Candidate, Space

Params = dict[str, Any]
Ranges = dict[str, list[BaseDistribution]]
"""What draws have shown of each parameter: most have one range, some another in each case."""


class Draw(NamedTuple):
    """A draw of a space: its parameters, and where each was drawn from."""

    params: Params
    distributions: dict[str, BaseDistribution]


_TRIES = 20
"""Draws of what a point leaves open, until one has all its parameters."""


class Earlier(NamedTuple):
    """A sampled trial of an earlier run, as this study's space draws it: where it is from
    (RUN_ID/TRIAL), and its points."""

    source: str
    draw: Draw
    points: list[Point]


class Given(NamedTuple):
    """A point in the words of its space, a draw that has it, and that draw's candidate, or why the
    space prunes it."""

    params: Params
    draw: Draw
    candidate: Candidate | None
    pruned: str


def add_ranges(ranges: Ranges, distributions: Mapping[str, BaseDistribution]) -> None:
    """Takes over what a draw shows."""
    for name, distribution in distributions.items():
        if distribution not in (known := ranges.setdefault(name, [])):
            known.append(distribution)


def range_text(distributions: list[BaseDistribution]) -> str:
    """The ranges of a parameter, in words."""
    return ", or ".join(map(_text, distributions))


def ranges_text(ranges: Ranges) -> str:
    """All parameters of a space with their ranges, in words."""
    return ", ".join(f"{name} ({range_text(each)})" for name, each in ranges.items())


def in_ranges(point: Mapping[str, Any], ranges: Ranges) -> Params:
    """The point with its values as the space draws them. Raises ValueError, saying what is
    expected, for a parameter that no draw has shown and for a value outside all its ranges."""
    params = {}
    for name, value in point.items():
        if name not in ranges:
            raise ValueError(
                f"the space draws no {name!r}; expected some of {ranges_text(ranges) or 'nothing'}"
            )
        for distribution in ranges[name]:
            if (found := _drawn_as(value, distribution)) is not None:
                (params[name],) = found
                break
        else:
            raise ValueError(f"{name}: {value!r}; expected {range_text(ranges[name])}")
    return params


def given_point(point: Mapping[str, Any], space: Space, ranges: Ranges) -> Given:
    """The point as the space draws it, tried on draws that are kept nowhere. Raises ValueError
    where no draw has all its parameters, as `in_ranges` does, or where the space raises an error
    for it. `ranges` are those of other draws."""
    seen = {name: list(each) for name, each in ranges.items()}
    known = in_ranges({n: v for n, v in point.items() if n in seen}, seen)
    error, last = "", None
    for seed in range(_TRIES):
        row, candidate, pruned, raised = _draw(space, {**point, **known}, seed)
        add_ranges(seen, row.distributions)
        error = raised or error
        if raised or not set(point) <= set(row.params):
            continue
        try:
            params = in_ranges(point, {name: [row.distributions[name]] for name in point})
        except ValueError as outside:  # of this draw: another may have another range
            error = str(outside)
            continue
        draw = Draw(dict(row.params), dict(row.distributions))
        last = Given(params, draw, candidate, pruned)
        if candidate is not None:
            break
    if last is not None:
        return last
    in_ranges(point, seen)  # raises for a parameter that was never there
    if error:
        raise ValueError(error)
    raise ValueError(f"no draw has all of {', '.join(point)}: they belong to different cases")


def _draw(
    space: Space, fixed: Mapping[str, Any], seed: int
) -> tuple[FrozenTrial, Candidate | None, str, str]:
    """A draw with fixed parameters: its row, and its candidate, why it is pruned or what is
    raised."""
    book = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    book.enqueue_trial(dict(fixed))
    candidate, pruned, raised = None, "", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a value beyond its range is told by the caller
        trial = book.ask()
        try:
            candidate = space(trial)
        except optuna.TrialPruned as error:
            pruned = str(error) or "the space raised TrialPruned"
        except Exception as error:  # the user's code
            raised = f"the space raised {type(error).__name__}: {error}"
    return book.get_trials()[0], candidate, pruned, raised


def _drawn_as(value: Any, distribution: BaseDistribution) -> tuple[Any] | None:
    """The value as a distribution draws it; None where it does not."""
    if isinstance(distribution, CategoricalDistribution):
        return _chosen(value, distribution)
    if isinstance(value, str):  # YAML takes 1e-3 for a text
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    steps = 0.0 if step is None else (value - low) / step
    if not low <= value <= high or abs(steps - round(steps)) > 1e-8:
        return None
    return (round(value),) if isinstance(distribution, IntDistribution) else (float(value),)


def _chosen(value: Any, distribution: CategoricalDistribution) -> tuple[Any] | None:
    for same in (_equal, _reads_as, _written_alike):
        for choice in distribution.choices:
            if same(value, choice):
                return (choice,)
    return None


def _equal(value: Any, choice: Any) -> bool:
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)


def _reads_as(value: Any, choice: Any) -> bool:
    """Whether a choice is the text of a tuple, list or mapping (`planter.study.suggestions`) that
    is the value; YAML knows no tuples."""
    if not isinstance(choice, str) or not isinstance(value, list | tuple | dict):
        return False
    try:
        return bool(_listed(ast.literal_eval(choice)) == _listed(value))
    except (ValueError, SyntaxError):
        return False


def _written_alike(value: Any, choice: Any) -> bool:
    return str(value) == str(choice)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, list | tuple) else value


def _text(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        *most, last = map(str, distribution.choices)
        return f"{', '.join(most)} or {last}" if most else last
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    told = f"{distribution.low:g} to {distribution.high:g}"
    if distribution.step not in (None, 1):
        told += f" in steps of {distribution.step:g}"
    return told
