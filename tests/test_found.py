"""What a search returns and `open_run` opens, against the run's files read by hand."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_driver import write_study

import planter
from planter.data import load_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> planter.Run:
    folder = tmp_path_factory.mktemp("found")
    more = ["recipe.epochs=8", "teacher.recipe.epochs=8"]
    return planter.search(write_study(folder), out=folder / "run", overrides=more)


@pytest.fixture(scope="module")
def said(run: planter.Run) -> dict:
    return json.loads((run.path / "pareto.json").read_text())


def test_it_is_what_pareto_json_says(run, said):
    assert run == said
    assert planter.open_run(run.path) == said
    assert run.points == said["points"]
    assert json.loads(json.dumps(run)) == said
    assert f"{len(said['points'])} points" in repr(run)


def test_the_front_and_its_best(run, said):
    front = sorted((p for p in said["points"] if p["on_front"]), key=lambda p: p["macs"])
    assert run.front == front
    assert len(front) > 1
    assert run.best() == max(front, key=lambda p: p["accuracy"])
    for row in front:
        assert run.best(max_macs=row["macs"]) == row
        assert run.best(min_accuracy=row["accuracy"]) == row
    assert run.knee() in front
    assert run.best(max_macs=f"{front[-1]['macs'] / 1000}k") == run.best()
    for wrong in (math.nan, -1, "10 apples"):
        with pytest.raises(ValueError, match=f"macs {wrong!r}: expected"):
            run.best(max_macs=wrong)
    with pytest.raises(ValueError, match=f"the nearest is {front[0]['id']}"):
        run.best(max_macs=front[0]["macs"] - 1)


def test_a_point_is_found_by_its_id_or_its_trial(run, said):
    by_trial: dict[str, list[dict]] = {}
    for row in said["points"]:
        assert run.point(row["id"]) == run.point(row) == row
        by_trial.setdefault(row["trial"], []).append(row)
    assert {len(rows) for rows in by_trial.values()} == {1, 2}
    for trial, rows in by_trial.items():
        if len(rows) == 1:
            assert run.point(trial) == rows[0]
        else:
            with pytest.raises(ValueError, match=f"expected one of {rows[0]['id']}, "):
                run.point(trial)
    with pytest.raises(KeyError, match="has no point 's9999'"):
        run.point("s9999")


def test_networks_and_images(run, said):
    data = run.data()
    again = load_data(run.path)
    assert torch.equal(data.validation.labels, again.validation.labels)
    for row in said["points"]:
        if row["model"] is None:
            with pytest.raises(ValueError, match=r"not kept.*keep: all"):
                run.load(row["id"])
            continue
        score = planter.evaluate(run.load(row["id"]), data.validation)
        assert score.accuracy == pytest.approx(row["accuracy"])


def test_a_frame_of_the_points(run, said):
    pandas = pytest.importorskip("pandas")
    frame = run.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == [p["id"] for p in said["points"]]
    assert list(frame["macs"]) == [p["macs"] for p in said["points"]]


def test_without_pandas_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        run.to_frame()


def test_the_figure_shows_the_front(run):
    lines = [trace for trace in run.plot().data if trace.name == "front"]
    drawn = {x for line in lines for x in line.x if x is not None}
    assert {row["macs"] for row in run.front} <= drawn


def test_ancestors(run, said):
    for row in said["points"]:
        steps = run.lineage(row["id"])
        assert steps[-1].id == row["id"]
        assert [step.id for step in steps[:-1]] == ([row["parent"]] if row.get("parent") else [])


def test_what_failed_is_told_by_trial(tmp_path):
    study = {
        "name": "fails",
        "data": {"name": "digits", "subset": 100},
        "recipe": {"epochs": 1, "batch": 50},
        "baselines": [
            {"builder": "convnet", "widths": 4},
            {"builder": "convnet", "widths": 5, "recipe": {"epochs": 1, "lr": 1e30}},
        ],
        "resources": {"workers": 0},
    }
    found = planter.search(study, out=tmp_path / "run")
    assert list(found.failed) == [row["trial"] for row in found["failed"]]
    assert ["loss" in why for why in found.failed.values()] == [True]
    assert found.front == []
    with pytest.raises(ValueError, match="front of fails is empty"):
        found.best()


def test_a_run_by_its_name_or_none_at_all(run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    shutil.copytree(run.path, tmp_path / "runs" / "small")
    monkeypatch.chdir(tmp_path)
    assert planter.open_run("small").path == tmp_path / "runs" / "small"
    assert planter.open_run(Path("runs/small")) == run
    with pytest.raises(ValueError, match=r"no run 'other'.*runs here are small"):
        planter.open_run("other")


def test_a_study_built_in_python_is_the_one_of_the_file(tmp_path):
    file = yaml.safe_load(write_study(tmp_path).read_text())
    parts = {
        "data": planter.DataSettings,
        "teacher": planter.Teacher,
        "recipe": planter.Recipe,
        "objectives": planter.Objectives,
        "plant": planter.Plant,
        "sample": planter.Sample,
        "evolve": planter.Evolve,
        "resources": planter.Resources,
        "budget": planter.Budget,
    }
    made = {key: parts[key](**value) if key in parts else value for key, value in file.items()}
    assert sum(key in parts for key in file) >= 4
    made["baselines"] = [planter.Baseline(**one) for one in file.get("baselines", [])]
    assert planter.Study(**made) == planter.Study(**file)
