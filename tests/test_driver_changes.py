"""What may change between two calls of a search, and what is refused."""

import json
import sys

import pytest
import torch
import yaml
from test_driver import SPACE, write_study

import planter
from planter.driver.backends import local
from planter.study.file import read_study
from planter.study.schema import Study, StudyError


@pytest.fixture
def study_file(tmp_path):
    return write_study(tmp_path)


def test_a_changed_study_is_refused_with_the_difference(study_file, tmp_path):
    run = tmp_path / "run"
    planter.search(study_file, out=run)
    with pytest.raises(StudyError, match=r"(?s)-  epochs: 2.*\+  epochs: 3.*--accept-changes"):
        planter.search(study_file, out=run, overrides=["recipe.epochs=3"])


def test_a_second_driver_on_a_run_is_turned_away(study_file, tmp_path, monkeypatch):
    run = tmp_path / "run"
    seen = []
    do = local.run_job

    def second(self, job):
        if not seen:
            with pytest.raises(StudyError, match="another search at work") as caught:
                planter.search(study_file, out=run)
            seen.append(caught)
        return do(self, job)

    monkeypatch.setattr(local, "run_job", second)
    planter.search(study_file, out=run)
    assert seen


def test_study_files_impossible_for_the_data_or_the_networks_are_refused_all_at_once(
    study_file, tmp_path
):
    (tmp_path / "space.py").write_text(
        SPACE.replace('"none", "cut1", "cut2"', '"cut9"').replace("0.0, 1.0", "0.5, 1.0")
    )
    with pytest.raises(StudyError) as caught:
        planter.search(
            study_file,
            out=tmp_path / "run",
            overrides=[
                "baselines=[{widths: 4}, {widths: 4}, {builder: vgg16}, {builder: nonet}]",
                "plant.layers=[conv1, conv7]",
            ],
        )
    found = {problem.place: str(problem) for problem in caught.value.problems}
    assert "b-width4" in found["baselines.1"]
    assert "too small for vgg16" in found["baselines.2"]
    assert "builders are convnet" in found["baselines.3"]
    assert "conv7" in found["plant.layers"]
    assert "'cut9' is not a cut; cuts are cut1 (before conv2)" in found["sample.space"]
    assert not (tmp_path / "run").exists()


def test_what_was_resolved_is_written_and_reads_back_as_the_same_study(study_file, tmp_path):
    run = tmp_path / "run"
    planter.search(study_file, out=run, overrides=["sample=null", "plant=null", "seed=3"])
    given = read_study(study_file, ["sample=null", "plant=null", "seed=3"])
    assert Study.model_validate(yaml.safe_load((run / "resolved.yaml").read_text())) == given
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0] or (
        environment["versions"]["torch"] == torch.__version__
    )
    assert environment["seed"] == 3
    assert environment["device"] == "cpu"
    assert (run / "study.yaml").read_text() == study_file.read_text()


def test_data_that_changed_since_a_run_was_begun_are_refused(study_file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "changing_data.py"
    module.write_text(
        "import torch\n"
        "LEVEL = 1\n"
        "def make():\n"
        "    images = torch.full((40, 1, 8, 8), LEVEL, dtype=torch.uint8)\n"
        "    images[::2] += 9\n"
        "    return {'train': (images, torch.arange(40) % 2)}\n"
    )
    lean = ["data={name: 'changing_data:make'}", "plant=null", "sample=null"]
    planter.search(study_file, out=tmp_path / "run", overrides=lean)
    planter.search(study_file, out=tmp_path / "run", overrides=lean)
    monkeypatch.setattr(sys.modules["changing_data"], "LEVEL", 2)
    for accept in (False, True):
        with pytest.raises(StudyError, match="fingerprint"):
            planter.search(study_file, out=tmp_path / "run", overrides=lean, accept_changes=accept)


def test_other_data_seeds_and_teachers_are_not_accepted_even_when_changes_are(study_file, tmp_path):
    lean = ["plant=null", "sample=null"]
    planter.search(study_file, out=tmp_path / "run", overrides=lean)
    for change in ("seed=9", "teacher.widths=5"):
        with pytest.raises(StudyError, match="another seed or another teacher"):
            planter.search(
                study_file, out=tmp_path / "run", overrides=[*lean, change], accept_changes=True
            )
    planter.search(
        study_file, out=tmp_path / "run", overrides=[*lean, "recipe.epochs=3"], accept_changes=True
    )
