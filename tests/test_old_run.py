"""A run that an older planter (0a18d1d) began and that was interrupted goes on in this one."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import planter
from planter.cli import app

ARCHIVE = Path(__file__).parent / "data" / "begun_before_the_house.tar.xz"
MORE = ["plant.rounds=2"]
"""One round was asked for; a trial was asked and not trained when it was interrupted."""
TOLD = ("accuracy", "macs", "params", "method", "train_macs", "within_bounds")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "before"


@pytest.fixture(scope="module")
def gone_on(run: Path) -> dict[str, Any]:
    """What the run said when it was interrupted, what it says now, what was trained now."""
    before = json.loads((run / "pareto.json").read_text())
    planting = (run / "planting.csv").read_text()
    told: list[tuple[str, str]] = []
    after = planter.search(
        run / "study.yaml",
        out=run,
        overrides=MORE,
        observe=lambda now: told.append((now.kind, now.event)),
    )
    started = {
        trial
        for kind, event in told
        if kind == "start"
        for trial in event.removesuffix(" starts").split(", ")
    }
    return {"before": before, "after": after, "started": started, "planting": planting}


def rows(front: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["id"]: {key: row[key] for key in TOLD} for row in front["points"]}


def test_what_was_trained_stays_and_only_the_rest_is_trained(gone_on: dict[str, Any]) -> None:
    before, after = rows(gone_on["before"]), rows(gone_on["after"])
    assert before
    assert {name: after[name] for name in before} == before
    new = {name.partition("/")[0] for name in set(after) - set(before)}
    assert new == gone_on["started"]
    assert "s0002" in new
    assert {"p02-conv1", "p02-conv2"} <= new
    assert gone_on["after"]["reference_point"] == gone_on["before"]["reference_point"]
    assert gone_on["after"]["outcome"]["exit_code"] == 0


def test_the_trial_that_was_asked_for_is_the_one_that_a_new_run_would_train(
    run: Path, gone_on: dict[str, Any], tmp_path: Path
) -> None:
    """Ids, draws and networks depend on the study alone; how well they do on the processor too."""
    whole = planter.search(run / "study.yaml", out=tmp_path / "whole", overrides=MORE)
    for front in (whole, gone_on["after"]):
        front["networks"] = {
            (row["id"], row["macs"], row["params"])
            for row in front["points"]
            if not row["id"].startswith("p02")  # what round 1 accepts depends on losses
        }
    assert gone_on["after"]["networks"] == whole["networks"]


def test_its_documents_and_networks_are_read(run: Path, gone_on: dict[str, Any]) -> None:
    old = list(csv.DictReader(gone_on["planting"].splitlines()))
    new = list(csv.DictReader((run / "planting.csv").read_text().splitlines()))
    assert new[: len(old)] == old
    assert len(new) > len(old)
    data = planter.load_data(run)
    for row in gone_on["after"]["points"]:
        if row["model"] is None:
            continue
        network = planter.load(run / row["model"])
        found = planter.evaluate(network, data.validation).accuracy
        # Another processor may round a logit otherwise: one image of twenty at most.
        assert abs(found - row["accuracy"]) <= 1 / len(data.validation) + 1e-9
    runner = CliRunner()
    for call in (["show", str(run)], ["pareto", str(run), "--json"], ["report", str(run)]):
        answer = runner.invoke(app, call)
        assert answer.exit_code == 0, answer.output
