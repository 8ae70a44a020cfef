"""The figure of one or several fronts: points by how they came about, fronts as step lines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planter.front.certainty import interval_in, value_text
from planter.front.methods import METHODS
from planter.front.objectives import OBJECTIVES, Objective
from planter.front.reranked import corners
from planter.plots.style import AXIS, DASHES, LAYOUT, RUNS, look_of, looks
from planter.plots.ticks import log_ticks

# A symbol of a run's own beside the colour of the kind.
_VARIANTS = ("", "-open", "-dot", "-open-dot")
_PANEL_PX = 420
_HOVER = 44
"""Characters of a line of a hover, for a phone."""


class Series(NamedTuple):
    """Points of one run and one kind, drawn together."""

    run: str
    kind: str
    points: list[Mapping[str, Any]]


class FrontInfo(NamedTuple):
    """All decisions of the front's figure; drawing it takes no more.

    `metric` is the first of the objectives; `panels` are the pairs of objectives (across, up) that
    are drawn, one below the other; `steps` the corners of each run's line in each panel, in the
    units of the axes.
    """

    metric: str
    series: list[Series]
    panels: list[tuple[str, str]]
    steps: dict[str, list[list[tuple[float, float]]]]


def front_info(fronts: Sequence[Mapping[str, Any]]) -> FrontInfo:
    """Sorts the points of one or more pareto.json documents, of the same objectives, into series
    and their fronts into step lines. Of three objectives every pair has a panel."""
    objectives = fronts[0]["objectives"]
    panels = [(across, up) for up, across in combinations(objectives, 2)]
    series: list[Series] = []
    steps: dict[str, list[list[tuple[float, float]]]] = {}
    for front in fronts:
        by_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in looks()}
        for point in front["points"]:
            if any(point.get(name) is None for name in objectives):
                continue
            cut = point["method"] == "sample" and point["pipeline"] != "base"
            by_kind.setdefault("pipeline" if cut else point["method"], []).append(point)
        run = front["study"]
        if again := sum(s == run or s.startswith(f"{run} (") for s in steps):
            run = f"{run} ({again + 1})"
        series += [Series(run, kind, points) for kind, points in by_kind.items() if points]
        steps[run] = [
            [(_shown(across, x), _shown(up, y)) for x, y in corners(front["points"], across, up)]
            for across, up in panels
        ]
    return FrontInfo(objectives[0], series, panels, steps)


def front_figure(fronts: Sequence[Mapping[str, Any]]) -> go.Figure:
    """One or several runs by the objectives that their documents name, at first accuracy against
    macs: fronts as step lines, dominated points faint, thin bars the 95 % intervals of those on the
    front. A row's `network`, lines of text, stands in its hover."""
    info = front_info(fronts)
    count = len(info.panels)
    figure = make_subplots(rows=count, cols=1, vertical_spacing=0.09) if count > 1 else go.Figure()
    for number in range(count):
        _draw(figure, info, number)
    title = " and ".join(info.steps)
    against = ", ".join(OBJECTIVES[name].short for name in fronts[0]["objectives"][1:])
    first = OBJECTIVES[fronts[0]["objectives"][0]].short
    figure.update_layout(
        LAYOUT,
        title={"text": f"{escape(title)}: {first} against {against}", "font": {"size": 16}},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        margin={"l": 70, "r": 20, "t": 60, "b": 90},
        height=None if count == 1 else _PANEL_PX * count,
    )
    return figure


