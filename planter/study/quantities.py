"""Quantities as people write and read them: 1500000, 500k, 2M, 1.5G, 2e13; 3 min 20 s."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

EXPECTED = "a number above 0 such as 1500000, 500k, 2M, 1.5G or 2e13"
_TIMES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_FORM = re.compile(r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)\s*([kmgtp]?)")


def quantity_of(text: str) -> int:
    """The whole number that a text stands for; k, M, G, T, P are 10^3 to 10^15, whatever their
    case. Raises ValueError for anything else, and for 0."""
    if match := _FORM.fullmatch(text.strip().lower()):
        number = round(Decimal(match[1]) * _TIMES[match[2]])  # a float would round large ones
        if number > 0:
            return number
    raise ValueError(EXPECTED)


def plain_quantity(value: Any) -> Any:
    """A study's value as the number it stands for: texts as `quantity_of` reads them, 2e6 as a
    whole number. Others are left to the check of the field."""
    if isinstance(value, str):
        return quantity_of(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def duration(seconds: float) -> str:
    """42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
