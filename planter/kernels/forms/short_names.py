"""Numbers and settings in the short name of a form, as in "kflo:2x4,wd_scale=2"."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def read_numbers(text: str, pattern: str, expected: str) -> list[float]:
    """The numbers that the groups of a pattern find in the whole text. Raises ValueError, saying
    what was expected, where there are none."""
    found = re.fullmatch(pattern, text)
    try:
        return [float(number) for number in found.groups()] if found else [float("")]
    except ValueError:
        raise ValueError(f"expected {expected}, got {text!r}") from None


def read_settings(
    settings: Sequence[str], form: type[DataclassInstance], *known: str
) -> dict[str, Any]:
    """Settings `name=value` of a form, those it knows: numbers, or true and false where the default
    is one of them."""
    usual = {field.name: field.default for field in fields(form)}
    given: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            listed = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise ValueError(f"{form.__name__} has no setting {name!r}; {listed}")
        if isinstance(usual[name], bool):
            if value not in ("True", "true", "False", "false"):
                raise ValueError(f"{name} is true or false, got {value!r}")
            given[name] = value in ("True", "true")
        else:
            (given[name],) = read_numbers(value, r"(.+)", f"{name}=NUMBER")
    return given


def is_number(value: object) -> bool:
    """Whether a setting is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def number_text(value: float) -> str:
    """The shortest text that is read back as the number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def settings_text(form: DataclassInstance, *names: str) -> str:
    """The named settings where they are not the default, as they follow in a short name."""
    usual = {field.name: field.default for field in fields(form)}
    own = {name: getattr(form, name) for name in names}
    return "".join(f",{name}={value}" for name, value in own.items() if value != usual[name])
