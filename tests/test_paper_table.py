"""A paper's table: its cells, their figures, and `planter table` on runs."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from scipy import stats

import planter
from planter.front.tabled import Cell, Value, student
from planter.study.file import read_study
from planter.study.table import Claim, PaperTable

SPACE = """
from planter import Architecture, Candidate

def space(trial, *, image, classes):
    width = trial.suggest_categorical("width", [2, 3, 4])
    cut = trial.suggest_categorical("cut", [False, True])
    pipelines = {"cut1": {}} if cut else {}
    options = {"image": image, "classes": classes}
    widths = {f"conv{i}": width for i in range(1, 6)} | {"fc1": 8}
    return Candidate(Architecture("convnet", widths, options, pipelines), recipe={"epochs": 2})
"""
TABLE: dict[str, Any] = {
    "title": "Accuracy on digits",
    "source": "nobody, Table 7",
    "columns": {"two": {"sample": {"width": 2}}, "four": {"sample": {"width": 4}}},
    "rows": {
        "plain": {"sample": {"cut": False}, "published": {"two": [50.0, 1.0], "four": 60.0}},
        "cut": {"sample": {"cut": True}, "pipeline": "cut1"},
        "never": {"published": {"two": 99.0}},
    },
    "claims": [
        {"row": "plain", "beside": "cut", "at_least": -100.0},
        {"row": "plain", "beside": "published", "column": "two", "at_least": 100.0},
        {"row": "never", "column": "two", "at_most": 1.0},
    ],
}


def table(**changes: Any) -> PaperTable:
    return PaperTable.model_validate({**TABLE, **changes})


def write(folder: Path, **changes: Any) -> Path:
    (folder / "widths.py").write_text(SPACE)
    study = {
        "name": "widths",
        "data": {"name": "digits", "validation": 0.2},
        "recipe": {"epochs": 1, "optimizer": "adam", "lr": 0.01},
        "objectives": {"macs_reference": 1e6},
        "sample": {"space": "widths.py:space", "trials": 4, "sampler": "random"},
        "resources": {"workers": 0},
        "table": TABLE,
        **changes,
    }
    file = folder / "widths.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of one study, of two seeds."""
    folder = tmp_path_factory.mktemp("tables")
    file = write(folder)
    for seed in (0, 1):
        given = [f"seed={seed}", f"name=w{seed}", "data.subset=300"]
        planter.search(file, out=folder / "runs" / f"w{seed}", overrides=given)
    return folder


def test_students_quantile_is_scipys():
    for freedom in (*range(1, 31), 100, 101):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    with pytest.raises(ValueError, match="two values or more"):
        student(0)


def test_the_interval_over_trainings_is_students():
    values = [81.4, 81.3, 82.9]
    cell = Cell("r", "c", "accuracy", [Value(v, "run", "p") for v in values], published=80.0)
    expected = stats.t.interval(0.95, 2, statistics.mean(values), stats.sem(values))
    assert cell.interval == pytest.approx(expected)
    assert cell.difference == pytest.approx(statistics.mean(values) - 80)
    assert cell.difference_interval == pytest.approx([end - 80 for end in expected])
    assert cell.std == pytest.approx(statistics.stdev(values))


@pytest.mark.parametrize("measure", ["accuracy", "error"])
def test_the_interval_of_one_training_is_wilsons(measure):
    cell = Cell("r", "c", measure, [Value(12.5, "run", "p", 400)])
    expected = stats.binomtest(50, 400).proportion_ci(0.95, method="wilson")
    assert cell.interval == pytest.approx((100 * expected.low, 100 * expected.high))
    assert cell.difference is None


def test_a_size_has_no_interval():
    cell = Cell("r", "c", "params", [Value(40_600.0, "a", "p"), Value(39_000.0, "b", "p")])
    assert cell.interval is None
    assert cell.mean == 39_800


def test_points_are_those_of_the_cells_each_once():
    rows = [{"cut": cut, "width": width} for cut in (False, True) for width in (2, 4)]
    assert table().points() == rows
    by_column = [{"cut": cut, "width": width} for width in (4, 2) for cut in (False, True)]
    assert table(first="four").points() == by_column
    again = table(
        columns={"two": {"sample": {"width": 2}}, "2": {"sample": {"width": 2}}},
        rows={"plain": {"sample": {"cut": False}}},
        claims=[],
    )
    assert again.points() == [{"cut": False, "width": 2}]


def test_a_column_says_more_than_a_row_and_both_more_than_the_table():
    made = table(
        sample={"width": 3, "cut": True},
        columns={"none": {}, "two": {"sample": {"width": 2, "cut": False}, "measure": "error"}},
        rows={"r": {"sample": {"width": 4}, "measure": "loss"}},
        claims=[],
    )
    assert made.cell("r", "none").sample == {"width": 4, "cut": True}
    assert made.cell("r", "two").sample == {"width": 2, "cut": False}
    assert (made.cell("r", "none").measure, made.cell("r", "two").measure) == ("loss", "error")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"first": "five"}, "first: 'five' is none of plain, cut, never, two, four"),
        ({"rows": {"r": {"published": {"six": 1.0}}}, "claims": []}, "'six' is none of two, four"),
        ({"claims": [{"row": "x", "at_least": 1.0}]}, "'x' is none of plain, cut, never"),
        ({"claims": [{"row": "cut", "beside": "y", "at_least": 1.0}]}, "'y' is none of"),
        ({"claims": [{"row": "cut"}]}, "at_least or at_most, one of them"),
        ({"claims": [{"row": "cut", "at_least": 1.0, "at_most": 2.0}]}, "one of them"),
        ({"rows": {}}, "at least 1 item"),
        ({"rows": {"r": {"published": {"two": [1.0, 2.0, 3.0]}}}, "claims": []}, "at most 2 items"),
        ({"columns": {"two": {"measure": "speed"}}, "claims": []}, "'accuracy', 'error'"),
    ],
)
def test_a_table_that_says_what_cannot_be_is_refused(changes, told):
    with pytest.raises(ValidationError, match=told):
        table(**changes)


