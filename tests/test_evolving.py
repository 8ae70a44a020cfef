"""Children of trained networks, through the driver."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from interrupted import interrupt_around_jobs, interrupted_later_and_later
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from safetensors.torch import load_file

import planter
from planter.driver.checking.check import prepare
from planter.driver.outcome import SearchFailedError
from planter.driver.proposers import evolving
from planter.driver.proposers.evolving import Evolving
from planter.driver.proposers.proposer import SearchContext
from planter.driver.storage.points import PointBook, open_storage
from planter.driver.tasks.context import Context
from planter.driver.tasks.evolved import evolve
from planter.driver.tasks.run_job import run_job
from planter.driver.trials.bounds import Latencies
from planter.driver.trials.jobs import Job, seed_of
from planter.front.lineage import lineage as lineage_of
from planter.networks import checkpoint
from planter.study.file import StudyFile
from planter.study.schema import StudyError

STUDY = """
name: kin
data: {name: digits, subset: 200, validation: 0.25}
teacher:
  builder: convnet
  widths: {conv1: 12, conv2: 12, conv3: 12, conv4: 12, conv5: 12, fc1: 16}
  recipe: {epochs: 15, batch: 15, optimizer: adam, lr: 0.005, schedule: onecycle}
recipe: {epochs: 2, batch: 50, optimizer: adam, lr: 0.01}
evolve:
  trials: 5
  recipe: {epochs: 1, batch: 50, optimizer: adam, lr: 0.01, augment: {crop: 1, views: 2}}
resources: {workers: 0, max_failures: 3}
keep: all
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("kin") / "kin.yaml"
    file.write_text(STUDY)
    return file


@pytest.fixture(scope="module")
def whole(study: Path) -> tuple[Path, dict[str, Any]]:
    run = study.parent / "whole"
    return run, planter.search(study, out=run)


def rows(run: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="kin/evolve", storage=f"sqlite:///{run}/study.db").trials


