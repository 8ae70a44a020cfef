"""latency.json of a run: what `planter latency` measured where, and the column of the front."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from planter.front.methods import is_searched
from planter.front.points import (
    LATENCY_FILE,
    columns,
    measured_latency,
    read_front,
    to_csv,
    write_text,
)
from planter.latency.timing import Timing

_SAME = ("machine", "threads", "batch")
_PACKAGES = ("planter", "torch", "onnxruntime")


def measurement(
    timings: Mapping[tuple[str, str], Timing],
    *,
    threads: int,
    batch: int,
    load: float | None,
    column: str,
) -> dict[str, Any]:
    """What was measured, with machine and versions, from timings by network and engine. `column` is
    the engine whose median stands on the front, `load` how many processes were busy before."""
    rows: dict[str, dict[str, Any]] = {}
    for (name, engine), timing in timings.items():
        told = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in asdict(timing).items()
        }
        rows.setdefault(name, {"id": name})[engine] = told
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "platform": platform.platform(),
        },
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "threads": threads,
        "batch": batch,
        "load": load,
        "column": column,
        "rows": list(rows.values()),
    }


def read_measurements(run: Path) -> list[dict[str, Any]]:
    """What latency.json holds. Raises ValueError where it is damaged."""
    path = run / LATENCY_FILE
    if not path.is_file():
        return []
    try:
        every: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["measurements"]
        for one in every:
            _ = [one[key] for key in _SAME]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; remove it") from error
    return every


def write_measurement(run: Path, found: Mapping[str, Any]) -> None:
    """Adds a measurement to latency.json, in the place of an earlier one of the same machine,
    threads and batch. Raises ValueError where the file is damaged."""
    every = read_measurements(run)
    kept = [one for one in every if any(one[key] != found[key] for key in _SAME)]
    write_text(run / LATENCY_FILE, json.dumps({"measurements": [*kept, found]}, indent=2) + "\n")


def write_column(run: Path) -> None:
    """Brings pareto.json and pareto.csv up to latency.json, where no search writes them."""
    front, measured = read_front(run), measured_latency(run)
    for row in front["points"] if measured else []:
        row["latency_ms"] = measured.get(row["id"])
    write_text(run / "pareto.json", json.dumps(front, indent=2) + "\n")
    write_text(run / "pareto.csv", to_csv(front["points"], columns(front["objectives"])))


def reported(front: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a front whose networks are saved and shown: the front's, those of its family, the
    teacher's and the baselines'."""
    family = front.get("family", {}).get("points", [])
    return [
        row
        for row in front["points"]
        if row["model"] is not None
        and (row["on_front"] or row["id"] in family or not is_searched(row["method"]))
    ]


def _cpu() -> str:
    """The processor's name, or its kind where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
