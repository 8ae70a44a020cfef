"""The point that hypervolume is measured from, and whether a study's objectives can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping

from planter.arch import Architecture
from planter.costs.macs import cost
from planter.data import Data
from planter.driver.trials.bounds import LATENCY, Latencies
from planter.driver.trials.networks import Planned
from planter.front.objectives import OBJECTIVES
from planter.study.findings import Findings
from planter.study.schema import Study
from planter.training.answers import TOP


def check_metric(study: Study, data: Data, found: Findings) -> None:
    """A metric that says nothing of so few classes."""
    if study.objectives.metric == "top5" and data.classes < TOP:
        expected = (
            f"a metric for {data.classes} classes, such as accuracy; top5 needs {TOP} or more"
        )
        found.add("objectives.metric", "top5", expected)


def macs_reference(study: Study, networks: Mapping[str, Planned]) -> float:
    """Multiply-adds of the hypervolume's reference: as asked, or the teacher's, or those of the
    largest baseline; not a number where there is none of them."""
    if (asked := study.objectives.macs_reference) is not None:
        return asked
    return max((float(cost(one).macs) for one in _compared(networks)), default=math.nan)


def reference_of(
    study: Study,
    data: Data,
    networks: Mapping[str, Planned],
    latencies: Latencies,
    found: Findings,
) -> list[float]:
    """The point hypervolume is measured from: the metric of who guesses and the teacher's costs, or
    the largest of the baselines'."""
    metric, *costs = study.objectives.names
    chance = OBJECTIVES[metric].chance
    assert chance is not None
    reference, compared = [chance(data.classes)], _compared(networks)
    # Where the teacher or a baseline is wrong, that is told already.
    given = study.teacher is not None or bool(study.baselines)
    for name in costs:
        if name == "macs":
            reference.append(macs_reference(study, networks))
            if math.isnan(reference[-1]) and not given:
                found.add(
                    "objectives.macs_reference",
                    "nothing",
                    "macs to measure the hypervolume from, as there is no teacher and no baseline",
                )
            continue
        if not given:
            found.add(
                "objectives.costs",
                name,
                f"a teacher or a baseline, whose {OBJECTIVES[name].short} the hypervolume is "
                "measured from; or macs, with objectives.macs_reference",
            )
        each = [_cost_of(name, one, latencies) for one in compared if not found.problems]
        reference.append(max(each, default=math.nan))
    return reference


def _compared(networks: Mapping[str, Planned]) -> list[Architecture]:
    """The teacher, or the baselines where there is none."""
    if "teacher" in networks:
        return [networks["teacher"].architecture]
    return [one.architecture for name, one in networks.items() if name.startswith("b-")]


def _cost_of(name: str, architecture: Architecture, latencies: Latencies) -> float:
    if name == LATENCY:
        return latencies.of(architecture, ["base"])["base"]
    known = cost(architecture)
    return float({"params": known.params, "bytes": known.size_bytes}[name])
