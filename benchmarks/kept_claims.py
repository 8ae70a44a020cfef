"""claims.json of each folder of studies/results, from the figures that the folder keeps.

    python benchmarks/kept_claims.py [FOLDER...] [--json]

Nothing is trained and no image is read: what a benchmark or a search left there is read again.
Folders that `planter table --out` wrote have their claims from that command and are left alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS.parent / "studies" / "results"
sys.path += [str(BENCHMARKS / "arena"), str(BENCHMARKS)]

from measuring import claim, print_claims  # noqa: E402 - it lies there

Claims = list[dict[str, Any]]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


def arena(folder: Path) -> Claims:
    """Means of three seeds; ways of fewer have none."""
    from report import claims_of
    from task import TASKS

    return claims_of(lines(folder / "results.jsonl"), TASKS["cifar10"])


def growth(folder: Path) -> Claims:
    from growth import claims_of

    return [
        {**one, "name": f"{data}: {one['name']}"}
        for data in ("digits", "cifar10")
        for one in claims_of(lines(folder / f"{data}.jsonl"))
    ]


def scoring(folder: Path) -> Claims:
    from scoring import claims_of

    return claims_of(lines(folder / "results.jsonl"))


def early_stopping(folder: Path) -> Claims:
    found: Claims = json.loads((folder / "results.json").read_text(encoding="utf-8"))["claims"]
    return found


def kflo_cifar10(folder: Path) -> Claims:
    """The paper's gains of 150 epochs, asked of 15."""
    rows = lines(folder / "results.jsonl")

    def apart(one: str, other: str) -> float:
        return _apart(rows, "method", one, other, lambda row: row["test_accuracy"])

    published = {"do-conv": 0.59, "acnet": 0.57, "kflo:2x4": 1.15}
    found = [
        claim(f"{form} - plain, points, mean of three seeds", apart(form, "plain"), ">=", gain)
        for form, gain in published.items()
    ]
    for other in ("do-conv", "acnet", "kflo:2x1"):
        value = apart("kflo:2x4", other)
        found.append(claim(f"kflo:2x4 - {other}, points, mean of three seeds", value, ">=", 0.0))
    return found


def pipelines_cifar10(folder: Path) -> Claims:
    rows = lines(folder / "results.jsonl")

    def apart(one: str, other: str, pipeline: str) -> float:
        return _apart(rows, "run", one, other, lambda row: row["test_accuracy"][pipeline])

    asked = [
        ("vgg16/joint", "vgg16/base", "base", -0.3),
        ("vgg16/joint", "vgg16/cut2", "cut2", 0.0),
        ("vgg16/joint", "vgg16/cut7", "cut7", 0.0),
        ("resnet14/DS", "resnet14/plain", "base", 0.0),
        ("resnet14/DKS", "resnet14/plain", "base", 1.0),
        ("toy/joint", "toy/base", "base", 0.0),
    ]
    return [
        claim(f"{one} - {other}, {way}, points, mean of three seeds", apart(one, other, way),
              ">=", least)
        for one, other, way, least in asked
    ]  # fmt: skip


def planting_cifar10(folder: Path) -> Claims:
    """What the slides claim, of one seed."""
    uniform = {row["id"]: row for row in table(folder / "uniform.csv")}
    (planted,) = [row for row in table(folder / "pareto.csv") if row["trial"].endswith("-final")]
    reached = 100 * float(planted["test_accuracy"])
    found = [
        claim("parameters of the planted network", int(planted["params"]), "<=", 41000),
        claim("teacher, test accuracy, %", _test(uniform["teacher/base"]), ">=", 88.0),
    ]
    for width in (16, 32):
        ahead = reached - _test(uniform[f"b-width{width}/base"])
        found.append(claim(f"planted - uniform of width {width}, test points", ahead, ">=", 0.0))
    return found


def quickstart(folder: Path) -> Claims:
    """The most accurate network of the front (by validation) beside the plain ones, of one run."""
    rows = table(folder / "pareto.csv")
    front = [row for row in rows if row["on_front"] == "True"]
    plain = [row for row in rows if row["method"] == "baseline"]
    best, other = (max(some, key=lambda row: float(row["accuracy"])) for some in (front, plain))
    smaller = int(best["macs"]) / int(other["macs"])
    return [
        claim("front's best - best plain network, test points", _test(best) - _test(other), ">=",
              0.0),
        claim("multiply-adds of the front's best over those of the plain one", smaller, "<=", 1.0),
    ]  # fmt: skip


FOLDERS: dict[str, Callable[[Path], Claims]] = {
    "arena": arena,
    "early_stopping": early_stopping,
    "growth": growth,
    "kflo_cifar10": kflo_cifar10,
    "pipelines_cifar10": pipelines_cifar10,
    "planting_cifar10": planting_cifar10,
    "quickstart": quickstart,
    "quickstart-cifar10": quickstart,
    "scoring": scoring,
}


def _apart(
    rows: Sequence[dict[str, Any]],
    key: str,
    one: str,
    other: str,
    of: Callable[[dict[str, Any]], float],
) -> float:
    """The mean difference over the seeds that both have."""
    first, second = ({row["seed"]: of(row) for row in rows if row[key] == n} for n in (one, other))
    return fmean(first[seed] - second[seed] for seed in sorted(set(first) & set(second)))


def _test(row: dict[str, str]) -> float:
    return 100 * float(row["test_accuracy"])


def content(name: str) -> str:
    """What claims.json of a folder says."""
    made = {
        "claims": FOLDERS[name](RESULTS / name),
        "command": f"python benchmarks/kept_claims.py {name}",
    }
    return json.dumps(made, indent=2) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", help=f"some of {', '.join(FOLDERS)}; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    if unknown := [name for name in given.folders if name not in FOLDERS]:
        parser.error(f"{unknown[0]} is none of {', '.join(FOLDERS)}")
    written = {name: content(name) for name in given.folders or FOLDERS}
    for name, text in written.items():
        (RESULTS / name / "claims.json").write_text(text, encoding="utf-8")
    if given.json:
        print(json.dumps({name: json.loads(text) for name, text in written.items()}, indent=2))
        return
    for name, text in written.items():
        print(f"{name}:")
        print_claims(json.loads(text)["claims"])


if __name__ == "__main__":
    main()
