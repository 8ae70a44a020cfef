"""A point's network in words, for hovers, tables and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planter.arch import owner_of, width_in
from planter.front.objectives import OBJECTIVES

if TYPE_CHECKING:
    from planter.front.points import Point


_OF_THE_DATA = ("classes", "image")
"""Options that all networks of a run share."""


def widths_text(architecture: Mapping[str, Any]) -> str:
    """`resnet depth=20 conv1=16 ...`: the builder, its options and widths, if any."""
    named = {**_options(architecture), **architecture["widths"]}
    return " ".join(
        [architecture["builder"], *(f"{name}={value}" for name, value in named.items())]
    )


def _options(architecture: Mapping[str, Any]) -> dict[str, Any]:
    options = architecture.get("options", {})
    return {name: value for name, value in options.items() if name not in _OF_THE_DATA}


def pipeline_text(spec: Mapping[str, Any]) -> str:
    """What an architecture says of a pipeline: `before conv3, kernel 4, stride 2`."""
    return ", ".join(f"{key} {value}" for key, value in spec.items())


def form_text(form: str | Mapping[str, str]) -> str:
    """A training form's name; by part where there are several."""
    return form if isinstance(form, str) else ", ".join(f"{k} {v}" for k, v in form.items())


def network_lines(point: Point) -> list[str]:
    """A line each: widths, what the pipeline is (of base: what trained beside it), the form that
    kernels trained in."""
    pipelines = point.architecture["pipelines"]
    lines = [widths_text(point.architecture)]
    if point.pipeline in pipelines:
        told = pipeline_text(pipelines[point.pipeline])
        lines.append(f"pipeline {point.pipeline}: {told}" if told else point.pipeline)
    elif pipelines:
        lines.append(f"trained with {', '.join(pipelines)}")
    if point.kernels != "plain":
        lines.append(f"kernels in training: {form_text(point.kernels)}")
    return lines


def reference_text(front: Mapping[str, Any]) -> str:
    """`0.1, 9,000 macs`: the point that a pareto.json document's hypervolume is measured from."""
    metric, *costs = front["reference_point"]
    told = [f"{metric:.3g}"]
    for name, value in zip(front["objectives"][1:], costs, strict=True):
        told.append(OBJECTIVES[name].text(int(value) if value == int(value) else value))
    return ", ".join(told)


def with_networks(front: Mapping[str, Any], points: Sequence[Point]) -> dict[str, Any]:
    """A pareto.json document whose rows say, under `network`, what their network is."""
    lines = {point.id: network_lines(point) for point in points}
    rows = [{**row, "network": lines.get(row["id"], [])} for row in front["points"]]
    return {**front, "points": rows}


def difference(this: Point, other: Point) -> str:
    """How another point's network differs: builder, options, widths, pipeline, form of the kernels
    in training; whether it shares weights."""
    mine, its = this.architecture, other.architecture
    parts = _changes({"": mine["builder"]}, {"": its["builder"]})
    parts += _changes(_options(mine), _options(its)) + _changes(*_same_names(mine, its))
    if this.pipeline != other.pipeline:
        parts.append(f"{this.pipeline} -> {other.pipeline}")
    else:
        ways = (one["pipelines"].get(this.pipeline, {}) for one in (mine, its))
        parts += [f"{this.pipeline}: {change}" for change in _changes(*ways)]
    if this.trial == other.trial:
        return ", ".join([*parts, "of the same training"])
    forms = ({"kernels in training": form_text(point.kernels)} for point in (this, other))
    parts = parts or ["the same network, trained otherwise"]
    return ", ".join([*parts, *_changes(*forms)])


def _same_names(*architectures: Mapping[str, Any]) -> list[dict[str, int]]:
    """The widths of each, with the inner ones that another gives."""
    each = [architecture["widths"] for architecture in architectures]
    names = dict.fromkeys(name for widths in each for name in widths)
    return [
        {name: width_in(widths, name) for name in names if name in widths or owner_of(name, widths)}
        for widths in each
    ]


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`conv1 8 -> 16` for each name whose value differs; "none" where one lacks it."""
    names = dict.fromkeys([*before, *after])
    pairs = {name: (before.get(name, "none"), after.get(name, "none")) for name in names}
    return [f"{name} {b} -> {a}".strip() for name, (b, a) in pairs.items() if b != a]
