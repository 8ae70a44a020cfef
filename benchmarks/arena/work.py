"""One way under one seed, in the environment of the interpreter that runs it: one line of results.

    python benchmarks/arena/work.py TASK WAY SEED --cache FOLDER --out FOLDER [--root FOLDER]

`run.py` calls it; by hand it shows what a way says on its streams.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from task import TASKS, Arena, teacher_facts, teacher_of
from ways import WAYS

PACKAGES = ("torch", "planter", "torch-pruning", "nvidia-modelopt", "gromo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("seed", type=int)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    line = measured(given.task, given.way, given.seed, given.root, given.cache, given.out)
    with (given.out / "results.jsonl").open("a") as out:  # one write: two processes may append
        out.write(json.dumps(line) + "\n")


def measured(
    task_name: str, way_name: str, seed: int, root: Path | None, cache: Path, out: Path
) -> dict[str, Any]:
    """The line of a way and seed."""
    task, way = TASKS[task_name], WAYS[way_name]
    data = task.load(root)
    teacher, folder = teacher_of(task, seed, data, cache.resolve())
    own = out.resolve() / "work" / f"{way_name}-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    arena = Arena(task, seed, data, teacher, folder, own)
    began = time.perf_counter()
    importlib.import_module(way.module).run(arena, way.variant)
    seconds = time.perf_counter() - began
    return {
        "task": task_name,
        "way": way_name,
        "seed": seed,
        "points": arena.points,
        "train_macs": arena.train_macs,
        "teacher_train_macs": arena.teacher_train_macs,
        "search_macs": arena.search_macs,
        "budget": task.budget if way.full_budget else task.less,
        "teacher": teacher_facts(folder),
        "seconds": round(seconds, 1),
        **arena.told,
        "threads": torch.get_num_threads(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
