"""What the pointer shows of a point."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from planter.front.certainty import value_text
from planter.front.objectives import OBJECTIVES

_WIDTH = 44
"""Characters of a line, for a phone."""
_NAMED = 3
"""Points at one place that are named at most."""


def point_hover(
    point: Mapping[str, Any],
    metric: str,
    bounds: Mapping[str, float],
    others: Sequence[str] = (),
) -> str:
    """The numbers and the network of a point in lines short enough for a phone; which of the
    `bounds` it does not keep to; the ids of the `others` at its place."""
    costs = [
        objective.text(point[name])
        for name, objective in OBJECTIVES.items()
        if objective.chance is None and point.get(name) is not None
    ]
    lines = [f"<b>{escape(point['id'])}</b> ({point['method']})"]
    for name in dict.fromkeys([metric, "accuracy"]):
        if OBJECTIVES[name].chance is None or point.get(name) is None:
            continue  # a front by costs alone
        short, plain = OBJECTIVES[name].short, name == "accuracy" == metric
        told = "" if plain or OBJECTIVES[name].text(0.0).startswith(short) else f"{short} "
        both = [
            f"validation {told}{value_text(point, name)}",
            f"test {told}{value_text(point, name, 'test_')}",
        ]
        if point.get(f"test_{name}") is None:
            both[1] = "test not read"
        joint = ", " if len(", ".join(both)) <= _WIDTH else "<br>"
        lines.append(joint.join(both))
    lines += [", ".join(costs[:2]), *costs[2:]]
    for line in point.get("network", []):
        lines += [escape(part) for part in textwrap.wrap(line, _WIDTH)]
    for name, most in bounds.items():
        if (value := point.get(name)) is not None and value > most:
            lines.append(f"beyond the bound of {OBJECTIVES[name].text(most)}")
    if others:
        named = ", ".join(map(escape, others[:_NAMED]))
        more = len(others) - _NAMED
        told = f"at the same place: {named}" + (f" and {more} more" if more > 0 else "")
        lines += textwrap.wrap(told, _WIDTH)
    return "<br>".join(lines)
