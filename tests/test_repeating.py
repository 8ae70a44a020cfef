"""planter train --like: the run's own weights, made anew from what it wrote down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_driver import SPACE

import planter
from planter.driver import final
from planter.driver.run_folder.making import jobs_behind
from planter.driver.run_folder.read import images_of, read_points
from planter.driver.storage.reading import run_study
from planter.driver.tasks.context import Context
from planter.driver.tasks.run_job import TASKS
from planter.networks import checkpoint

STUDY = """
name: small
data: {name: digits, subset: 160, validation: 0.25}
teacher: {builder: convnet, widths: 4, recipe: {epochs: 1}}
baselines: [{widths: 3, kd: {weight: 1.0}}]
recipe: {epochs: 2, batch: 30, optimizer: adam, lr: 0.01, weight_decay: 0.0}
plant: {start: 3, channels: 2, rounds: 2, layers: [conv1, conv2], recipe: {epochs: 1, batch: 30}}
sample: {space: "SPACE:space", trials: 3, sampler: random}
evolve: {trials: 4, recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01}}
resources: {workers: 0, max_failures: 5}
keep: all
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "space.py").write_text(SPACE.replace('"none", "cut1"', '"cut1"'))
    (folder / "small.yaml").write_text(STUDY.replace("SPACE", str(folder / "space.py")))
    planter.search(folder / "small.yaml", out=folder / "runs" / "small")
    return folder / "runs" / "small"


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    shutil.copytree(searched, tmp_path / "runs" / "small")
    return tmp_path / "runs" / "small"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_under_its_own_names_every_trial_comes_out_with_its_own_bits(
    searched: Path, tmp_path: Path
) -> None:
    study, data, points = run_study(searched), images_of(searched), read_points(searched)
    methods = set()
    for trial in dict.fromkeys(point.trial for point in points):
        if trial == "teacher":
            continue  # the others learn from it, and it has a test of its own
        again = tmp_path / trial
        checkpoint.copy(searched / "models/teacher/base", again / "models/teacher/base")
        context = Context(study, again, data, data.fingerprint(), again / ".teachers")
        for job in jobs_behind(searched, study, points, trial, lambda name: name):
            if job.id != "teacher":
                (again / "trials" / job.id).mkdir(parents=True)
                TASKS[job.kind](context, job)
        for point in (point for point in points if point.trial == trial):
            methods.add(point.method)
            found, expected = (weights(at / "models" / point.id) for at in (again, searched))
            assert same(found, expected), point.id
    assert methods == {"baseline", "plant", "sample", "evolve"}


def children(points: Any) -> list[Any]:
    return [point for point in points if point.method == "evolve"]


