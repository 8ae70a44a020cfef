"""How networks stand to bounds before they are trained; for latency they are timed, once each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from planter.arch import Architecture
from planter.costs.macs import cost
from planter.driver.trials.jobs import Outcome
from planter.front.points import Point
from planter.latency.timing import forward, time_calls
from planter.machine.torch_state import threads_of_torch
from planter.networks.assembly import build_network
from planter.networks.cut_points import image_of
from planter.study.schema import Plant, Study

LATENCY = "latency_ms"
"""The bound's name, and the attribute of a trial: milliseconds by pipeline."""


class Weighed(NamedTuple):
    """How a trial's networks stand to the bounds (see `excess`), what they were timed at, and
    those that keep to all bounds."""

    beyond: dict[str, float]
    latency_ms: dict[str, float]
    fitting: Sequence[str] = ()

    @property
    def refused(self) -> bool:
        """Whether none keeps to the bounds."""
        return any(value > 0 for value in self.beyond.values())


class Latencies:
    """Milliseconds of a forward pass of one image, on this machine, with a worker's threads on a
    worker's device: measured where a bound or an objective asks for it, and from then on the
    same."""

    def __init__(self, study: Study) -> None:
        bounded = study.objectives.bounds.latency_ms is not None
        self._asked = bounded or LATENCY in study.objectives.names
        self._threads = study.resources.cpu
        self._device = "cuda" if study.resources.gpu else "cpu"
        self._known: dict[tuple[str, str], float] = {}

    def learn(self, architecture: Architecture, latency_ms: Mapping[str, float]) -> None:
        """Takes over what was measured of an architecture's pipelines before."""
        for pipeline, ms in latency_ms.items():
            self._known.setdefault((architecture.key(), pipeline), ms)

    def learn_points(self, points: Iterable[Point]) -> None:
        for point in points:
            if point.latency_ms is not None:
                architecture = Architecture.from_dict(point.architecture)
                self.learn(architecture, {point.pipeline: point.latency_ms})

    def of(self, architecture: Architecture, pipelines: Sequence[str]) -> dict[str, float]:
        """Each pipeline's latency, measured unless it is known."""
        key = architecture.key()
        new = [name for name in pipelines if (key, name) not in self._known]
        if new:
            measured = measure(architecture, new, threads=self._threads, device=self._device)
            self.learn(architecture, measured)
        return {name: self._known[key, name] for name in pipelines}

    def weigh(
        self, limits: Mapping[str, float], architecture: Architecture, pipelines: Sequence[str]
    ) -> Weighed:
        """How an architecture stands to the bounds with these of its pipelines. What is beyond
        another bound is not timed: it may be large, and is refused anyway."""
        costs = cost(architecture).pipelines
        ways: dict[str, dict[str, float]] = {
            name: {"macs": costs[name].macs, "params": costs[name].params} for name in pipelines
        }
        others = {name: most for name, most in limits.items() if name != LATENCY}
        small = [name for name, way in ways.items() if not _misses(others, way)]
        if LATENCY not in limits or not small:
            return Weighed(excess(others, ways.values()), {}, small)
        latency_ms = self.of(architecture, small)
        timed = {name: {**ways[name], LATENCY: latency_ms[name]} for name in small}
        fitting = [name for name, way in timed.items() if not _misses(limits, way)]
        return Weighed(excess(limits, timed.values()), latency_ms, fitting)

    def added(self, outcome: Outcome, latency_ms: Mapping[str, float] | None = None) -> Outcome:
        """The outcome of a training with its points' latencies: those given or, where the study
        asks for them, measured now."""
        if "error" in outcome or (latency_ms is None and not self._asked):
            return outcome
        points = []
        for fields in outcome["points"]:
            architecture = Architecture.from_dict(fields["architecture"])
            self.learn(architecture, latency_ms or {})
            (ms,) = self.of(architecture, [fields["pipeline"]]).values()
            points.append({**fields, LATENCY: ms})
        return {**outcome, "points": points}


def limits_of(study: Study, plant: Plant) -> dict[str, float]:
    """The bounds of what is planted: the study's and its own, the tighter of each."""
    limits = study.objectives.bounds.limits()
    for name, most in plant.bounds.limits().items():
        limits[name] = min(most, limits.get(name, most))
    return limits


def excess(limits: Mapping[str, float], ways: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The relative violation of each limit, by name: value / limit - 1, feasible at 0 or less, as
    Optuna expects constraints. `ways` holds the values by name of each pipeline of a trial; the
    result is that of the pipeline whose largest violation is smallest."""
    each = [{name: way[name] / limit - 1 for name, limit in limits.items()} for way in ways]
    return min(each, key=lambda misses: max(misses.values(), default=0.0))


def _misses(limits: Mapping[str, float], way: Mapping[str, float]) -> bool:
    return any(way[name] > limit for name, limit in limits.items())


def measure(
    architecture: Architecture, pipelines: Sequence[str], *, threads: int, device: str
) -> dict[str, float]:
    """Milliseconds of a forward pass of one image, by pipeline, of networks that nobody has trained
    (what weights they hold does not matter).

    Workers train beside: what shares a core or its caches makes a pass longer, never shorter. So
    the lower quartile is told, not the median; and one thread is timed by its own clock, which
    stands while it waits for a core (docs/latency.md has the figures).
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(1, *image_of(architecture), generator=draw).to(device)
    calls = {
        name: forward(build_network(architecture, name).eval().to(device), images)
        for name in pipelines
    }
    alone = threads == 1 and device == "cpu" and os.name == "posix"  # Windows counts in 16 ms
    with threads_of_torch(threads):
        timings = time_calls(calls, clock=time.thread_time if alone else time.perf_counter)
    return {name: round(timing.lower_ms, 4) for name, timing in timings.items()}
