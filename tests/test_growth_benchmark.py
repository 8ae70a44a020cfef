"""benchmarks/growth.py, shortened: what it prints is what it claims to compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import planter

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_growth_is_compared_at_equal_training_multiply_adds(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "growth.py"), "--quick", "--json"]
    command += ["--rules", "even", "gradient", "--out", str(file)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"claims", "rows", "recipe", "machine", "versions"} <= set(found)
    assert [row["rule"] for row in found["rows"]] == ["even", "gradient"]
    images = len(planter.load_data("digits", validation=0.2).train)
    for row in found["rows"]:
        grown, scratch = row["grown"], row["scratch"]
        assert scratch["train_macs"] == 3 * row["macs"] * images * scratch["epochs"]
        # Half an epoch, at most: trainings are of whole epochs.
        off = abs(grown["train_macs"] - scratch["train_macs"])
        assert off <= 0.5 * 3 * row["macs"] * images
        if row["rule"] == "even":
            assert grown["train_macs"] < 3 * row["macs"] * images * grown["epochs"]
        for way in (grown, scratch):
            assert 0.1 < way["test"] <= 1
    means = [claim for claim in found["claims"] if "grown - from nothing" in claim["name"]]
    for claim, row in zip(means, found["rows"], strict=True):
        points = 100 * (row["grown"]["test"] - row["scratch"]["test"])
        assert claim["value"] == pytest.approx(points, abs=1e-3)
    before = file.read_bytes()
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == found
    assert file.read_bytes() == before
