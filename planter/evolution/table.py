"""All edits by name, and as data that a file can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from planter.evolution.cut import Cut
from planter.evolution.depth import Deepen, Remove
from planter.evolution.edit import Bench, Edit, EditError, Individual
from planter.evolution.grow import Grow
from planter.evolution.shrink import Shrink
from planter.evolution.whole import GoOn, Reform

EDITS: dict[str, type[Any]] = {
    "shrink": Shrink,
    "grow": Grow,
    "cut": Cut,
    "deepen": Deepen,
    "remove": Remove,
    "go_on": GoOn,
    "reform": Reform,
}
"""By the name that a study and a saved network give them; each a frozen dataclass that is an
`Edit`."""


def to_data(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Edits as JSON can hold them, in their order. Fields that came later (`told: False` in their
    metadata) stand there where they are set: without them data are those of earlier runs."""
    names = {kind: name for name, kind in EDITS.items()}
    return [{"edit": names[type(edit)], **_fields_of(edit)} for edit in edits]


def _fields_of(edit: Any) -> dict[str, Any]:
    return {
        field.name: getattr(edit, field.name)
        for field in fields(edit)
        if field.metadata.get("told", True) or getattr(edit, field.name) != field.default
    }


def from_data(data: Sequence[Mapping[str, Any]]) -> list[Edit]:
    """The edits that `to_data` wrote. Raises EditError for one that is not known here."""
    made: list[Edit] = []
    for one in data:
        kind = EDITS.get(str(one.get("edit")))
        if kind is None:
            raise EditError(f"edit {one.get('edit')!r}; edits are {', '.join(EDITS)}")
        known = {field.name for field in fields(kind)}
        if unknown := sorted(set(one) - known - {"edit"}):
            raise EditError(f"{one['edit']} has no {unknown[0]!r}; it has {', '.join(known)}")
        made.append(kind(**{name: value for name, value in one.items() if name != "edit"}))
    return made


def apply_all(edits: Sequence[Edit], parent: Individual, bench: Bench) -> tuple[Individual, int]:
    """The child after all edits, one on another, and the multiply-adds that they took."""
    macs = 0
    for edit in edits:
        parent, more = edit.apply(parent, bench)
        macs += more
    return parent, macs
