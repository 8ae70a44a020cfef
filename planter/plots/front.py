"""The figure of one or several fronts: points by how they came about, fronts as step lines, bounds
and what lies beyond them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planter.front.certainty import interval_in
from planter.front.methods import is_searched
from planter.front.objectives import OBJECTIVES, Objective
from planter.front.reranked import corners
from planter.plots.hovers import point_hover
from planter.plots.style import AXIS, BEYOND, BOUND, DASHES, INK, LAYOUT, RUNS, look_of, looks
from planter.plots.ticks import log_ticks

_PANEL_PX = 420
_BEYOND = "x-thin-open"
"""The symbol of searched points that do not keep to the study's bounds, whatever they are."""


class Series(NamedTuple):
    """Points of one run and one kind, drawn together."""

    run: str
    kind: str
    points: list[Mapping[str, Any]]


class FrontInfo(NamedTuple):
    """All decisions of the front's figure; drawing it takes no more.

    `metric` is the first of the objectives; `panels` are the pairs of objectives (across, up) that
    are drawn, one below the other; `steps` the corners of each run's line in each panel, in the
    units of the axes; `bounds` the largest values that all runs allow, by objective.
    """

    metric: str
    series: list[Series]
    panels: list[tuple[str, str]]
    steps: dict[str, list[list[tuple[float, float]]]]
    bounds: Mapping[str, float]


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
    # Of runs with different bounds none is drawn: it would be taken for that of all.
    first = fronts[0].get("bounds", {})
    bounds = first if all(front.get("bounds", {}) == first for front in fronts) else {}
    return FrontInfo(objectives[0], series, panels, steps, bounds)


def front_figure(fronts: Sequence[Mapping[str, Any]]) -> go.Figure:
    """One or several runs by the objectives that their documents name, at first accuracy against
    macs: fronts as step lines, points on them full and the dominated ones hollow, thin bars the
    95 % intervals of those on the front. Beyond a bound the ground is shaded and points are
    crosses. Where several points coincide, their number stands beside them. A row's `network`,
    lines of text, stands in its hover. The colour is the method's; of several runs, the run's."""
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
        margin={"l": 70, "r": 20, "t": 60, "b": 110},
        height=None if count == 1 else _PANEL_PX * count,
    )
    return figure


def _draw(figure: go.Figure, info: FrontInfo, number: int) -> None:
    """Lines, points and axes of a panel."""
    across, up = info.panels[number]
    place = {} if len(info.panels) == 1 else {"row": number + 1, "col": 1}
    _draw_axes(figure, info, (across, up), place)
    several = len(info.steps) > 1
    for index, (run, panels) in enumerate(info.steps.items()):
        line = {"width": 2, "dash": DASHES[index % len(DASHES)], "color": _run_color(index)}
        name = f"front of {escape(run)}" if several else "front"
        figure.add_scatter(
            x=[x for x, _ in panels[number]],
            y=[y for _, y in panels[number]],
            mode="lines",
            # From a corner on to where the next one is reached; where more is better across, what
            # lies between two corners costs as much as the one to the right.
            line={**line, "shape": "vh" if OBJECTIVES[across].maximise else "hv"},
            name=name,
            legendgroup=f"front {index}",
            showlegend=number == 0,
            hoverinfo="skip",
            **place,
        )
    runs = list(info.steps)
    at = _at_one_place(info, (across, up))
    for group in info.series:
        color = _run_color(runs.index(group.run)) if several else look_of(group.kind).color
        _draw_series(figure, info, group, (across, up), at, color, place)
    if number == 0:
        _draw_legend(figure, info, place, several=several)
    places = {place: ids for place, ids in at.items() if len(ids) > 1}
    figure.add_scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        text=[f" \u00d7{len(ids)}" for ids in places.values()],
        mode="text",
        textposition="bottom right",
        hoverinfo="skip",
        showlegend=False,
        **place,
    )


def _run_color(index: int) -> str:
    return RUNS[index % len(RUNS)]


def _at_one_place(info: FrontInfo, panel: tuple[str, str]) -> dict[tuple[float, float], list[str]]:
    """The ids of the points at each place of a panel."""
    across, up = panel
    found: dict[tuple[float, float], list[str]] = {}
    for group in info.series:
        for point in group.points:
            at = _shown(across, point[across]), _shown(up, point[up])
            found.setdefault(at, []).append(point["id"])
    return found


def _draw_legend(
    figure: go.Figure, info: FrontInfo, place: Mapping[str, int], *, several: bool
) -> None:
    """A mark for each kind: those of the points would be as hollow as the first of them. Of several
    runs, whose lines have their colours, it says what the symbols are."""
    for kind in dict.fromkeys(group.kind for group in info.series):
        look = look_of(kind)
        marker = {"color": INK if several else look.color, "symbol": look.symbol, "size": 11}
        _mark(figure, marker, look.label, look.label, place)
    points = [point for group in info.series for point in group.points]
    if any(point["on_front"] for point in points) and not all(map(_full, points)):
        hollow = {"color": INK, "symbol": "circle-open", "size": 8, "line": {"width": 1.5}}
        _mark(figure, hollow, "hollow: dominated", "dominated", place)
    if any(map(_beyond, points)):
        cross = {"color": INK, "symbol": _BEYOND, "size": 8, "line": {"width": 2}}
        told = ", ".join(OBJECTIVES[name].text(most) for name, most in info.bounds.items())
        _mark(figure, cross, f"beyond the bound ({told})" if told else "beyond a bound", "x", place)