def _draw(figure: go.Figure, info: FrontInfo, number: int) -> None:
    """Lines, points and axes of a panel."""
    across, up = info.panels[number]
    place = {} if len(info.panels) == 1 else {"row": number + 1, "col": 1}
    for index, (run, panels) in enumerate(info.steps.items()):
        line = {"width": 2, "dash": DASHES[index % len(DASHES)], "color": RUNS[index % len(RUNS)]}
        name = "front" if len(info.steps) == 1 else f"front of {escape(run)}"
        shown = {"name": name, "legendgroup": f"front {index}", "line": line, **place}
        if number == 0:
            # Of several runs the legend shows the symbols as well, which are a run's own.
            mode = "lines" if len(info.steps) == 1 else "lines+markers"
            marker = {"symbol": f"circle{_VARIANTS[index % len(_VARIANTS)]}", "size": 9}
            figure.add_scatter(x=[None], y=[None], mode=mode, marker=marker, **shown)
        # From a corner on to where the next one is reached; where more is better across, what lies
        # between two corners costs as much as the one to the right.
        shown["line"] = {**line, "shape": "vh" if OBJECTIVES[across].maximise else "hv"}
        figure.add_scatter(
            x=[x for x, _ in panels[number]],
            y=[y for _, y in panels[number]],
            mode="lines",
            showlegend=False,
            hoverinfo="skip",
            **shown,
        )
    runs = list(info.steps)
    told: set[str] = set()
    for group in info.series:
        variant = _VARIANTS[runs.index(group.run) % len(_VARIANTS)]
        legend = number == 0 and group.kind not in told
        _draw_series(figure, group, (across, up), variant, place, info.metric, legend=legend)
        told.add(group.kind)
    for name, update in ((across, figure.update_xaxes), (up, figure.update_yaxes)):
        values = [point[name] for group in info.series for point in group.points]
        scale = _logarithmic(values, OBJECTIVES[name]) if OBJECTIVES[name].logarithmic else {}
        update(**AXIS, ticks="outside", title={"text": OBJECTIVES[name].title}, **scale, **place)


def _draw_series(
    figure: go.Figure,
    group: Series,
    panel: tuple[str, str],
    variant: str,
    place: Mapping[str, int],
    metric: str,
    *,
    legend: bool,
) -> None:
    look = look_of(group.kind)
    compared = group.kind in METHODS and not METHODS[group.kind].searched
    symbol = look.symbol + variant
    marker = {"color": look.color, "symbol": symbol, "line": {"width": 1.5 if variant else 0}}
    shown = {"mode": "markers", "name": look.label, "legendgroup": look.label, **place}
    if legend:
        # The legend's own marker: that of the points would be as faint as the first of them.
        own = {"color": look.color, "symbol": look.symbol, "size": 11}
        figure.add_scatter(x=[None], y=[None], marker=own, **shown)
    across, up = panel
    figure.add_scatter(
        x=[_shown(across, point[across]) for point in group.points],
        y=[_shown(up, point[up]) for point in group.points],
        error_y=_bars(group.points, up, look.color),
        showlegend=False,
        marker={
            **marker,
            "size": [11 if compared or p["on_front"] else 8 for p in group.points],
            "opacity": [1.0 if compared or p["on_front"] else 0.45 for p in group.points],
        },
        customdata=[[point["id"], _told(point, metric)] for point in group.points],
        hovertemplate="%{customdata[1]}<extra></extra>",
        **shown,
    )


def _bars(points: Sequence[Mapping[str, Any]], up: str, color: str) -> dict[str, Any] | None:
    """The intervals of the points on the front; of all others they would only be in the way."""
    around = [interval_in(point, up) if point["on_front"] else None for point in points]
    if not any(around):
        return None
    ends = [
        (point[up], point[up]) if interval is None else interval
        for point, interval in zip(points, around, strict=True)
    ]
    return {
        "symmetric": False,
        "array": [_shown(up, h - point[up]) for point, (_, h) in zip(points, ends, strict=True)],
        "arrayminus": [
            _shown(up, point[up] - low) for point, (low, _) in zip(points, ends, strict=True)
        ],
        "color": f"rgba{(*_rgb(color), 0.45)}",
        "thickness": 1.2,
        "width": 0,
    }


def _rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue of `#rrggbb`."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def _shown(name: str, value: float) -> float:
    """A value in the units of its axis."""
    factor = OBJECTIVES[name].factor
    return value if factor == 1 else factor * value


def _told(point: Mapping[str, Any], metric: str) -> str:
    """What a hover says of a point, lines short enough for a phone."""
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
        joint = ", " if len(", ".join(both)) <= _HOVER else "<br>"
        lines.append(joint.join(both))
    lines += [", ".join(costs[:2]), *costs[2:]]
    for line in point.get("network", []):
        lines += [escape(part) for part in textwrap.wrap(line, _HOVER)]
    return "<br>".join(lines)


def _logarithmic(values: Sequence[float], objective: Objective) -> dict[str, Any]:
    """A logarithmic axis around values, its ticks labelled with their whole values: plotly labels
    such an axis with bare digits otherwise, and one of less than a decade hardly at all."""
    scale: dict[str, Any] = {"type": "log", "tickformat": objective.tickformat}
    return {**scale, "tickvals": log_ticks(min(values), max(values))} if values else scale
