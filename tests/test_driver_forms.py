"""Training forms in the driver."""

import contextlib
import json
import shutil
import sqlite3

import pytest
from test_driver import SPACE, rows, write_study

import planter
from planter.arch import Architecture
from planter.cli.runs import point_of
from planter.costs.macs import training_cost
from planter.driver.checking.check import prepare
from planter.driver.run_folder.read import read_points
from planter.kernels.forms import forms_of
from planter.study.file import read_study
from planter.study.schema import StudyError


@pytest.fixture
def study_file(tmp_path):
    return write_study(tmp_path)


FORMS = """
name: forms
data: {name: digits, subset: 160, validation: 0.25, resize: 16}
recipe: {epochs: 2, batch: 30, optimizer: sgd, lr: 0.02, schedule: constant}
objectives: {macs_reference: 1.0e6}
sample: {space: "SPACE:space", trials: 4, sampler: random}
keep: all
resources: {workers: 0}
"""
FORMS_SPACE = """
from planter import Architecture, Candidate, form_of, KernelFilter

FORMS = [
    form_of("acnet"),
    {"conv1": form_of("kflo:2x2"), "head": form_of("kflo:2x3"), "conv2": None},
    KernelFilter(2, 0.5, low_rank=True),
    None,
]

def space(trial):
    width = trial.suggest_categorical("width", [4])
    widths = {"conv1": width, "conv2": width, "conv3": width, "fc1": 6}
    recipe = {"ema": 0.5} if trial.number == 1 else {}
    kernels = FORMS[trial.number % 4]
    return Candidate(Architecture("cifar_quick", widths), kernels=kernels, recipe=recipe)
"""
# Inputs, filters and pixels of each convolution's output, 16 x 16 images: maps of 16, 7, 3 pixels.
FORMS_CONVS = [(1, 4, 256), (4, 4, 49), (4, 4, 9)]


@pytest.fixture(scope="module")
def forms_run(tmp_path_factory):
    """A run with a trial in ACNet's block, one in KFLO by part, one of low rank and a plain one."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "space.py").write_text(FORMS_SPACE)
    file = folder / "forms.yaml"
    file.write_text(FORMS.replace("SPACE", str(folder / "space.py")))
    planter.search(file, out=folder / "run")
    return folder / "run"


def forms_points(run):
    front = json.loads((run / "pareto.json").read_text())
    return {point["trial"]: point for point in front["points"]}


def test_networks_trained_in_any_form_are_saved_plain_and_score_as_reported(forms_run):
    data = planter.load_data(forms_run)
    points = forms_points(forms_run)
    assert set(points) == {"s0000", "s0001", "s0002", "s0003"}
    for point in points.values():
        network = planter.load(forms_run / point["model"])
        assert planter.evaluate(network, data.validation).accuracy == point["accuracy"]
        plain = planter.load(forms_run / points["s0003"]["model"])
        assert [type(m) for m in network.modules()] == [type(m) for m in plain.modules()]
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in plain.state_dict().items()}
        assert (point["macs"], point["params"]) == (points["s0003"]["macs"], sum(
            p.numel() for p in plain.parameters()
        ))  # fmt: skip


def test_the_form_a_network_trained_in_is_written_where_it_is_kept(forms_run):
    expected = {
        "s0000": "acnet",
        "s0001": {"conv1": "kflo:2x2", "head": "kflo:2x3", "conv2": "plain"},
        "s0003": "plain",
    }
    points = forms_points(forms_run)
    book = {row.user_attrs["trial"]: row.user_attrs for row in rows(forms_run, "forms")}
    read = {point.trial: point for point in read_points(forms_run)}
    for trial, kernels in expected.items():
        saved = json.loads((forms_run / points[trial]["model"] / "arch.json").read_text())
        assert saved["kernels"] == book[trial]["kernels"] == read[trial].kernels == kernels


def test_train_macs_count_what_the_training_form_adds(forms_run):
    points, images = forms_points(forms_run), len(planter.load_data(forms_run).train)
    assert images == 120
    steps = 2 * 120 // 30
    plain = 3 * points["s0003"]["macs"] * images * 2
    assert points["s0003"]["train_macs"] == plain
    # Two bars of five weights a block, forward and twice backward; images need no gradient.
    bars = [2 * 5 * a * b * pixels for a, b, pixels in FORMS_CONVS]
    assert points["s0000"]["train_macs"] - plain == (3 * sum(bars) - bars[0]) * images * 2
    # W_2 W_1 of conv1 (25 weights a filter) and of the two linear layers, once a step.
    products = 4 * 8 * 25 + 6 * 18 * 4 + 10 * 30 * 6
    assert points["s0001"]["train_macs"] - plain == 3 * products * steps
    products = sum(4 * 2 * 25 * a for a, _, _ in FORMS_CONVS) + 6 * 3 * 4 + 10 * 5 * 6
    assert points["s0002"]["train_macs"] - plain == 3 * products * steps


@pytest.mark.parametrize("trial", ["s0000", "s0001", "s0002", "s0003"])
def test_every_kept_form_is_read_back_for_the_cost_of_its_training(forms_run, trial, monkeypatch):
    monkeypatch.chdir(forms_run.parent)
    found, _ = point_of(f"run/{trial}")
    architecture, kernels = Architecture.from_dict(found.architecture), forms_of(found.kernels)
    step = training_cost(architecture, kernels, 30)
    point = forms_points(forms_run)[trial]
    extra = (step.macs_step - step.macs_step_plain) * 8
    assert 3 * point["macs"] * 240 + extra == point["train_macs"]


def test_points_of_older_runs_were_trained_plain(forms_run, tmp_path):
    run = shutil.copytree(forms_run, tmp_path / "run")
    with contextlib.closing(sqlite3.connect(run / "study.db")) as database, database:
        gone = database.execute("DELETE FROM trial_user_attributes WHERE key = 'kernels'").rowcount
    assert gone == 4
    assert [point.kernels for point in read_points(run)] == ["plain"] * 4


def test_a_form_that_does_not_fit_the_pipelines_is_a_problem_of_the_space(study_file, tmp_path):
    space = SPACE.replace("KernelFilter(depth, rho=2)", "planter.form_of('acnet')")
    space = space.replace('["none", "cut1", "cut2"]', '["cut1"]')
    (tmp_path / "space.py").write_text(f"import planter\n{space}")
    with pytest.raises(StudyError) as caught:
        prepare(read_study(study_file, []))
    (problem,) = caught.value.problems
    assert problem.place == "sample.space"
    assert "pipelines cut1, each with norm statistics of its own" in str(problem)


def test_an_asymmetric_block_is_no_problem_without_pipelines(study_file, tmp_path):
    space = SPACE.replace("KernelFilter(depth, rho=2)", "planter.form_of('acnet')")
    space = space.replace('["none", "cut1", "cut2"]', '["none"]')
    (tmp_path / "space.py").write_text(f"import planter\n{space}")
    assert prepare(read_study(study_file, [])).space is not None