def _mark(
    figure: go.Figure, marker: Mapping[str, Any], name: str, group: str, place: Mapping[str, int]
) -> None:
    shown = {"mode": "markers", "name": name, "legendgroup": group}
    figure.add_scatter(x=[None], y=[None], marker=marker, **shown, **place)


def _draw_axes(
    figure: go.Figure, info: FrontInfo, panel: tuple[str, str], place: Mapping[str, int]
) -> None:
    """Axes with their units; a bound as a line, what lies beyond it shaded."""
    for name, axis in zip(panel, "xy", strict=True):
        objective = OBJECTIVES[name]
        update = figure.update_xaxes if axis == "x" else figure.update_yaxes
        values = [point[name] for group in info.series for point in group.points]
        scale = _logarithmic(values, objective) if objective.logarithmic else {}
        title = f"{objective.title}, log scale" if scale else objective.title
        most = info.bounds.get(name)
        if most is not None and values and scale:
            low, high = _ends([*values, most])
            scale["range"] = [low, high]
            style = {"layer": "below", "line": {"color": BOUND, "width": 2, "dash": "dash"}}
            left = 2 * math.log10(most) < low + high
            draw = figure.add_vline if axis == "x" else figure.add_hline
            draw(most, **style, **place)
            shade = figure.add_vrect if axis == "x" else figure.add_hrect
            beyond = {"fillcolor": BEYOND, "line_width": 0, "layer": "below"}
            shade(most, 10**high, **beyond, **place)
            side = {"yref": "y domain", "y": 1} if axis == "x" else {"xref": "x domain", "x": 1}
            figure.add_annotation(
                **{axis: math.log10(most), f"{axis}ref": axis, **side},
                text=f"bound: {objective.text(most)}",
                showarrow=False,
                xanchor="left" if axis == "x" and left else "right",
                yanchor="top",
                **place,
            )
        update(**AXIS, ticks="outside", title={"text": title}, **scale, **place)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis around values, as powers of ten."""
    low, high = math.log10(min(values)), math.log10(max(values))
    more = (high - low) / 16 or 0.1
    return low - more, high + more


def _beyond(point: Mapping[str, Any]) -> bool:
    """Whether a point that the search is after does not keep to the study's bounds."""
    return is_searched(point["method"]) and point.get("within_bounds") is False


def _full(point: Mapping[str, Any]) -> bool:
    return point["on_front"] or not is_searched(point["method"]) or _beyond(point)


def _draw_series(
    figure: go.Figure,
    info: FrontInfo,
    group: Series,
    panel: tuple[str, str],
    at: Mapping[tuple[float, float], Sequence[str]],
    color: str,
    place: Mapping[str, int],
) -> None:
    look = look_of(group.kind)
    symbols = [
        _BEYOND if _beyond(p) else look.symbol if _full(p) else f"{look.symbol}-open"
        for p in group.points
    ]
    across, up = panel
    xs = [_shown(across, point[across]) for point in group.points]
    ys = [_shown(up, point[up]) for point in group.points]
    hovers = []
    for point, x, y in zip(group.points, xs, ys, strict=True):
        others = [name for name in at[x, y] if name != point["id"]]
        bounds = info.bounds if _beyond(point) else {}
        hovers.append([point["id"], point_hover(point, info.metric, bounds, others)])
    figure.add_scatter(
        x=xs,
        y=ys,
        error_y=_bars(group.points, up, color),
        mode="markers",
        name=look.label,
        legendgroup=look.label,
        showlegend=False,
        marker={
            "color": color,
            "symbol": symbols,
            "opacity": 1,  # plotly's own is less where sizes differ
            "size": [11 if _full(p) and not _beyond(p) else 8 for p in group.points],
            "line": {
                "color": color,
                "width": [0 if _full(p) and not _beyond(p) else 1.5 for p in group.points],
            },
        },
        customdata=hovers,
        hovertemplate="%{customdata[1]}<extra></extra>",
        **place,
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
        "color": color,
        "thickness": 1,
        "width": 0,
    }


def _shown(name: str, value: float) -> float:
    """A value in the units of its axis."""
    factor = OBJECTIVES[name].factor
    return value if factor == 1 else factor * value


def _logarithmic(values: Sequence[float], objective: Objective) -> dict[str, Any]:
    """A logarithmic axis around values, its ticks labelled with their whole values: plotly labels
    such an axis with bare digits otherwise, and one of less than a decade hardly at all."""
    scale: dict[str, Any] = {"type": "log", "tickformat": objective.tickformat}
    return {**scale, "tickvals": log_ticks(min(values), max(values))} if values else scale
