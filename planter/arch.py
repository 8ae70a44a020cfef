"""The description of a network as data: builder, named widths, options, pipelines. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # part of a file name: trials/p01-conv4


def plain_numbers(value: Any) -> Any:
    """The value with numpy's numbers as Python's, also inside lists, tuples and mappings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain_numbers(key): plain_numbers(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain_numbers(inner) for inner in value)
    return value


def whole_number(value: Any) -> Any:
    """8 for 8.0; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def owner_of(name: str, widths: Container[str]) -> str | None:
    """The width an inner one follows unless it is given: `group1_1.conv1` that of its stage where
    `group1_1` is among `widths`, else `group1`. None where it would follow none of them."""
    stage, dot, _ = name.partition(".")
    owners = (stage, re.sub(r"_\d+\Z", "", stage)) if dot else ()
    return next((owner for owner in owners if owner in widths), None)


def width_in(widths: Mapping[str, int], name: str) -> int:
    """The width of a name: as given, or its owner's (see `owner_of`). Raises ValueError, naming the
    widths, where it has neither."""
    if name in widths:
        return widths[name]
    owner = owner_of(name, widths)
    if owner is None:
        raise ValueError(f"{name!r} is not a width; widths are {', '.join(widths)}")
    return widths[owner]


@dataclass(frozen=True)
class Architecture:
    """A network before it is built: what is saved, searched, grown and compared.

    `widths` names everything that can grow (channels of a convolution, units of a fully connected
    layer); names that start with "fc" are fully connected. Inner widths of a block, such as
    `group1_1.conv1`, are among them only where they differ from the one they follow. `options` are
    the builder's keyword arguments (`classes`, `image`, ...). `pipelines` maps a name to the data
    of another way through the network, e.g. `{"cut2": {"before": "conv3", "kernel": 2, "stride":
    2}}`. Numpy's numbers become plain ones, and widths such as 8.0 whole ones.
    """

    builder: str
    widths: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    pipelines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.widths:
            if not _NAME.fullmatch(str(name)):
                raise ValueError(
                    f"width {name!r}: a name of letters, digits, dot, dash and underscore, with a "
                    "letter, digit or underscore first"
                )
        for name in ("widths", "options", "pipelines"):
            object.__setattr__(self, name, plain_numbers(getattr(self, name)))
        whole = {name: whole_number(width) for name, width in self.widths.items()}
        object.__setattr__(self, "widths", whole)
        for name, width in self.widths.items():
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise ValueError(f"width {name} must be a whole number >= 1, got {width!r}")
        if "base" in self.pipelines:
            raise ValueError("'base' is the backbone's own pipeline; give the cut another name")
        for name, spec in self.pipelines.items():
            if not isinstance(spec, Mapping):
                raise ValueError(
                    f"pipeline {name} is data such as {{'before': 'cut2'}}, got {spec!r}"
                )
        # Tuples become lists, so that an architecture equals itself after a round through JSON.
        for name in ("widths", "options", "pipelines"):
            try:
                plain = json.loads(json.dumps(dict(getattr(self, name))))
            except TypeError as error:
                raise ValueError(f"{name} must be numbers, texts, lists: {error}") from error
            object.__setattr__(self, name, plain)

    def __hash__(self) -> int:
        return hash(self.key())

    def width(self, name: str) -> int:
        """The channels of a width by name. One inside a block (`group1_1.conv1`) that is not given
        is as wide as its stage, where that is a width, or its group (`group1`).

        Which inner widths there are the builder knows (`planter.backbones.free_widths`). Raises
        ValueError for a name that is no width and follows none.
        """
        return width_in(self.widths, name)

    def widen(self, name: str, channels: int) -> Architecture:
        """The same network with `channels` more channels in layer `name`, and in all that follow
        it: inner widths that are not given. Raises ValueError as `width` does."""
        return replace(self, widths={**self.widths, name: self.width(name) + channels})

    def overlap(self, one: str, other: str) -> bool:
        """Whether to widen one of two widths widens the other with it: that is not given, and
        follows it."""
        pairs = ((one, other), (other, one))
        return any(a not in self.widths and owner_of(a, self.widths) == b for a, b in pairs)

    def to_dict(self) -> dict[str, Any]:
        return {
            "builder": self.builder,
            "widths": dict(self.widths),
            "options": dict(self.options),
            "pipelines": {name: dict(spec) for name, spec in self.pipelines.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        return cls(**{name: data[name] for name in ("builder", "widths", "options", "pipelines")})

    def key(self) -> str:
        """16 hexadecimal digits that are equal exactly for equal architectures."""
        canonical = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
