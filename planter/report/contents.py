"""What a report page says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from planter.front.history import Step, Stopped
from planter.plots import Curve
from planter.training.answers import Answers

Row = Sequence[object]


class Table(NamedTuple):
    """The first column and those named `words` are text; the others are numbers, set to the
    right. Columns named `code` are lines to copy; `sortable` tables sort by any column."""

    columns: Sequence[str]
    rows: Sequence[Row]
    words: Sequence[str] = ()
    code: Sequence[str] = ()
    sortable: bool = False


@dataclass(frozen=True)
class Importances:
    """How much each parameter decided `target` over `trials` finished sampled trials."""

    shares: Mapping[str, float]
    target: str
    trials: int


@dataclass(frozen=True)
class Facts:
    """A run as a report shows it: its pareto.json with the networks in words, its course, what its
    trainings took by method, which were stopped, how many failed, and the seconds `elapsed` while
    it trained. Of a control, by the reference point of the run it stands beside."""

    front: Mapping[str, Any]
    steps: Sequence[Step]
    seconds: Mapping[str, float]
    stopped: Sequence[Stopped]
    failed: int
    elapsed: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """How a second run stands to this one: whether it is its random control, has the same images,
    and what the studies differ in, as key, value here, value there."""

    control: bool
    same_images: bool
    differences: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Chosen:
    """A point of the front that is looked at closely, `why`, and its answers on "validation" and,
    where they were read, "test" images; without them, `lacks` says why."""

    point: str
    why: str
    answers: Mapping[str, Answers]
    lacks: str | None = None


@dataclass(frozen=True)
class Report:
    """All that the page says. `comparison` is that with `control`, a second run; `standing` tells
    why a run is not finished; `importances` is None below `enough` trials; `growth` are the rows of
    planting.csv; `samplers` the keys of the study's samplers; `class_names` those of the labels;
    `shortened` tells of a study that was only tried out; `curves` are the trainings whose course is
    drawn; `place` is the run folder as `open_run` finds it, and `beside` the names of the files in
    it."""

    run: Facts
    control: Facts | None
    growth: Sequence[Mapping[str, Any]]
    importances: Importances | None
    enough: int
    standing: str | None
    study: str
    environment: Mapping[str, Any]
    comparison: Comparison | None = None
    samplers: Sequence[str] = ("sample.sampler",)
    chosen: Sequence[Chosen] = ()
    class_names: Sequence[str] = ()
    shortened: str | None = None
    curves: Sequence[Curve] = ()
    place: str | None = None
    beside: Sequence[str] = ()
