"""A point's network in words, for hovers, tables and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planter.front import Point


def widths_text(architecture: Mapping[str, Any]) -> str:
    """`convnet conv1=8 conv2=16 ...`; the builder alone where it takes no widths."""
    widths = " ".join(f"{name}={width}" for name, width in architecture["widths"].items())
    return f"{architecture['builder']} {widths}".strip()


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


def with_networks(front: Mapping[str, Any], points: Sequence[Point]) -> dict[str, Any]:
    """A pareto.json document whose rows say, under `network`, what their network is."""
    lines = {point.id: network_lines(point) for point in points}
    rows = [{**row, "network": lines.get(row["id"], [])} for row in front["points"]]
    return {**front, "points": rows}


def difference(this: Point, other: Point) -> str:
    """How another point's network differs: builder, widths, pipeline; whether it shares weights."""
    mine, its = this.architecture, other.architecture
    parts = []
    if mine["builder"] != its["builder"]:
        parts.append(f"{mine['builder']} -> {its['builder']}")
    for name in dict.fromkeys([*mine["widths"], *its["widths"]]):
        before, after = mine["widths"].get(name, "none"), its["widths"].get(name, "none")
        if before != after:
            parts.append(f"{name} {before} -> {after}")
    if this.pipeline != other.pipeline:
        parts.append(f"{this.pipeline} -> {other.pipeline}")
    if this.trial == other.trial:
        parts.append("of the same training")
    return ", ".join(parts) or "the same widths, trained otherwise"
