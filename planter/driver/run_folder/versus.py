"""Two runs beside each other: which networks to compare, and how they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from planter.driver.run_folder.compare import compared
from planter.driver.run_folder.predictions import answers_of
from planter.driver.run_folder.read import read_points
from planter.driver.storage.reading import run_study
from planter.front.certainty import Interval, interval_in, paired, paired_metric, unpaired
from planter.front.choose import best_of
from planter.front.objectives import metric_merit
from planter.front.points import Point, covered, read_front
from planter.training.answers import Answers

Kind = Literal["equal cost", "best", "same network"]
Images = Literal["validation", "test"]


class Difference(NamedTuple):
    """The metric of a network of the first run minus that of one of the second, on some images, and
    its 95 % interval; `paired` where both answered the same images, one by one. `most` is the cost
    that neither exceeds, of a row of equal cost."""

    kind: Kind
    most: float | None
    first: str
    second: str
    images: Images
    values: tuple[float, float]
    difference: float
    interval: Interval | None
    paired: bool

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out that there is no difference."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


class Versus(NamedTuple):
    """Two runs: their names, objectives and front's hypervolumes over one reference point, how
    their studies differ (key, first, second), whether their images are the same, and the rows."""

    runs: tuple[str, str]
    objectives: Sequence[str]
    hypervolumes: tuple[float, float]
    reference_point: Sequence[float]
    same_images: bool
    studies: Sequence[tuple[str, ...]]
    rows: list[Difference]

    def document(self) -> dict[str, Any]:
        """The same, fit for JSON."""
        found = self._asdict()
        found["rows"] = [{**row._asdict(), "sure": row.sure} for row in self.rows]
        return found


def versus(first: Path, second: Path) -> Versus:
    """How a first run differs from a second. Networks are compared at equal cost (the best of each
    front at most as dear as each point of either), the best of both fronts, and those of one
    architecture, pipeline and training form, as teachers and baselines are.

    Raises ValueError for a folder that is no run, or runs that were searched by different
    objectives.
    """
    folders = (first, second)
    fronts = [read_front(folder) for folder in folders]
    names = [list(front["objectives"]) for front in fronts]
    if names[0] != names[1]:
        told = " and ".join(", ".join(one) for one in names)
        raise ValueError(
            f"these runs were searched by different objectives ({told}); planter pareto RUN RUN "
            "--x --y shows both by the same"
        )
    points = [read_points(folder) for folder in folders]
    reference = fronts[0]["reference_point"]
    volumes = [
        covered(some, reference, run_study(folder).objectives.bounds.limits(), names[0])
        for some, folder in zip(points, folders, strict=True)
    ]
    about = compared(first, second)
    rows = [{row["id"]: row for row in front["points"]} for front in fronts]
    found = []
    for kind, most, *ids in _pairs(rows, points, names[0]):
        one, other = (_Network(*each) for each in zip(folders, rows, ids, strict=True))
        for images in ("validation", "test"):
            same = about.same_images
            if (row := _difference(kind, most, one, other, images, names[0][0], same)) is not None:
                found.append(row)
    titles = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    return Versus(
        titles, names[0], (volumes[0], volumes[1]), reference,
        about.same_images, about.differences, found,
    )  # fmt: skip


class _Network:
    """A point of a run, with its answers as far as they are kept."""

    def __init__(self, run: Path, rows: Mapping[str, Mapping[str, Any]], point: str) -> None:
        self.id, self.row = point, rows[point]
        try:
            self.answers: Mapping[str, Answers] = answers_of(run, point)
        except ValueError:  # not kept
            self.answers = {}


def _pairs(
    rows: Sequence[Mapping[str, Mapping[str, Any]]],
    points: Sequence[Sequence[Point]],
    objectives: Sequence[str],
) -> Iterator[tuple[Kind, float | None, str, str]]:
    cost = objectives[1]
    fronts = [[row for row in each.values() if row["on_front"]] for each in rows]
    seen = set()
    for most in sorted({row[cost] for front in fronts for row in front}):
        within = [[row for row in front if row[cost] <= most] for front in fronts]
        if all(within):
            one, other = (best_of(some, objectives)["id"] for some in within)
            if (one, other) not in seen:
                seen.add((one, other))
                yield "equal cost", most, one, other
    if all(fronts):
        one, other = (best_of(front, objectives)["id"] for front in fronts)
        yield "best", None, one, other
    known = [_by_network(some, each) for some, each in zip(points, rows, strict=True)]
    for key in known[0]:
        if key in known[1]:
            alike = [
                max(some[key], key=lambda p: metric_merit(p.values, objectives)) for some in known
            ]
            yield "same network", None, alike[0].id, alike[1].id


def _by_network(
    points: Sequence[Point], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.id in rows:
            key = json.dumps([point.architecture, point.pipeline, point.kernels], sort_keys=True)
            found.setdefault(key, []).append(point)
    return found


def _difference(
    kind: Kind,
    most: float | None,
    one: _Network,
    other: _Network,
    images: Images,
    metric: str,
    same_images: bool,
) -> Difference | None:
    """None where one of them was not asked about these images."""
    name = metric if images == "validation" else f"test_{metric}"
    values = [network.row.get(name) for network in (one, other)]
    if None in values:
        return None
    first, second = map(float, values)  # type: ignore[arg-type]
    both = [network.answers.get(images) for network in (one, other)]
    interval, together = None, False
    if same_images and both[0] is not None and both[1] is not None:
        try:
            if metric == "accuracy":
                interval = paired(both[0], both[1]).interval
            else:
                interval = paired_metric(both[0], both[1], metric)[1]
            together = True
        except ValueError:  # other test images
            interval = None
    if interval is None:
        ends = [interval_in(network.row, name) for network in (one, other)]
        if ends[0] is not None and ends[1] is not None:
            interval = unpaired((first, ends[0]), (second, ends[1]))
    return Difference(
        kind, most, one.id, other.id, images, (first, second), first - second, interval, together
    )