def test_a_repetition_has_the_networks_of_its_trial_and_a_seed_of_its_own(run: Path) -> None:
    points = read_points(run)
    trial = next(p.trial for p in points if p.method == "sample" and p.pipeline != "base")
    own = [point for point in points if point.trial == trial]
    found = final.train_points(run, [trial], kinds=["repeated"], seeds=2)
    assert found["settings"] == {}
    assert found["failed"] == []
    rows = [row for row in found["rows"] if row["kind"] == "repeated"]
    assert {(row["id"], row["seed"]) for row in rows} == {(p.id, n) for p in own for n in (0, 1)}
    data = planter.load_data(run)
    for row in rows:
        point = next(p for p in own if p.id == row["id"])
        spec = checkpoint.read_spec(run / row["model"])
        assert spec["architecture"] == point.architecture
        assert spec["kernels"] == point.kernels
        assert row["macs"] == point.macs
        network = planter.load(run / row["model"])
        assert row["accuracy"] == planter.evaluate(network, data.validation).accuracy
        assert row["test_accuracy"] == planter.evaluate(network, data.test).accuracy
    places = [run / "models" / own[0].id, *(run / r["model"] for r in rows if r["id"] == own[0].id)]
    every = [weights(place) for place in places]
    assert len(every) == 3
    assert not any(same(every[i], every[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    once = found["points"][0]["repeated"]
    assert once["seeds"] == 2
    # The same command finds all of it there.
    before = {row["model"]: (run / row["model"]).stat().st_mtime_ns for row in rows}
    again = final.train_points(run, [trial], kinds=["repeated"], seeds=2)
    assert again["rows"] == found["rows"]
    assert before == {row["model"]: (run / row["model"]).stat().st_mtime_ns for row in rows}


def test_a_child_is_made_with_its_lineage_and_goes_on_from_what_is_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = read_points(run)
    child = max(children(points), key=lambda p: children(points).index(p))
    study = run_study(run)
    jobs = jobs_behind(run, study, points, child.trial, lambda name: name)
    assert [job.id for job in jobs][-2:] == [child.parent.split("/")[0], child.trial]
    done: list[str] = []
    for kind, task in list(TASKS.items()):

        def noted(context: Context, job: Any, task: Any = task) -> Any:
            done.append(job.id)
            return task(context, job)

        if kind != "repeat":
            monkeypatch.setitem(TASKS, kind, noted)

    def failing(context: Context, job: Any) -> Any:
        raise RuntimeError("the current is off")

    with monkeypatch.context() as off:
        off.setitem(TASKS, "evolve", failing)
        found = final.train_points(run, [child.id], kinds=["repeated"], seeds=1)
        assert "the current is off" in found["failed"][0]["error"]
        assert found["failed"][0]["id"] == child.id
    first = list(done)
    found = final.train_points(run, [child.id], kinds=["repeated"], seeds=1)
    assert found["failed"] == []
    assert set(first).isdisjoint(done[len(first) :])
    assert len(done) == len(jobs)
    (row,) = [row for row in found["rows"] if row["kind"] == "repeated"]
    spec = checkpoint.read_spec(run / row["model"])
    assert spec["lineage"][-1]["edits"] == list(child.edits)
    assert spec["macs"] == row["macs"]


def test_a_repeated_teacher_teaches_nobody(run: Path) -> None:
    final.train_points(run, ["teacher"], kinds=["repeated"], seeds=1)
    assert not list((run / "final" / "trials").rglob("logits.safetensors"))
    repeated = weights(run / "final/models/teacher/repeated-0/base")
    assert not same(repeated, weights(run / "models/teacher/base"))


def test_the_command_shows_a_column_more(run: Path, command_in: Any) -> None:
    call = command_in(run.parent.parent)
    code, out, err = call("train", "small", "--like", "b-width3", "--seeds", "1")
    assert code == 0, err
    assert "repeated" in out
    assert "b-width3/repeated-0" in err
    found = json.loads((run / "final" / "final.json").read_text())
    assert [row["kind"] for row in found["rows"]] == ["shared", "repeated"]
    code, out, err = call("train", "small", "b-width3", "--from-scratch", "--seeds", "1", "--json")
    assert code == 0, err
    kinds = [row["kind"] for row in json.loads(out)["rows"]]
    assert kinds == ["shared", "stand-alone", "repeated"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--like", "s0000", "--from-scratch"], "--like repeats what the search did"),
        (["--like", "s0000", "--epochs", "3"], "--like repeats what the search did"),
        (
            ["--like", "s0000", "--set", "recipe.lr=0.1"],
            "override resources.KEY, teacher.processes",
        ),
        (["--like", "s0099"], "no trial or point 's0099'"),
    ],
)
def test_what_would_be_no_repetition_is_refused(
    run: Path, command_in: Any, arguments: list[str], message: str
) -> None:
    code, _, err = command_in(run.parent.parent)("train", "small", *arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (run / "final" / "final.json").exists()


def test_a_network_grown_of_several_plants_is_not_repeated(tmp_path: Path) -> None:
    text = STUDY.replace("rounds: 2", "rounds: 1, final: {epochs: 1, batch: 30}")
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("sample", "evol")))
    (tmp_path / "grown.yaml").write_text(text)
    planter.search(tmp_path / "grown.yaml", out=tmp_path / "run")
    name = next(p.id for p in read_points(tmp_path / "run") if p.trial.endswith("-final"))
    with pytest.raises(ValueError, match="planting rounds are not repeated; --from-scratch"):
        final.train_points(tmp_path / "run", [name], kinds=["repeated"])
