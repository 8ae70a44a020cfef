"""planter against tools that prune, search or grow: one task, one teacher, one counter.

    python benchmarks/arena/run.py --root FOLDER --out FOLDER [--only WAYS] [--json]

FOLDER of --root holds torchvision's CIFAR-10. Every way and seed appends one line to
OUT/results.jsonl; one that has its line is not repeated, and one that another process is at work on
is left to it, so the command may be stopped, given again and run in two processes. Teachers are
kept in --cache. Peers run in environments of their own (README.md says how to make them): a way
whose environment is not given is left out, and told. --quick takes scikit-learn's digits and
minutes, to show that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from report import document, table
from task import TASKS
from ways import PEERS, WAYS, missing

HERE = Path(__file__).resolve().parent
CACHE = "teachers"


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    task = "digits" if given.quick else "cifar10"
    if task == "cifar10" and given.root is None:
        print("--root FOLDER: where torchvision's CIFAR-10 lies (or --quick)", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    pythons = {peer: path for peer in PEERS if (path := getattr(given, _option(peer))) is not None}
    failed = [
        f"{way}, seed {seed}"
        for seed in given.seeds
        for way in given.only
        if not _run(task, way, seed, given, pythons)
    ]
    lines = [line for line in read(given.out) if line["task"] == task]
    found = document(lines, task)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print(table(found["rows"], TASKS[task]))
        from measuring import print_claims  # report.py says where it lies

        print_claims(found["claims"])
    if given.picture is not None:
        from picture import fronts_figure

        from planter.plots.files import write_image

        write_image(fronts_figure(lines), given.picture)
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of torchvision's CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, help=f"folder of teachers; default: OUT/{CACHE}")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--quick", action="store_true", help="digits instead of CIFAR-10")
    parser.add_argument("--picture", type=Path, help="draw the fronts: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    for peer in PEERS:
        parser.add_argument(f"--python-{peer}", type=Path, help=f"interpreter that has {peer}")
    return parser


def _option(peer: str) -> str:
    return f"python_{peer.replace('-', '_')}"


def _run(
    task: str, name: str, seed: int, given: argparse.Namespace, pythons: dict[str, Path]
) -> bool:
    """Sees to a way and seed; False where it was begun and failed."""
    way, what = WAYS[name], f"{name}, seed {seed}"
    if (why := missing(way, pythons)) is not None:
        _tell(f"{what} left out: {why}")
        return True
    locks = given.out / "locks"
    locks.mkdir(exist_ok=True)
    lock = FileLock(locks / f"{task}-{name}-{seed}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _tell(f"{what} left to the process that is at work on it")
        return True
    try:
        if any((x["task"], x["way"], x["seed"]) == (task, name, seed) for x in read(given.out)):
            _tell(f"{what} has its line")
            return True
        _tell(f"{what} starts")
        python = Path(sys.executable) if way.peer is None else pythons[way.peer].absolute()
        command = [str(python), str(HERE / "work.py"), task, name, str(seed)]
        command += ["--cache", str(given.cache or given.out / CACHE), "--out", str(given.out)]
        command += ["--threads", str(given.threads)]
        if given.root is not None:
            command += ["--root", str(given.root)]
        done = subprocess.run(
            command, env=_environment(given.threads), stdout=sys.stderr, check=False
        )
        _tell(f"{what} {'done' if done.returncode == 0 else 'FAILED'}")
        return done.returncode == 0
    finally:
        lock.release()


def _environment(threads: int) -> dict[str, str]:
    """planter is imported from this checkout, also by an interpreter that has none installed."""
    path = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def read(out: Path) -> list[dict[str, Any]]:
    file = out / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
