"""Two runs beside each other: what their studies differ in, whether one is a random control, which
networks to compare, and how these differ."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from planter.driver.run_folder.predictions import answers_of
from planter.driver.run_folder.read import read_points
from planter.driver.storage.reading import run_study
from planter.front.certainty import Interval, interval_in, paired, paired_metric, unpaired
from planter.front.choose import best_of
from planter.front.objectives import metric_merit
from planter.front.points import Point, covered, read_front
from planter.report import Comparison
from planter.study.schema import Study
from planter.training.answers import Answers

Kind = Literal["equal cost", "best", "same network"]
Images = Literal["validation", "test"]
_NO_DIFFERENCE = (
    "name", "resources", "budget", "keep", "tensorboard", "trackers", "storage", "table",
)  # fmt: skip
"""Keys of a study that decide nothing of what its networks are."""


def images_fingerprint(run: Path) -> str | None:
    """The fingerprint of a run's training and validation images; None where it is not written."""
    try:
        found = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError, AttributeError):
        return None
    return None if found is None else str(found)


def compared(run: Path, other: Path) -> Comparison:
    """How a second run stands to a first: its random control where it is the same study with
    random samplers alone. Raises ValueError for a folder that is no run."""
    studies = [run_study(folder) for folder in (run, other)]
    images = [images_fingerprint(folder) for folder in (run, other)]
    same_images = None not in images and images[0] == images[1]
    keys = [_flat(study) for study in studies]
    if same_images:  # wherever they lie
        for one in keys:
            one.pop("data.root", None)
    _as_sections(keys[0], keys[1])
    _as_sections(keys[1], keys[0])
    apart = [
        (key, *(str(one.get(key, "nothing")) for one in keys))
        for key in sorted(set(keys[0]) | set(keys[1]))
        if keys[0].get(key) != keys[1].get(key)
    ]
    if not same_images:
        shown = [one or "not written down" for one in images]
        apart.insert(0, ("images and labels, by fingerprint", *shown))
    samplers = samplers_of(studies[1])
    only = bool(apart) and {key for key, *_ in apart} <= set(samplers)
    control = only and set(samplers.values()) == {"random"}
    return Comparison(control=control, same_images=same_images, differences=apart)


def _as_sections(keys: dict[str, Any], other: dict[str, Any]) -> None:
    """Puts one key for all of a section that the other study does not have."""
    there = {key.partition(".")[0] for key in other if "." in key}
    alone = [key for key in keys if "." in key and key.partition(".")[0] not in there]
    for key in alone:
        del keys[key]
    for section, count in Counter(key.partition(".")[0] for key in alone).items():
        keys[section] = f"a section of {count} key{'s' * (count != 1)}"
        if other.get(section) is None:
            other.pop(section, None)


def samplers_of(study: Study) -> dict[str, str]:
    """The samplers of a study by their keys."""
    sections = {"sample": study.sample, "evolve": study.evolve}
    return {f"{name}.sampler": one.sampler for name, one in sections.items() if one is not None}


def other_images(runs: Sequence[Path]) -> list[str]:
    """A sentence where runs have images of their own, so that accuracies cannot be compared."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if (images := images_fingerprint(run)) is not None:
            found.setdefault(images, []).append(run.name)
    if len(found) < 2:
        return []
    groups = "; ".join(f"{', '.join(names)} ({images})" for images, names in found.items())
    return [
        f"these runs have different images or labels, by fingerprint: {groups}; an accuracy of one "
        "says nothing about those of another"
    ]


def _flat(study: Study) -> dict[str, Any]:
    """What a study says, by dotted key."""
    flat: dict[str, Any] = {}

    def add(place: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{place}.{key}" if place else str(key), inner)
        else:
            flat[place] = value

    add("", {k: v for k, v in study.model_dump().items() if k not in _NO_DIFFERENCE})
    if study.sample is not None:
        flat["sample.space"] = _space(study.sample.space)
    return flat


def _space(place: str) -> str:
    """A space by its function and what its file holds now, wherever it lies; by its place where it
    is a shipped one or the file is gone."""
    file, colon, function = place.rpartition(":")
    try:
        held = Path(file).read_bytes() if colon else None
    except OSError:
        held = None
    if held is None:
        return place
    return f"{Path(file).name}:{function} ({hashlib.sha256(held).hexdigest()[:8]})"


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
