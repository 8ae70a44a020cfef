"""From the arena's results to its table and claims."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from counting import LARGE, at, between, covered
from task import TASKS, Task
from ways import RIVALS, WAYS

sys.path.append(str(Path(__file__).resolve().parents[1]))
from measuring import claim

Line = Mapping[str, Any]
SEEDS = 3
"""Claims are about means of so many."""


def rows_of(lines: Sequence[Line], task: Task) -> list[dict[str, Any]]:
    """A row a way: figures by seed and their means, in the order of `WAYS`."""
    rows = []
    for name, way in WAYS.items():
        of_way = sorted((x for x in lines if x["way"] == name), key=lambda line: line["seed"])
        if not of_way:
            continue
        figures = [_figures(line, task) for line in of_way]
        row: dict[str, Any] = {"way": name, "label": way.label}
        row["seeds"] = [line["seed"] for line in of_way]
        for key in figures[0]:
            row[key] = _means(figures, key)
        rows.append(row)
    return rows


def _figures(line: Line, task: Task) -> dict[str, Any]:
    """Of one seed; accuracies in %, None where there is no point of that size."""
    macs = line["teacher"]["macs"]
    shares = {}
    for share in task.shares:
        found = at(line["points"], share * macs)
        shares[f"at {100 * share:g} %"] = None if found is None else 100 * found["test"]
    return {
        "hypervolume": covered(line["points"], macs),
        "hypervolume of 3 % and more": covered(line["points"], macs, LARGE),
        **shares,
        "points": len(line["points"]),
        "train_macs": line["train_macs"],
        "of the budget": line["train_macs"] / line["budget"],
        "minutes": line["seconds"] / 60,
    }


def _means(figures: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    values = [one[key] for one in figures]
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    return {
        "values": values,
        "mean": statistics.fmean(known) if whole else None,
        "std": statistics.stdev(known) if whole and len(known) > 1 else None,
    }


def claims_of(lines: Sequence[Line], task: Task) -> list[dict[str, Any]]:
    """What is to be reached, as means of three seeds; of those whose rows are there."""
    rows = {row["way"]: row for row in rows_of(lines, task) if len(row["seeds"]) == SEEDS}
    by_way = {name: [line for line in lines if line["way"] == name] for name in rows}
    claims = []
    if small := rows.get("planter-small"):
        claims.append(_claim("small end: hypervolume", small["hypervolume"]["mean"], 0.8))
    if small and "scratch" in rows:
        gained = _over_scratch(by_way["planter-small"], by_way["scratch"])
        claims.append(_claim("small end: points over scratch, at the worst size", gained, 2.0))
        gained, size = _at_equal_macs(by_way["planter-small"], by_way["scratch"], task)
        name = f"small end: points over scratch at its macs, at the worst size ({size})"
        claims.append(_claim(name, gained, 2.0))
    rivals = {name: rows[name] for name in RIVALS if name in rows}
    evolve = rows.get("planter-evolve")
    if evolve and rivals:
        best = max(rivals, key=lambda name: rivals[name]["hypervolume"]["mean"])
        ahead = evolve["hypervolume"]["mean"] - rivals[best]["hypervolume"]["mean"]
        claims.append(_claim(f"evolve: hypervolume over the best other's ({best})", ahead, 0.0))
        ahead, size = _worst_size(evolve, rivals, task)
        name = f"evolve: points over the best other, at the worst size ({size})"
        claims.append(_claim(name, ahead, -1.0))
        ahead, size = min(
            _at_equal_macs(by_way["planter-evolve"], by_way[name], task) for name in rivals
        )
        name = f"evolve: points over the best other at its macs, at the worst size ({size})"
        claims.append(_claim(name, ahead, -1.0))
    less, one_shot = rows.get("planter-evolve-less"), rows.get("torch-pruning")
    if less and one_shot:
        ahead = less["hypervolume"]["mean"] - one_shot["hypervolume"]["mean"]
        claims.append(_claim("evolve, three quarters: hypervolume over one shot's", ahead, 0.0))
    if evolve:
        spent = max(line["train_macs"] / line["budget"] for line in by_way["planter-evolve"])
        claims.append(claim("evolve: of the budget, worst seed", spent, "<=", 1.0))
        gaps = [line.get("seconds_to_propose") for line in by_way["planter-evolve"]]
        known = [gap for gap in gaps if gap is not None]
        if known:
            told = "evolve: seconds from a training to the next, worst seed"
            claims.append(claim(told, max(known), "<=", 0.3))
    return claims


def _claim(name: str, value: float, least: float) -> dict[str, Any]:
    return claim(name, value, ">=", least)


def _over_scratch(grown: Sequence[Line], scratch: Sequence[Line]) -> float:
    """Percentage points that grown networks are above those from scratch, means of the seeds, at
    the size of the latter where that is least; -100 where there is no grown one."""
    gained: dict[int, list[float]] = {}
    of_seed = {line["seed"]: line for line in grown}
    for line in scratch:
        for point in line["points"]:
            found = at(of_seed[line["seed"]]["points"], point["macs"])
            more = -1.0 if found is None else found["test"] - point["test"]
            gained.setdefault(point["macs"], []).append(100 * more)
    return min(statistics.fmean(values) for values in gained.values())


def _at_equal_macs(own: Sequence[Line], other: Sequence[Line], task: Task) -> tuple[float, str]:
    """Percentage points that a way is ahead of another at the macs of the other's points, between
    its own neighbours (means of the seeds), where that is least, and where. Sizes at which the
    other has no point in some seed, and those below all of the way's own, are left out."""
    of_seed = {line["seed"]: line for line in own}
    ahead = []
    for share in task.shares:
        gained = []
        for line in other:
            point = at(line["points"], share * line["teacher"]["macs"])
            found = point and between(of_seed[line["seed"]]["points"], point["macs"])
            if point is not None and found is not None:
                gained.append(100 * (found - point["test"]))
        if len(gained) == len(other):
            ahead.append((statistics.fmean(gained), f"at {100 * share:g} %"))
    return min(ahead, default=(-100.0, "none"))


