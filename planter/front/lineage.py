"""How a network came to be: its ancestors, and what was done to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from planter.front.points import Point


class Step(NamedTuple):
    """A point on the way to another: `how` it was made of the one before, in words; of the first,
    the method that found it. `point` is None where its row is not there."""

    id: str
    how: str
    point: Point | None


def lineage(points: Sequence[Point], point: str) -> list[Step]:
    """The ancestors of a point, the first of them first, and itself last. Raises KeyError for a
    point that is not there."""
    known = {one.id: one for one in points}
    steps: list[Step] = []
    at: str | None = known[point].id
    while at is not None:
        one = known.get(at)
        if one is None:
            steps.append(Step(at, "no longer known", None))
            break
        steps.append(Step(at, edits_text(one.edits) if one.parent else _origin(one), one))
        at = one.parent
    return steps[::-1]


def _origin(point: Point) -> str:
    """Where a point without a parent comes from."""
    return "taken from evolve.start" if point.method == "evolve" else point.method


def edits_text(edits: Sequence[Mapping[str, Any]]) -> str:
    """Edits in words, in their order."""
    return ", ".join(map(_edit_text, edits))


def _edit_text(edit: Mapping[str, Any]) -> str:
    kind = edit["edit"]
    if kind == "shrink":
        return f"shrunk to {edit['size']:.0%} of the macs ({edit['rule']})"
    if kind == "grow":
        steps = f" in {edit['steps']} steps while it trained" if "steps" in edit else ""
        return f"grown to {edit['size']:.3g} times the macs ({edit['rule']}){steps}"
    if kind == "cut":
        shape = f"kernel {edit['kernel']}, stride {edit['stride']}"
        return f"cut before {edit['before']} ({shape})"
    if kind == "deepen":
        return f"a block added to {edit['group']}"
    if kind == "remove":
        return f"a block of {edit['group']} removed"
    if kind == "go_on":
        return "trained further"
    if kind == "reform":
        return f"trained as {edit['form']}"
    told = ", ".join(f"{key} {value}" for key, value in edit.items() if key != "edit")
    return f"{kind} ({told})" if told else str(kind)
