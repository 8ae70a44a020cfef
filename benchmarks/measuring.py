"""What benchmarks share: the machine, claims. Not a benchmark itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any, Literal

import torch


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