def _worst_size(
    row: Mapping[str, Any], rivals: Mapping[str, Mapping[str, Any]], task: Task
) -> tuple[float, str]:
    """How far a way is ahead of the best other (their means) where that is least, and where."""
    ahead = []
    for share in task.shares:
        size = f"at {100 * share:g} %"
        known = [way[size]["mean"] for way in rivals.values() if way[size]["mean"] is not None]
        if known:
            own = row[size]["mean"]
            ahead.append((-100.0 if own is None else own - max(known), size))
    return min(ahead)


def document(lines: Sequence[Line], task_name: str) -> dict[str, Any]:
    """What `--json` prints; machines and versions as each line was measured with, told once."""
    task = TASKS[task_name]
    return {
        "task": task_name,
        "claims": claims_of(lines, task),
        "rows": rows_of(lines, task),
        "lines": list(lines),
        "machine": _distinct(line["machine"] for line in lines),
        "versions": _distinct(line["versions"] for line in lines),
    }


def _distinct(found: Any) -> list[Any]:
    told: list[Any] = []
    for one in found:
        if one not in told:
            told.append(one)
    return told


def table(rows: Sequence[Mapping[str, Any]], task: Task) -> str:
    """Means over the seeds; hypervolumes with their standard deviation."""
    sizes = [f"at {100 * share:g} %" for share in task.shares]
    head = ["way", "seeds", "hypervolume", ">= 3 %", *sizes, "of the budget", "minutes"]
    cells = [head]
    for row in rows:
        hypervolume, large = row["hypervolume"], row["hypervolume of 3 % and more"]
        spread = "" if hypervolume["std"] is None else f" +/- {hypervolume['std']:.3f}"
        accuracies = [_shown(row[size]["mean"], ".1f") for size in sizes]
        cells.append(
            [
                row["way"],
                " ".join(map(str, row["seeds"])),
                f"{_shown(hypervolume['mean'], '.3f')}{spread}",
                _shown(large["mean"], ".3f"),
                *accuracies,
                _shown(row["of the budget"]["mean"], ".3f"),
                _shown(row["minutes"]["mean"], ".1f"),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(["test accuracy [%] at sizes of the teacher's macs, means:", *lines])


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