def children(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [p for p in found["points"] if p["method"] == "evolve"]


def without_seconds(found: dict[str, Any]) -> Any:
    return json.dumps({**found, "cost": {**found["cost"], "seconds": 0}}, sort_keys=True)


def test_children_are_trained_booked_and_saved_with_their_lineage(whole):
    run, found = whole
    born = children(found)
    assert len(born) == 5
    told = {f"e{row.number:04d}": row for row in rows(run) if row.state == TrialState.COMPLETE}
    assert {p["trial"] for p in born} == set(told)
    ids = {p["id"] for p in found["points"]}
    for point in born:
        row = told[point["trial"]]
        decided = json.loads(row.user_attrs["offspring"])
        assert point["parent"] in ids
        assert (decided["parent"], decided["edits"]) == (point["parent"], point["edits"])
        assert point["edits"][0]["edit"] == row.params["edit"]
        spec = checkpoint.read_spec(run / point["model"])
        assert [one["id"] for one in spec["lineage"]][-2:] == [point["parent"], point["id"]]
        data = planter.load_data(run)
        network = planter.load(run / point["model"])
        assert planter.evaluate(network, data.validation).accuracy == point["accuracy"]
        assert planter.cost(network, data.image).macs == point["macs"]


def test_the_first_children_need_no_luck(whole):
    run, _ = whole
    first = [row for row in rows(run) if row.number < evolving._KNOWN_GOOD]
    assert {row.params["edit"] for row in first} == {"shrink"}
    assert {row.params["shrink_size"] for row in first} == {0.5}
    assert {row.params["shrink_rule"] for row in first} == {"magnitude"}


def test_what_children_took_counts_their_training_and_the_teachers_answers(whole):
    """Two views of each of 150 images, one epoch; the first child pays for the teacher's logits."""
    _, found = whole
    points = {p["trial"]: p for p in children(found)}
    teacher = next(p for p in found["points"] if p["method"] == "teacher")
    paid = 0
    for point in points.values():
        own = 3 * point["macs"] * 150
        extra = point["train_macs"] - own
        if point["edits"][0].get("rule") == "taylor":
            extra -= (
                3 * next(p["macs"] for p in found["points"] if p["id"] == point["parent"]) * 150
            )
        if point["edits"][0].get("rule") != "measured":
            assert extra in (0, 2 * 150 * teacher["macs"])
            paid += extra > 0
    assert paid == 1
    assert points["e0000"]["train_macs"] > 3 * points["e0000"]["macs"] * 150


def test_a_kill_before_and_after_every_job_changes_nothing(study, whole, tmp_path, monkeypatch):
    run, (_, found) = tmp_path / "run", whole
    left = interrupt_around_jobs(monkeypatch, [p["trial"] for p in children(found)])
    for _ in range(len(left)):
        with pytest.raises(KeyboardInterrupt):
            planter.search(study, out=run)
    assert left == []
    again = planter.search(study, out=run)
    assert without_seconds(again) == without_seconds(found)


def test_a_kill_at_any_write_of_the_books_loses_and_doubles_nothing(study, whole, tmp_path):
    """The writes of decisions, results, told values and points, one after another."""
    run, (_, found) = tmp_path / "run", whole
    books = (
        (evolving, "write_attributes"),
        (evolving, "write_result"),
        (optuna.Study, "tell"),
        (optuna.Study, "ask"),
        (PointBook, "add"),
    )
    again = interrupted_later_and_later(lambda: planter.search(study, out=run), *books, least=10)
    assert without_seconds(again) == without_seconds(found)


def test_more_children_may_be_asked_for_later(study, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    more = planter.search(study, out=run, overrides=["evolve.trials=7"])
    assert len(children(more)) == 7
    before = {p["id"]: p["accuracy"] for p in children(whole[1])}
    assert before.items() <= {p["id"]: p["accuracy"] for p in children(more)}.items()


def test_the_budget_holds(study, tmp_path):
    """No child begins that would take more than what is left."""
    found = planter.search(
        study, out=tmp_path / "run", overrides=["evolve.trials=0", "evolve.edits=[shrink]"]
    )
    teacher = found["cost"]["train_macs"]
    most = teacher + 60_000_000
    found = planter.search(
        study,
        out=tmp_path / "run",
        overrides=["evolve.trials=50", f"budget.train_macs={most}", "evolve.edits=[shrink]"],
    )
    assert 0 < len(children(found)) < 50
    assert found["cost"]["train_macs"] <= most
    assert "budget" in str(found["notes"])


@pytest.mark.parametrize(
    "change",
    [
        ["evolve.edits=[grow]", "evolve.grow_rules=[measured]", "evolve.grow=[1.5, 2.5]"],
        ["evolve.edits=[grow]", "evolve.grow_steps=2", "evolve.grow=[2.0, 3.0]",
         "evolve.recipe.epochs=6"],
        ["evolve.edits=[grow]", "evolve.grow_steps=2", "evolve.grow=[2.0, 3.0]",
         "evolve.grow_rules=[gradient]", "evolve.recipe.epochs=4"],
        ["evolve.edits=[shrink]", "evolve.forms=['kflo:2x4']"],
        ["evolve.edits=[shrink]", "evolve.shrink_rules=[taylor]"],
    ],
)  # fmt: skip
def test_a_child_takes_what_was_expected_of_it(study, tmp_path, change):
    """At most, and most of it: so the budget holds though nothing of it is told beforehand."""
    run = tmp_path / "run"
    baseline = "baselines=[{widths: 4, name: small}]"
    found = planter.search(study, out=run, overrides=["evolve.trials=2", baseline, *change])
    told = {f"e{row.number:04d}": row.user_attrs["offspring"] for row in rows(run)
            if "offspring" in row.user_attrs}  # fmt: skip
    for point in children(found):
        expected = json.loads(told[point["trial"]])["train_macs"]
        assert 0.6 * expected <= point["train_macs"] <= 1.05 * expected


def test_children_keep_to_the_bound_of_macs(study, tmp_path):
    found = planter.search(
        study, out=tmp_path / "run", overrides=["objectives.bounds.macs=9000", "evolve.trials=3"]
    )
    assert len(children(found)) == 3
    assert all(p["macs"] <= 9000 and p["within_bounds"] for p in children(found))


def test_children_keep_to_the_bound_of_parameters(study, tmp_path):
    """The first child would have half the teacher's, which are too many."""
    found = planter.search(
        study,
        out=tmp_path / "run",
        overrides=["objectives.bounds.params=1k", "evolve.trials=4", "evolve.useful=0.0"],
    )
    assert len(children(found)) == 4
    assert all(p["within_bounds"] for p in children(found))


def test_a_parent_whose_files_are_gone_has_no_children_and_that_is_told(study, tmp_path):
    run, told = tmp_path / "run", []
    found = planter.search(study, out=run, overrides=["evolve.trials=2"])
    gone, before = children(found)[0]["id"], {p["trial"] for p in children(found)}
    shutil.rmtree(run / "models" / gone)
    found = planter.search(
        study, out=run, overrides=["evolve.trials=4"], observe=lambda now: told.append(now.event)
    )
    assert len(children(found)) == 4
    assert any(gone in event and "no children" in event for event in told)
    assert all(p["parent"] != gone for p in children(found) if p["trial"] not in before)


def test_other_choices_of_a_sampler_are_refused_in_a_run_that_is_begun(study, whole):
    """Optuna has no other list of choices under the same name; sizes and rates may change."""
    run, _ = whole
    with pytest.raises(StudyError, match=r"(?s)evolve.edits: .*shrink, grow.*--continue-from"):
        planter.search(study, out=run, overrides=["evolve.edits=[shrink]"], accept_changes=True)


def test_a_lineage_is_enough_to_get_the_same_weights_again(study, whole, tmp_path):
    run, found = whole
    settings = StudyFile.of(study).study([])
    lineages = [checkpoint.read_spec(run / p["model"])["lineage"] for p in children(found)]
    first, *steps = max(lineages, key=len)
    assert len(steps) > 1
    shutil.copytree(run / "models" / first["id"], tmp_path / "models" / first["id"])
    prepared = prepare(settings)
    context = Context(settings, tmp_path, prepared.data, prepared.fingerprint, tmp_path / "t")
    parent = first["id"]
    for step in steps:
        trial, _ = step["id"].split("/")
        assert step["seed"] == seed_of(settings.seed, trial)
        params = {"parent": parent, "edits": step["edits"], "recipe": step["recipe"]}
        evolve(context, Job(trial, "evolve", params))
        parent = step["id"]
    once, again = (load_file(at / "models" / parent / "weights.safetensors")
                   for at in (run, tmp_path))  # fmt: skip
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_child_that_grew_while_it_trained_can_be_had_again_of_its_lineage(study, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    change = ["evolve.edits=[grow]", "evolve.grow_steps=2", "evolve.recipe.epochs=4",
              "evolve.trials=1", "baselines=[{widths: 4, name: small}]"]  # fmt: skip
    found = planter.search(study, out=run, overrides=change)
    (child,) = children(found)
    assert child["edits"][0]["steps"] == 2
    parent, step = checkpoint.read_spec(run / child["model"])["lineage"]
    assert "in 2 steps while it trained" in (run / "report.html").read_text()
    settings = StudyFile.of(study).study(change)
    for name in {parent["id"], "teacher/base"}:
        shutil.copytree(run / "models" / name, again / "models" / name)
    prepared = prepare(settings)
    context = Context(settings, again, prepared.data, prepared.fingerprint, tmp_path / "t")
    params = {"parent": parent["id"], "edits": step["edits"], "recipe": step["recipe"]}
    told = run_job(context, Job(child["trial"], "evolve", params))
    assert told["train_macs"] == child["train_macs"]
    once, twice = (load_file(at / "models" / child["id"] / "weights.safetensors")
                   for at in (run, again))  # fmt: skip
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert not list((again / "trials" / child["trial"]).rglob("checkpoint.pt"))


def test_a_distillation_of_no_weight_asks_no_teacher(study, tmp_path):
    found = planter.search(
        study,
        out=tmp_path / "run",
        overrides=["evolve.trials=1", "evolve.kd={weight: 0.0}", "evolve.recipe.augment={crop: 1}"],
    )
    (child,) = children(found)
    assert child["train_macs"] == 3 * child["macs"] * 150


def test_networks_of_another_run_begin_a_search(study, whole, tmp_path):
    run, found = whole
    file = tmp_path / "next.yaml"
    file.write_text(STUDY.replace("name: kin", "name: next"))
    start = [f"evolve.start={run}", "evolve.trials=1", "evolve.parents=[]"]
    after = planter.search(file, out=tmp_path / "next", overrides=start)
    kept = [p for p in found["points"] if p["on_front"]]
    taken = [p for p in after["points"] if p["trial"].startswith("a")]
    assert [(p["macs"], p["accuracy"]) for p in taken] == [(p["macs"], p["accuracy"]) for p in kept]
    (child,) = [p for p in children(after) if p["trial"].startswith("e")]
    assert child["parent"] in {p["id"] for p in taken}
    lineage = checkpoint.read_spec(tmp_path / "next" / child["model"])["lineage"]
    assert lineage[0]["id"] == "teacher/base"
    assert [one["id"] for one in lineage][-2:] == [child["parent"], child["id"]]
    points = PointBook(open_storage(f"sqlite:///{tmp_path}/next/study.db"), "next").points
    assert lineage_of(points, child["id"])[0].how == "taken from evolve.start"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("evolve.start=nowhere", "holds no saved network"),
        ("evolve.edits=[mutate]", "'shrink', 'grow', 'cut', 'go_on', 'deepen' or 'remove'"),
        ("evolve.shrink=[0.5, 1.5]", "below 1"),
        ("evolve.grow=[0.5, 1.5]", "above 1"),
        ("evolve.grow_steps=0", "greater than or equal to 1"),
        ("evolve.grow_steps=2", "1 or fewer: a step an epoch in the first half of the 1"),
        ("evolve={edits: [shrink], grow_steps: 2}", "do not name grow"),
        ("evolve={grow_steps: 2, early_stopping: {}}", "early_stopping: null"),
        ("evolve={grow_steps: 2, forms: [acnet], recipe: {epochs: 4}}", "has learned"),
        ("evolve.rate=[2, 1]", "the least value and the largest"),
        ("evolve.forms=[wrong]", "wrong"),
        ("evolve.parents=[plant]", "plant in the study, or evolve.start"),
        ("evolve.recipe={augment: {crop: 20}}", "fewer pixels"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(study, tmp_path, change, told):
    with pytest.raises(StudyError, match="evolve") as error:
        planter.search(study, out=tmp_path / "run", overrides=[change])
    assert told in str(error.value)


def test_a_child_takes_images_as_its_parent_does(study, whole, tmp_path):
    """A network of another normalisation, hardly trained further, knows what it knew."""
    run, found = whole
    best = max(children(found), key=lambda p: p["accuracy"])
    shutil.copytree(run / best["model"], tmp_path / "other")
    spec = json.loads((tmp_path / "other" / "arch.json").read_text())
    spec["mean"], spec["std"] = [spec["mean"][0] + 0.4], [0.3 * spec["std"][0]]
    (tmp_path / "other" / "arch.json").write_text(json.dumps(spec))
    after = planter.search(
        study,
        out=tmp_path / "run",
        overrides=[
            f"evolve.start={tmp_path / 'other'}",
            "evolve.parents=[]",
            "evolve.edits=[go_on]",
            "evolve.trials=1",
            "evolve.recipe={epochs: 1, batch: 50, optimizer: sgd, lr: 1.0e-9}",
        ],
    )
    accuracy = {p["trial"]: p["accuracy"] for p in after["points"]}
    assert accuracy["a01"] != best["accuracy"]  # other images than it learned from
    assert accuracy["e0000"] == accuracy["a01"]


def test_networks_that_are_taken_in_keep_their_ids(study, whole, tmp_path):
    run, found = whole
    models = [str(run / p["model"]) for p in children(found)[:2]]
    more = ["evolve.trials=0", "evolve.parents=[]"]
    first = planter.search(
        study, out=tmp_path / "r", overrides=[f"evolve.start=[{models[1]}]", *more]
    )
    again = planter.search(
        study,
        out=tmp_path / "r",
        overrides=[f"evolve.start=[{', '.join(models)}]", *more],
        accept_changes=True,
    )
    macs = [{p["trial"]: p["macs"] for p in one["points"]} for one in (first, again)]
    assert macs[0].items() <= macs[1].items()
    assert {"a01", "a02"} <= set(macs[1])


def test_a_start_of_another_number_of_classes_is_refused(study, tmp_path):
    three = planter.Architecture(
        "convnet", dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5", "fc1"], 3),
        {"classes": 3, "image": [1, 8, 8]},
    )  # fmt: skip
    planter.save(tmp_path / "three", planter.build(three), three, "base")
    with pytest.raises(StudyError, match=r"(?s)classes 3.*classes 10"):
        planter.search(study, out=tmp_path / "r", overrides=[f"evolve.start={tmp_path / 'three'}"])


def test_networks_by_the_teachers_own_builder_may_begin_a_search(tmp_path, monkeypatch):
    """A study that names the code runs it; of another one's folder alone it would not."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kin_net.py").write_text(
        "from torch import nn\n"
        "def build(widths, *, classes, image):\n"
        "    conv = nn.Conv2d(image[0], widths['a'], 3)\n"
        "    return nn.Sequential(conv, nn.Flatten(), nn.Linear(36 * widths['a'], classes))\n"
    )
    study = StudyFile.of(write(tmp_path, "own", "{builder: 'kin_net:build', widths: {a: 4}}"))
    run = tmp_path / "run"
    planter.search(study, out=run)
    again = prepare(study.study([f"evolve.start={run}"]))
    assert again.starts
    other = StudyFile.of(write(tmp_path, "other", "{builder: toy}"))
    with pytest.raises(StudyError, match="named in teacher, plant or baselines"):
        prepare(other.study([f"evolve.start={run}"]))


def write(folder: Path, name: str, teacher: str) -> Path:
    file = folder / f"{name}.yaml"
    recipe = "{epochs: 1, batch: 50}"
    file.write_text(
        f"name: {name}\ndata: {{name: digits, subset: 200}}\nteacher: {teacher}\n"
        f"recipe: {recipe}\nevolve: {{trials: 1}}\nresources: {{workers: 0}}\n"
    )
    return file


def test_children_that_all_fail_end_the_search_with_their_reason(study, tmp_path, monkeypatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("planter.driver.tasks.evolved.apply_all", broken)
    with pytest.raises(SearchFailedError, match="broken on purpose"):
        planter.search(study, out=tmp_path / "run", overrides=["evolve.trials=2"])


def test_what_was_taken_in_is_no_result_where_all_children_fail(
    study, whole, tmp_path, monkeypatch
):
    def broken(*_: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("planter.driver.tasks.evolved.apply_all", broken)
    with pytest.raises(SearchFailedError, match="broken on purpose"):
        planter.search(
            study, out=tmp_path / "r", overrides=["evolve.trials=1", f"evolve.start={whole[0]}"]
        )


def test_the_same_failing_child_is_not_tried_again(study, tmp_path, monkeypatch):
    tried: list[Any] = []

    def broken(edits: Any, parent: Any, bench: Any) -> Any:
        tried.append((parent.architecture.key(), str(edits)))
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("planter.driver.tasks.evolved.apply_all", broken)
    with pytest.raises(SearchFailedError):
        planter.search(study, out=tmp_path / "run", overrides=["evolve.trials=3"])
    assert len(tried) == len(set(tried)) == 3


def proposer(settings, whole, left):
    """Of a study whose teacher alone is trained, in memory."""
    run, found = whole
    kept = PointBook(open_storage(f"sqlite:///{run}/study.db"), "kin")
    storage: Any = InMemoryStorage()
    book, latencies = PointBook(storage, "kin"), Latencies(settings)
    book.add([point for point in kept.points if point.method == "teacher"], {}, {})
    reference = found["reference_point"]
    return Evolving(
        SearchContext(
            settings, storage, prepare(settings), book, reference, latencies, 2, run,
            lambda: left[0],
        )
    ), storage  # fmt: skip


def test_draws_in_vain_beside_a_running_child_are_few(study, whole):
    """Ray asks several times a second, for as long as the other child trains."""
    left = [1e15]
    settings = StudyFile.of(study).study(["evolve.edits=[shrink]"])
    children_of, storage = proposer(settings, whole, left)
    job = children_of.next()
    assert job is not None
    left[0] = 0.0
    assert [children_of.next() for _ in range(100)] == [None] * 100
    drawn = optuna.load_study(study_name="kin/evolve", storage=storage).trials
    assert len(drawn) <= 1 + evolving._DRAWS
    left[0] = 1e15
    children_of.finish(job, {"error": "broken on purpose"})
    assert children_of.next() is not None


def test_networks_that_may_have_children_are_kept_as_long_as_any_are_wanted(study, whole):
    """Also where they are not on the run's own front: evolve.parents, or bounds, leave that out."""
    for trials, kept in ((1, {"teacher"}), (0, set())):
        settings = StudyFile.of(study).study([f"evolve.trials={trials}"])
        assert proposer(settings, whole, [1e15])[0].needed() == kept


def test_a_lineage_is_shown(whole, command_in):
    run, found = whole
    child = next(p for p in children(found) if p["parent"] != "teacher/base")
    code, shown, _ = command_in(run.parent)("show", str(run), child["id"], "--lineage")
    assert code == 0
    lines = shown.splitlines()
    assert "teacher/base" in lines[1]
    assert child["id"] in lines[-1]
    code, _, told = command_in(run.parent)("show", str(run), "--lineage")
    assert code == 2
    assert "ID --lineage" in told


def test_the_cost_of_a_child_that_is_a_cut_alone_names_no_base(study, tmp_path, command_in):
    run = tmp_path / "run"
    found = planter.search(study, out=run, overrides=["evolve.edits=[cut]", "evolve.trials=1"])
    (child,) = children(found)
    network = planter.load(run / child["model"])
    for target in (child["trial"], child["id"]):
        told = command_in(tmp_path)("cost", f"run/{target}", "--training", "--batch", "4", "--json")
        counted = json.loads(told[1])
        assert list(counted["pipelines"]) == [child["pipeline"]]
        assert counted["macs"] == planter.cost(network, [1, 8, 8]).macs == child["macs"]
        assert counted["params"] == counted["training"]["params"] == child["params"]
        assert counted["extra_params"] == counted["extra_statistics"] == 0
        # Backward takes twice the forward pass, but for the gradient of the images.
        assert counted["training"]["macs_step"] < 3 * 4 * child["macs"]
        code, shown, _ = command_in(tmp_path)("cost", f"run/{target}")
        assert code == 0
        assert "base" not in shown


def test_the_report_draws_lineages(whole):
    run, found = whole
    page = (run / "report.html").read_text()
    assert "Lineage" in page
    for point in children(found):
        if point["on_front"]:
            assert f"{point['id']}</td>" in page
    assert "shrunk to 50% of the macs (magnitude)" in page


def test_a_command_begins_with_another_runs_front(study, whole, tmp_path, command_in):
    file = tmp_path / "next.yaml"
    file.write_text(STUDY.replace("name: kin", "name: next"))
    more = ["--set", "evolve.trials=1", "--out", "next", "--continue-from", str(whole[0])]
    code, shown, told = command_in(tmp_path)("search", "next.yaml", *more)
    assert code == 0, told
    assert "a01" in shown
    code, _, told = command_in(tmp_path)("search", "next.yaml", "--continue-from", "nowhere")
    assert code == 2
    assert "nowhere" in told
    code, _, told = command_in(tmp_path)(
        "search", "next.yaml", *more[:4], "--continue-from", "next"
    )
    assert code == 2
    assert "this run itself" in told


def test_a_sampler_from_the_table_chooses_without_repeating_itself(study, tmp_path):
    found = planter.search(
        study, out=tmp_path / "run", overrides=["evolve.sampler=random", "evolve.trials=8"]
    )
    drawn = [json.dumps(row.params) for row in rows(tmp_path / "run")][evolving._KNOWN_GOOD :]
    assert len(drawn) == len(set(drawn)) >= 4
    assert len(children(found)) == 8


def test_sampling_and_evolving_take_turns(study, tmp_path):
    space = tmp_path / "space.py"
    space.write_text(
        "from planter import Architecture, Candidate\n"
        "def space(trial):\n"
        "    names = ['conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc1']\n"
        "    w = trial.suggest_int('w', 2, 8)\n"
        "    return Candidate(Architecture('convnet', dict.fromkeys(names, w)))\n"
    )
    started: list[str] = []
    planter.search(
        study,
        out=tmp_path / "run",
        overrides=[f"sample={{space: '{space}:space', trials: 3}}", "evolve.trials=3"],
        observe=lambda now: started.append(now.event) if now.kind == "start" else None,
    )
    order = [event[0] for event in started if event[0] in "se" and event[1].isdigit()]
    assert order == ["s", "e"] * 3
