"""How sure a share of images is."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, 0..1, of `n` independent tries (Wilson, "Probable inference,
    the law of succession, and statistical inference", JASA 22, 1927). Raises ValueError for no
    tries, or more successes than tries."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 to n successes of n > 0 tries, got {successes} of {n}")
    share, spread = successes / n, _Z**2 / n
    middle = share + spread / 2
    reach = math.sqrt(spread * (share * (1 - share) + spread / 4))
    # Rounding must not leave the interval beside its share.
    low = min((middle - reach) / (1 + spread), share)
    high = max((middle + reach) / (1 + spread), share)
    return max(low, 0.0), min(high, 1.0)
