"""The trial that a search space is given: Optuna's, with whatever can be chosen from and mistakes
told by the parameter's name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from planter.arch import plain_numbers

_SHOWN = 8
"""Parameters that an error names at most."""
_RESERVED = (
    "id", "parent", "result", "error", "partial", "climbed", "refused", "redrawn", "latency_ms",
    "trained_under", "enqueued", "warm_start",
)  # fmt: skip
"""Attributes of a trial that planter keeps its books in."""


class Suggestions:
    """A trial of Optuna's (also a FixedTrial) as a space sees it.

    - Numbers of numpy's are plain numbers, wherever they are given and in what is chosen.
    - Choices may be tuples, lists and mappings of plain values: the books hold them as texts.
    - `report` and `should_prune` do nothing: a space is asked before there is anything to report.
    - What Optuna refuses is a ValueError with the parameter's name and what to do.
    """

    def __init__(self, trial: Any) -> None:
        self._trial = trial
        self._fractions: dict[str, float] = {}

    def suggest_float(self, name: str, low: float, high: float, **settings: Any) -> float:
        value = float(self._ask("suggest_float", name, low, high, **settings))
        if not value.is_integer():
            self._fractions[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int, **settings: Any) -> int:
        return int(self._ask("suggest_int", name, low, high, **settings))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        plain = [plain_numbers(choice) for choice in choices]
        texts = [choice if _is_primitive(choice) else _text(name, choice) for choice in plain]
        meant = {
            text: choice
            for text, choice in zip(texts, plain, strict=True)
            if not _is_primitive(choice)
        }
        chosen = self._ask("suggest_categorical", name, texts)
        return meant.get(chosen, chosen)

    def report(self, value: float, step: int) -> None:
        """Nothing: planter compares trainings itself (`sample.early_stopping`)."""

    def should_prune(self) -> bool:
        """False: see `report`."""
        return False

    def set_user_attr(self, key: str, value: Any) -> None:
        """Writes an attribute of the trial's row. Raises ValueError for names that are planter's
        own."""
        if key in _RESERVED:
            raise ValueError(
                f"the attribute {key!r} is planter's own: another name than {', '.join(_RESERVED)}"
            )
        plain = plain_numbers(value)
        try:
            json.dumps(plain)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"attribute {key!r}: {error}; expected what JSON holds: numbers, texts, lists, "
                "mappings with texts as keys (of an array: .tolist())"
            ) from None
        self._trial.set_user_attr(key, plain)

    def hint(self, error: Exception) -> str:
        """What to add to an error: whose a fraction is that it names as it was drawn, or else what
        was drawn."""
        for name, value in self._fractions.items():
            if repr(value) in str(error):
                return (
                    f"; it is parameter {name!r}, which suggest_float draws with fractions: "
                    "suggest_int, or a step of whole numbers"
                )
        drawn = [f"{name} {value}" for name, value in self._trial.params.items()]
        more = ", ..." * (len(drawn) > _SHOWN)
        return f"; drawn: {', '.join(drawn[:_SHOWN])}{more}" if drawn else ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def _ask(self, method: str, name: str, *given: Any, **settings: Any) -> Any:
        plain = [plain_numbers(value) for value in given]
        plain_settings = {key: plain_numbers(value) for key, value in settings.items()}
        try:
            return getattr(self._trial, method)(name, *plain, **plain_settings)
        except (ValueError, TypeError) as error:
            what = str(error)
            if "dynamic value space" in what:
                what = (
                    f"its choices are not those of an earlier trial (now {plain[0]}); a "
                    "categorical parameter keeps its choices: a name of its own for each case"
                )
            elif "different distribution kind" in what:
                what = (
                    "it was drawn otherwise in an earlier trial (a whole number, a fraction or one "
                    "of several choices); a parameter keeps its kind: a name of its own for each"
                )
            raise ValueError(f"parameter {name!r}: {what}") from error


def _is_primitive(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _text(name: str, choice: Any) -> str:
    """A choice as the books hold it. Raises ValueError for one that no text stands for."""
    if not _is_data(choice):
        raise ValueError(
            f"parameter {name!r}: the choice {choice!r} is of type {type(choice).__name__}; "
            "choices are numbers, texts, true or false, None, or tuples, lists and mappings of "
            "these: choose among names, and look up what they stand for"
        )
    return repr(choice)


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_primitive(key) and _is_data(inner) for key, inner in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_data, value))
    return _is_primitive(value)
