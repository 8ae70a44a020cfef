"""Every shipped study is sound, and runs when it is shortened; a table's first part is filled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import planter
from planter.driver.checking.check import prepare
from planter.driver.run_folder.tabled import tabled
from planter.study.file import read_study, shipped_folder

STUDIES = shipped_folder("studies")
SHIPPED = sorted(STUDIES.glob("*.yaml")) + sorted(STUDIES.glob("tables/*.yaml"))
# Large networks, or the like of another one, are run by make test-all.
LONG = {
    "beyond", "beyond_trunk", "channel_planting_cifar100", "channel_planting_stl10", "cnsn",
    "dks_1", "dks_strategies", "hu_resnet18", "kflo_2", "kflo_4", "kflo_transfer",
}  # fmt: skip
TABLES = [file for file in SHIPPED if "table:" in file.read_text()]


def on_images_here(file: Path) -> list[str]:
    """Overrides of a study whose images are not here: others of the same shape."""
    name = read_study(file).data.name
    if name == "digits":
        return []
    kind = "large" if name == "stl10" else "small"
    return [f"data.name=table_images:{kind}", "data.subset=1000", "data.validation=0.5"]


def each() -> list[Any]:
    return [
        pytest.param(file, id=file.stem, marks=[pytest.mark.long] if file.stem in LONG else [])
        for file in SHIPPED
    ]


@pytest.mark.parametrize("file", each())
def test_a_shipped_study_is_sound(file: Path) -> None:
    study = read_study(file, on_images_here(file))
    prepared = prepare(study)
    if study.sample is not None and study.table is not None:
        assert len(prepared.enqueued) == len(study.table.points()) == study.sample.trials
    assert not [told for told in prepared.warnings if "not be trained" in told]


@pytest.mark.parametrize("file", each())
def test_a_shipped_study_runs_when_it_is_shortened(file: Path, tmp_path: Path) -> None:
    overrides = ["budget.scale=0.02", "resources.workers=0", *on_images_here(file)]
    found = planter.search(file, out=tmp_path / "run", overrides=overrides)
    assert found["failed"] == []
    assert any("budget.scale 0.02" in note["text"] for note in found["notes"])
    if file not in TABLES:
        return
    table = tabled([tmp_path / "run"])
    assert table.shortened is not None
    if any("data.name" in column.runs for column in table.table.columns.values()):
        return  # these images are of no column
    parts = table.table.parts()
    trained = [cell for cell in table.cells.values() if cell.values]
    # Of a space, the first row or column; of planting and the like, all that is no other run.
    least = len(parts[0]) if parts else 4
    assert len(trained) >= least
    for cell in trained:
        assert cell.lacks is None
        if cell.measure == "accuracy":
            assert all(0 <= one.value <= 100 and one.images == 10 for one in cell.values)


def test_claims_of_published_tables_name_a_source() -> None:
    for file in TABLES:
        table = read_study(file).table
        assert table is not None
        assert table.claims, file.stem
        assert json.dumps(table.model_dump())
