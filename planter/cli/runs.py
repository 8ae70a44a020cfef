"""What a command names: a run, a point of a run, or a builder with its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from planter.arch import Architecture
from planter.driver.run_folder.names import run_folder
from planter.machine.commands import command

if TYPE_CHECKING:
    from planter.front.points import Point


def split_target(target: str) -> tuple[Path, str | None]:
    """The run that RUN or RUN/ID names, and the point or trial of it. Raises ValueError, naming the
    runs there are, where there is none."""
    parts = target.rstrip("/").split("/")
    for at in range(len(parts), 0, -1):
        with suppress(ValueError):
            return run_folder("/".join(parts[:at])), "/".join(parts[at:]) or None
    return run_folder(target), None  # raises


def architecture_of_builder(
    target: str,
    image: str,
    classes: int,
    widths: str | None,
    options: Sequence[str],
    pipelines: Mapping[str, Mapping[str, Any]],
) -> Architecture:
    """The architecture that `planter cost BUILDER` and its options describe."""
    from planter.backbones import full_widths

    shape = image.split("x")
    if len(shape) != 3 or not all(part.isdigit() and int(part) for part in shape):
        raise ValueError(f"--image {image!r}: expected channels x height x width, e.g. 3x32x32")
    pairs = dict(_pair("--option", text) for text in options)
    known = {**pairs, "classes": classes, "image": [int(part) for part in shape]}
    return Architecture(target, full_widths(target, _widths(widths), known), known, pipelines)


def pipelines_of(
    cuts: Sequence[str], branches: Sequence[str], heads: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The pipelines that `--cut NAME`, `--branch PLACE[=KIND]` and `--head KIND` describe. Raises
    ValueError where two would have one name."""
    named: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in cuts]
    for text in branches:
        place, _, kind = text.partition("=")
        named.append((f"branch-{place}", {"after": place, **({"branch": kind} if kind else {})}))
    named += [
        (f"head-{kind.replace(':', '-').replace('.', '-')}", {"head": kind}) for kind in heads
    ]
    for name, _ in named:
        if sum(name == other for other, _ in named) > 1:
            raise ValueError(f"pipeline {name} is given twice")
    return dict(named)


def point_of(target: str) -> tuple[Point, str | None]:
    """The point RUN/TRIAL/PIPELINE and the name of its pipeline, or any of RUN/TRIAL and None.
    Raises ValueError where there is none."""
    from planter.driver.run_folder.read import read_points

    folder, wanted = split_target(target)
    if wanted is None:
        raise ValueError(f"{target!r} is a run: expected RUN/ID, e.g. quickstart/s0004/base")
    for point in read_points(folder):
        if wanted in (point.trial, point.id):
            return point, point.pipeline if wanted == point.id else None
    raise ValueError(f"{folder} has no point {wanted!r}; {command('show', folder)} lists them")


def _pair(flag: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{flag} {text!r}: expected KEY=VALUE")
    return key, yaml.safe_load(value)


def _widths(text: str | None) -> int | dict[str, int] | None:
    if text is None:
        return None
    if text.isdigit():
        return int(text)
    pairs = dict(_pair("--widths", part) for part in text.split(","))
    if not all(isinstance(width, int) for width in pairs.values()):
        raise ValueError(f"--widths {text!r}: expected one number or conv1=8,conv2=16")
    return pairs
