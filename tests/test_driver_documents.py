"""Documents of a search are written when they are due, and never left behind."""

import json

import pytest
from test_driver import Interruption, write_study

import planter
from planter.driver.backends import local
from planter.driver.run_folder import documents
from planter.driver.run_folder.read import read_points

FEW = ["plant=null", "teacher=null", "baselines=[]", "objectives.macs_reference=1e6"]
SPACE = """
from planter import Architecture, Candidate

def space(trial):
    width = trial.suggest_int("width", 2, 4)
    trial.suggest_float("idle", 0, 1)  # equal networks are not trained twice
    names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    return Candidate(Architecture("convnet", dict.fromkeys(names, width)))
"""


@pytest.mark.parametrize("interrupted", [True, False])
def test_late_documents_are_written_at_the_end_and_on_an_interruption(
    tmp_path, monkeypatch, interrupted
):
    file, run, seen = write_study(tmp_path), tmp_path / "run", []
    (tmp_path / "space.py").write_text(SPACE)
    do = local.run_job

    def watched(self, job):
        document = run / "pareto.json"
        seen.append(len(json.loads(document.read_text())["points"]) if document.is_file() else 0)
        if interrupted and job.id == "s0003":
            raise Interruption
        return do(self, job)

    monkeypatch.setattr(local, "run_job", watched)
    monkeypatch.setattr(documents, "_SHARE_OF_WRITING", 1e-9)
    overrides = [*FEW, "sample.trials=4", "recipe.epochs=1"]
    if interrupted:
        with pytest.raises(Interruption):
            planter.search(file, out=run, overrides=overrides)
    else:
        planter.search(file, out=run, overrides=overrides)
    assert seen == [0, 1, 1, 1]  # the first was due, the others were not
    points = json.loads((run / "pareto.json").read_text())["points"]
    assert len(points) == (3 if interrupted else 4)
    assert {point["id"] for point in points} == {point.id for point in read_points(run)}
    kept = {path.name for path in (run / "models").iterdir()}
    assert kept == {point["trial"] for point in points if point["on_front"]}
