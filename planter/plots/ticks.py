"""Where the ticks of a logarithmic axis stand."""

from __future__ import annotations

import math


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks from below `low` to above `high`, both positive: 1, 2 and 5 times the powers of ten;
    over many decades the powers alone, and where hardly any of those lie between, even steps."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
    if high == low or sum(low <= tick <= high for tick in ticks) >= 3:
        return ticks
    power = math.floor(math.log10((high - low) / 8))
    step = next(s for s in (1, 2, 5, 10) if s * 10.0**power >= (high - low) / 8)
    near = range(math.floor(low / 10.0**power / step), math.ceil(high / 10.0**power / step) + 1)
    return [round(number * step * 10.0**power, -power) for number in near if number]