def test_a_claim_holds_at_its_target():
    assert Claim(row="r", at_least=1.0).holds(1.0)
    assert not Claim(row="r", at_least=1.0).holds(0.999)
    assert Claim(row="r", at_most=-1.0).holds(-1.0)


def test_runs_are_printed_beside_the_published_figures(runs, command_in):
    code, shown, _ = command_in(runs)("table", "w0", "w1", "--json")
    assert code == 0
    found = json.loads(shown)
    cells = {(cell["row"], cell["column"]): cell for cell in found["cells"]}
    own = []
    for run in ("w0", "w1"):
        front = json.loads((runs / "runs" / run / "pareto.json").read_text())
        # Points are trained in the table's order: s0000 is plain of width 2.
        (row,) = [row for row in front["points"] if row["id"] == "s0000/base"]
        own.append(100 * row["test_accuracy"])
        assert all(row["test_accuracy"] is not None for row in front["points"])
    cell = cells["plain", "two"]
    assert cell["mean"] == pytest.approx(statistics.mean(own))
    assert cell["std"] == pytest.approx(statistics.stdev(own))
    assert cell["difference"] == pytest.approx(statistics.mean(own) - 50)
    assert [one["run"] for one in cell["values"]] == ["w0", "w1"]
    assert [one["point"] for one in cells["cut", "four"]["values"]] == ["s0003/cut1"] * 2
    assert cells["never", "two"]["mean"] is None
    assert cells["never", "two"]["lacks"] == "no such network is trained"
    claims = {claim["name"]: claim for claim in found["claims"]}
    assert [*claims] == [
        "plain - cut, two",
        "plain - cut, four",
        "plain - published, two",
        "never, two",
    ]
    assert claims["plain - cut, two"]["holds"]
    assert claims["plain - published, two"]["holds"] is False
    assert claims["plain - published, two"]["value"] == pytest.approx(cell["difference"], abs=1e-4)
    assert claims["never, two"] == {
        "name": "never, two",
        "value": None,
        "target": "<= 1.0",
        "holds": False,
        "seeds": 0,
    }


def test_a_table_is_written_with_its_claims(runs, command_in):
    call = command_in(runs)
    code, shown, told = call("table", "w0", "w1", "--out", "made", "--csv", "cells.csv")
    assert code == 0, told
    assert "nobody, Table 7" in shown
    assert "1 of 4 claims are not measured" in shown
    page = (runs / "made" / "table.md").read_text()
    assert "/ 50.00 ± 1.00<br>" in page
    assert "planter table w0 w1 --out made" in page
    assert "seeds**: 0, 1" in page
    written = json.loads((runs / "made" / "claims.json").read_text())
    assert [sorted(one) for one in written["claims"]] == [
        ["holds", "name", "seeds", "target", "value"]
    ] * 4
    with (runs / "cells.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 6
    assert rows[0]["published"] == "50.0"
    assert (runs / "made" / "table.csv").read_text() == (runs / "cells.csv").read_text()


def test_repeated_trainings_count_as_well(runs, command_in):
    """As `planter train w0 --like s0000` writes them."""
    final = runs / "runs" / "w0" / "final"
    final.mkdir()
    row = {"id": "s0000/base", "kind": "repeated", "seed": 0, "test_accuracy": 0.25}
    (final / "final.json").write_text(json.dumps({"rows": [row, {**row, "kind": "continued"}]}))
    _, shown, _ = command_in(runs)("table", "w0", "--json")
    values = json.loads(shown)["cells"][0]["values"]
    assert [one["point"] for one in values] == ["s0000/base", "s0000/base repeated 0"]
    assert values[1]["value"] == 25
    (final / "final.json").unlink()
    final.rmdir()


def test_runs_that_are_of_no_table_or_of_others_are_refused(runs, place, command_in):
    call = command_in(runs)
    code, _, told = call("table", str(place / "runs" / "small"))
    assert code == 2
    assert "its study has no key table" in told
    code, _, told = call("table", "nothing")
    assert code == 2
    assert "no run 'nothing'" in told
    resolved = runs / "runs" / "w1" / "resolved.yaml"
    before = resolved.read_text()
    resolved.write_text(before.replace("nobody, Table 7", "nobody, Table 8"))
    _, _, told = call("table", "w0", "w1")
    assert "have different tables" in told
    resolved.write_text(before)


def test_a_study_without_a_table_says_nothing_of_one(tmp_path):
    (tmp_path / "s.yaml").write_text("name: x\nbaselines: [{builder: convnet}]\n")
    written = read_study(tmp_path / "s.yaml").model_dump()
    assert "table" not in written
    assert [*written["budget"]] == ["hours", "train_macs"]


def test_too_few_trials_for_a_table_are_told(tmp_path, command_in):
    file = write(tmp_path)
    code, _, told = command_in(tmp_path)("check", str(file), "--set", "sample.trials=3")
    assert code == 0
    assert "names 4 points to train" in told
