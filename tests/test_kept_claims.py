"""claims.json of studies/results: one in each folder, as its command makes it of the figures."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "studies" / "results"
FOLDERS = sorted(folder for folder in RESULTS.iterdir() if folder.is_dir())
PROGRAM = """
import json, sys
sys.path.insert(0, "benchmarks")
import kept_claims
print(json.dumps({name: kept_claims.content(name) for name in kept_claims.FOLDERS}))
"""


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """What the command writes, by folder."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=TOP, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_of_results_has_claims(folder: Path, made: dict[str, str]) -> None:
    written = (folder / "claims.json").read_text()
    for one in json.loads(written)["claims"]:
        assert {"name", "value", "target", "holds"} <= set(one)
        sign, target = one["target"].split()
        if one["value"] is None:
            assert not one["holds"]
            continue
        beyond = one["value"] - float(target)
        # A value is rounded after it is judged.
        if abs(beyond) > 0.001:
            assert one["holds"] == (beyond > 0 if sign == ">=" else beyond < 0), one
    if not (folder / "table.csv").is_file():  # else planter table wrote it
        assert written == made[folder.name]


def test_a_difference_is_that_of_the_kept_means(made: dict[str, str]) -> None:
    text = (RESULTS / "kflo_cifar10" / "results.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    means = {
        form: statistics.mean(row["test_accuracy"] for row in rows if row["method"] == form)
        for form in ("plain", "kflo:2x4")
    }
    claims = {one["name"]: one for one in json.loads(made["kflo_cifar10"])["claims"]}
    found = claims["kflo:2x4 - plain, points, mean of three seeds"]
    assert found["value"] == pytest.approx(means["kflo:2x4"] - means["plain"], abs=1e-3)
    assert found["target"] == ">= 1.15"  # 87.41 - 86.26, KFLO's Table 1
