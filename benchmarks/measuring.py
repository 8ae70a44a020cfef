"""What benchmarks share: memory that stays, the machine, claims. Not a benchmark itself."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from typing import Any, Literal

import torch


def keep_memory() -> None:
    """glibc's mallopt: no mapping for large tensors, no trimming of the heap."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 2**28)  # M_TOP_PAD


def surroundings() -> dict[str, Any]:
    """The machine and the versions a figure was measured with."""
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def claim(name: str, value: float, sign: Literal["<=", ">="], target: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 3),
        "target": f"{sign} {target}",
        "holds": value <= target if sign == "<=" else value >= target,
    }


def print_claims(claims: Sequence[dict[str, Any]]) -> None:
    for made in claims:
        mark = "holds" if made["holds"] else "DOES NOT HOLD"
        print(f"{made['name']}: {made['value']} ({made['target']}) {mark}")
