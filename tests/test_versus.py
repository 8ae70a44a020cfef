"""`planter compare`: which networks of two runs are compared, and the intervals, by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import POINTS, made_run
from rich.console import Console

from planter.cli import comparing
from planter.driver.run_folder.compare import versus
from planter.front.certainty import unpaired, wilson
from planter.front.points import Point
from planter.training.answers import TEST_FILE, VALIDATION_FILE, Answers

OTHER = [
    POINTS[0],
    Point("s0001", "base", "sample", 0.5, 0.7, 60, 30, 20, 3.0, {"builder": "toy"}),
    Point("s0002", "base", "sample", 1.0, 0.1, 3000, 30, 20, 3.0, {"builder": "cnn"}),
]


def told(run: Path, images: str | None) -> Path:
    environment = {"versions": {}, **({} if images is None else {"data": images})}
    (run / "environment.json").write_text(json.dumps(environment))
    return run


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    first = told(made_run(tmp_path / "runs" / "one", name="one"), "aaaa")
    return first, told(made_run(tmp_path / "runs" / "two", OTHER, name="two"), "aaaa")


def answer(run: Path, point: str, right: list[bool], file: str = VALIDATION_FILE) -> None:
    folder = run / "models" / point
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(len(right)) % 3
    predicted = np.where(right, labels, (labels + 1) % 3)
    losses = np.full(len(right), 0.5)
    Answers(labels, predicted, np.array(right), losses, 3, 0.5).save(folder / file)


def test_networks_are_compared_at_equal_cost_the_best_and_the_same(both) -> None:
    found = versus(*both)
    rows = [(r.kind, r.most, r.first, r.second, r.values) for r in found.rows if r.images != "test"]
    assert [row for row in rows if row[0] != "same network"] == [
        ("equal cost", 60, "p00-start/base", "s0001/base", (0.25, 0.5)),
        ("equal cost", 100, "s0001/cut2", "s0001/base", (0.5, 0.5)),
        ("equal cost", 1000, "p01-conv1/base", "s0001/base", (0.75, 0.5)),
        ("equal cost", 3000, "s0002/base", "s0002/base", (0.875, 1.0)),
        ("best", None, "s0002/base", "s0002/base", (0.875, 1.0)),
    ]
    same = [row for row in rows if row[0] == "same network"]
    assert same == [("same network", None, "teacher/base", "teacher/base", (1.0, 1.0))]
    for row in found.rows:
        assert row.difference == row.values[0] - row.values[1]
    assert found.same_images
    assert found.runs == ("one", "two")


def test_hypervolumes_are_over_one_reference_point(both) -> None:
    found = versus(*both)
    reference, most = 0.1, math.log10(9000)
    # Of the second: two points, by hand.
    by_hand = (0.5 - reference) * (most - math.log10(60)) + 0.5 * (most - math.log10(3000))
    assert found.hypervolumes[1] == pytest.approx(by_hand)
    assert found.reference_point == [0.1, 9000]


def test_answers_on_the_same_images_are_compared_one_by_one(both) -> None:
    first, second = both
    answer(first, "s0002/base", [True] * 7 + [False])
    answer(second, "s0002/base", [True] * 8)
    answer(first, "s0002/base", [True] * 9, TEST_FILE)
    answer(second, "s0002/base", [True] * 8, TEST_FILE)  # others, whatever the fingerprint says
    (row,) = [row for row in versus(first, second).rows if row.kind == "best"][:1]
    assert row.paired
    # Bonett and Price: one image that the second alone has right, of 8.
    more, less, n = 1 / 10, 2 / 10, 8
    reach = 1.959963985 * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    assert row.interval == pytest.approx((more - less - reach, more - less + reach))
    assert not row.sure
    told(second, "bbbb")
    assert not [row for row in versus(first, second).rows if row.paired]


def test_unpaired_intervals_are_newcombes() -> None:
    # His example (a): 56/70 against 48/80, 0.0524 to 0.3339 by method 10.
    shares = [(56 / 70, wilson(56 / 70, 70)), (48 / 80, wilson(48 / 80, 80))]
    assert unpaired(*shares) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = unpaired(*reversed(shares))
    assert (low, high) == pytest.approx((-0.3339, -0.0524), abs=5e-5)


def test_it_is_printed_as_json_and_as_a_table(
    both, command_in: Callable[[Path], Any], tmp_path: Path
) -> None:
    call = command_in(tmp_path)
    code, out, err = call("compare", "one", "two", "--csv", "apart.csv")
    assert code == 0, err
    assert "best" in out
    assert "s0002/base 87.50 %" in out
    assert "difference: one minus two" in out
    code, out, _ = call("compare", "one", "two", "--json")
    said = json.loads(out)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "apart.csv").read_text())))
    assert len(rows) == len(said["rows"])
    for row, other in zip(rows, said["rows"], strict=True):
        assert (row["first"], row["second"]) == (other["first"], other["second"])
        assert float(row["difference"]) == pytest.approx(other["difference"])
    told(both[1], "bbbb")
    _, _, err = call("compare", "one", "two")
    assert "other images or labels" in err


@pytest.mark.parametrize("width", [60, 80, 120])
def test_ids_and_differences_are_whole_at_every_width(
    both, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(comparing, "out", console)
    monkeypatch.setattr(comparing, "err", console)
    comparing._print(versus(*both))
    text = file.getvalue()
    lines = text.splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith("accuracy on validation"))
    assert max(map(len, lines[begin + 1 : -2])) <= width
    for name in ("p00-start/base", "s0001/base", "teacher/base", "+25.00"):
        assert name in text


def test_what_cannot_be_compared_is_told(
    both, command_in: Callable[[Path], Any], tmp_path: Path
) -> None:
    call = command_in(tmp_path)
    code, _, err = call("compare", "one", "three")
    assert code == 2
    assert "three" in err
    changed = json.loads((both[1] / "pareto.json").read_text())
    changed["objectives"] = ["accuracy", "params"]
    (both[1] / "pareto.json").write_text(json.dumps(changed))
    code, _, err = call("compare", "one", "two")
    assert code == 2
    assert "different objectives (accuracy, macs and accuracy, params)" in err
    empty = made_run(tmp_path / "runs" / "empty", POINTS[1:2], name="empty")
    code, out, _ = call("compare", str(empty), "one")
    assert code == 0
    assert "same network" in out
