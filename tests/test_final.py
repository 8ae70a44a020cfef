"""planter train: against trainings by hand, and against what it wrote before."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from test_driver import SPACE
from torch.nn import functional
from typer.testing import CliRunner

import planter
from planter.arch import Architecture
from planter.cli.app import app
from planter.driver import final
from planter.driver.backends import local
from planter.driver.run_folder.read import read_points
from planter.driver.storage.reading import run_study
from planter.driver.tasks.context import Context
from planter.driver.trials.jobs import seed_of
from planter.networks import checkpoint
from planter.networks.assembly import build_network

STUDY = """
name: small
data: {name: digits, subset: 160, validation: 0.25}
teacher: {builder: convnet, widths: 4, recipe: {epochs: 1}}
recipe: {epochs: 2, batch: 30, optimizer: adam, lr: 0.01, weight_decay: 0.0}
sample: {space: "SPACE:space", trials: 3, sampler: random}
resources: {workers: 0}
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "space.py").write_text(SPACE)
    (folder / "small.yaml").write_text(STUDY.replace("SPACE", str(folder / "space.py")))
    planter.search(folder / "small.yaml", out=folder / "runs" / "small")
    return folder / "runs" / "small"


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """A copy of the searched run, in a folder of its own."""
    shutil.copytree(searched, tmp_path / "runs" / "small")
    return tmp_path / "runs" / "small"


def cut_point(run: Path) -> str:
    """A point of the front, if there is one behind a cut."""
    front = [
        p["id"] for p in json.loads((run / "pareto.json").read_text())["points"] if p["on_front"]
    ]
    return next((name for name in front if not name.endswith("/base")), front[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def weights(run: Path, *place: str) -> dict[str, torch.Tensor]:
    return load_file(run.joinpath(*place) / "weights.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_stand_alone_is_a_training_by_hand_of_the_same_seed(run: Path) -> None:
    name = cut_point(run)
    found = final.train_points(run, [name], kinds=["stand-alone"], seeds=2)
    point = next(p for p in read_points(run) if p.id == name)
    data, study = planter.load_data(run), run_study(run)
    for number in range(2):
        seed = seed_of(study.seed, f"{name}/stand-alone-{number}")
        network = build_network(Architecture.from_dict(point.architecture), point.pipeline, seed)
        planter.fit(
            network,
            lambda model, batch: functional.cross_entropy(model(batch.images), batch.labels),
            data.train,
            study.recipe,
            seed=seed,
        )
        place = run / "final" / "models" / name / f"stand-alone-{number}"
        assert_same(weights(place), network.state_dict())
        row = next(row for row in found["rows"] if row["seed"] == number)
        assert row["model"] == str(place.relative_to(run))
        assert row["accuracy"] == planter.evaluate(network, data.validation).accuracy
        assert row["test_accuracy"] == planter.evaluate(network, data.test).accuracy
        assert planter.evaluate(planter.load(place), data.test).accuracy == row["test_accuracy"]
    first, second = (weights(run, "final/models", name, f"stand-alone-{n}") for n in range(2))
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_continued_starts_from_the_weights_of_the_run(run: Path) -> None:
    found = final.train_points(run, kinds=["continued"], seeds=1, overrides=["continued.lr=1e-30"])
    for point in found["points"]:
        assert point["continued"]["accuracy"]["mean"] == point["shared"]["accuracy"]
        assert point["continued"]["test_accuracy"]["mean"] == point["shared"]["test_accuracy"]
        before = weights(run, "models", point["id"])
        after = weights(run, "final/models", point["id"], "continued-0")
        assert_same(before, after)  # statistics, too: the same images under the same weights


def test_continued_trains_all_of_the_weights_with_a_tenth_of_the_rate(run: Path) -> None:
    name = cut_point(run)
    found = final.train_points(run, [name], seeds=1)
    rates = {kind: one["recipe"]["lr"] for kind, one in found["settings"].items()}
    assert rates == {"continued": pytest.approx(0.001), "stand-alone": 0.01}
    before = weights(run, "models", name)
    after = weights(run, "final/models", name, "continued-0")
    assert all(not torch.equal(before[key], after[key]) for key in before if "weight" in key)


def test_a_point_is_reported_with_mean_and_deviation_over_its_seeds(run: Path) -> None:
    found = final.train_points(run, seeds=3)
    with (run / "final" / "final.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * len(found["points"])
    reported = {p["id"]: p for p in json.loads((run / "pareto.json").read_text())["points"]}
    assert {p["id"] for p in found["points"]} == {i for i, p in reported.items() if p["on_front"]}
    for point in found["points"]:
        shared = {key: reported[point["id"]][key] for key in point["shared"]}
        assert point["shared"] == shared
        assert len(shared) == 6  # both, and the ends of their intervals
        for kind in ("continued", "stand-alone"):
            assert point[kind]["seeds"] == 3
            own = [row for row in rows if (row["id"], row["kind"]) == (point["id"], kind)]
            assert [row["seed"] for row in own] == ["0", "1", "2"]
            for measure in ("accuracy", "test_accuracy"):
                values = [float(row[measure]) for row in own]
                assert point[kind][measure]["mean"] == pytest.approx(statistics.mean(values))
                assert point[kind][measure]["std"] == pytest.approx(statistics.stdev(values))
    assert json.loads((run / "final" / "final.json").read_text()) == found


def test_one_training_has_an_interval_in_place_of_a_deviation(run: Path) -> None:
    from scipy.stats import binomtest

    images = len(planter.load_data(run).validation)
    found = final.train_points(run, [cut_point(run)], kinds=["continued"], seeds=1)
    (point,) = found["points"]
    told = point["continued"]["accuracy"]
    right = round(told["mean"] * images)
    expected = binomtest(right, images).proportion_ci(method="wilson")
    assert (told["low"], told["high"]) == pytest.approx((expected.low, expected.high))
    assert told["std"] is None


def test_the_same_command_gives_the_same_bits_and_leaves_the_run_alone(
    run: Path, searched: Path, tmp_path: Path
) -> None:
    before = contents(run)
    name = cut_point(run)
    final.train_points(run, [name], seeds=1)
    first = contents(run / "final" / "models")
    after = {n: c for n, c in contents(run).items() if not n.startswith("final/")}
    assert after == before
    (run / "final").rename(tmp_path / "elsewhere")
    final.train_points(run, [name], seeds=1)
    again = contents(run / "final" / "models")
    assert first.keys() == again.keys()
    for file in first:
        if file.endswith("weights.safetensors"):
            assert first[file] == again[file]


def test_what_is_there_is_not_trained_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = cut_point(run)
    done: list[str] = []
    trained = local.run_job

    def do(worker: Context, job: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job.id)
        return trained(worker, job)

    monkeypatch.setattr(local, "run_job", do)
    with pytest.raises(KeyboardInterrupt):
        final.train_points(run, [name], seeds=2)
    half = json.loads((run / "final" / "final.json").read_text())
    assert len([row for row in half["rows"] if row["kind"] != "shared"]) == 3
    assert all(row["test_accuracy"] is None for row in half["rows"] if row["kind"] != "shared")
    # A kill between the network and the file: what counts is the network.
    (run / "final" / "final.json").unlink()
    done.clear()
    found = final.train_points(run, [name], seeds=2)
    assert done == [f"{name}/stand-alone-1"]
    done.clear()
    assert final.train_points(run, [name], seeds=2) == found
    assert done == []
    more = final.train_points(run, [name], seeds=3, kinds=["continued"])
    assert done == [f"{name}/continued-2"]
    assert (more["points"][0]["continued"]["seeds"], more["points"][0]["stand-alone"]["seeds"]) == (
        3,
        2,
    )


def test_test_images_are_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    test = planter.load_data(run).test
    assert test is not None

    def seen(network: torch.nn.Module, split: Any) -> Any:
        read.append(len(split))
        return planter.evaluate(network, split)

    monkeypatch.setattr(final, "evaluate", seen)
    name = cut_point(run)
    final.train_points(run, [name], seeds=2)
    assert read == [len(test)] * 4  # the search has read them for the shared weights
    final.train_points(run, [name], seeds=2)
    assert len(read) == 4


def test_the_teacher_guides_where_asked_for(run: Path) -> None:
    name = cut_point(run)
    final.train_points(run, [name], kinds=["stand-alone"], seeds=1, guided=True)
    data, study = planter.load_data(run), run_study(run)
    point = next(p for p in read_points(run) if p.id == name)
    seed = seed_of(study.seed, f"{name}/stand-alone-0")
    network = build_network(Architecture.from_dict(point.architecture), point.pipeline, seed)
    teacher = planter.load(run / "models/teacher/base")

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        logits = model(batch.images)
        with torch.no_grad():
            answer = functional.log_softmax(teacher(batch.images), dim=1)
        divergence = functional.kl_div(
            functional.log_softmax(logits, dim=1), answer, log_target=True, reduction="batchmean"
        )
        return functional.cross_entropy(logits, batch.labels) + divergence

    planter.fit(network, loss, data.train, study.recipe, seed=seed)
    found = weights(run, "final/models", name, "stand-alone-0")
    for key, value in network.named_parameters():
        # Logits of one pass over all images, and batch by batch: the last bits differ.
        torch.testing.assert_close(found[key], value.detach(), rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match=r"guided True .now False"):
        final.train_points(run, [name], kinds=["stand-alone"], seeds=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s9999"], "no trial or point 's9999'"),
        (["--set", "data.name=mnist"], "expected a key of recipe, continued or resources"),
        (["--set", "recipe.lr=-1"], "recipe.lr"),
        (["--set", "recipe.warmup=9"], "longer than the 2 epochs"),
        (["--set", "resources.gpu=1"], "--set resources.gpu=0"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(
    run: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["train", str(run), *arguments])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert not (run / "final").exists()


def test_a_network_that_was_not_kept_can_only_be_trained_from_scratch(run: Path) -> None:
    name = cut_point(run)
    shutil.rmtree(run / "models" / name)
    with pytest.raises(ValueError, match=f"the weights of {name} were not kept"):
        final.train_points(run, [name], seeds=1)
    found = final.train_points(run, [name], kinds=["stand-alone"], seeds=1)
    assert [row["model"] is None for row in found["rows"]] == [True, False]
    assert found["points"][0]["stand-alone"]["accuracy"]["std"] is None


def test_a_run_without_a_front_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [point for point in read_points(run) if not point.searched]
    monkeypatch.setattr(final, "read_points", lambda run: points)
    with pytest.raises(ValueError, match="no point on its front"):
        final.train_points(run)
    (run / "pareto.json").unlink()
    with pytest.raises(ValueError, match="no finished trial yet"):
        final.train_points(run)


def test_other_settings_and_a_second_command_are_refused(run: Path) -> None:
    name = cut_point(run)
    final.train_points(run, [name], kinds=["stand-alone"], seeds=1)
    with pytest.raises(ValueError, match=r"recipe.epochs 2 .now 3.*move that folder away"):
        final.train_points(run, [name], seeds=1, overrides=["recipe.epochs=3"])
    with (
        FileLock(run / "final" / ".lock"),
        pytest.raises(ValueError, match="another planter train"),
    ):
        final.train_points(run, [name], kinds=["stand-alone"], seeds=1)


def test_the_command_prints_a_table_and_ends_with_130_where_interrupted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = cut_point(run)

    def interrupted(worker: Context, job: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(local, "run_job", interrupted)
        result = CliRunner().invoke(app, ["train", str(run), name, "--seeds", "1"])
    assert result.exit_code == 130
    assert "the same command goes on" in result.output
    result = CliRunner().invoke(app, ["train", str(run), name, "--seeds", "2", "--epochs", "2"])
    assert result.exit_code == 0, result.output
    assert "stand-alone" in result.output
    assert "±" in result.output
    result = CliRunner().invoke(app, ["train", str(run), name, "--seeds", "2", "--json"])
    assert json.loads(result.stdout)["points"][0]["id"] == name


def test_a_training_that_fails_is_told_and_tried_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = cut_point(run)
    trained = local.run_job

    def do(worker: Context, job: Any) -> Any:
        return {"error": "RuntimeError: no"} if job.params["seed"] == 0 else trained(worker, job)

    arguments = ["train", str(run), name, "--seeds", "2", "--from-scratch"]
    with monkeypatch.context() as patch:
        patch.setattr(local, "run_job", do)
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 4
    assert "stand-alone-0 failed: RuntimeError: no" in result.output
    assert CliRunner().invoke(app, arguments).exit_code == 0
    found = json.loads((run / "final" / "final.json").read_text())
    assert found["failed"] == []
    assert found["points"][0]["stand-alone"]["seeds"] == 2


def test_the_teacher_still_guides_when_it_was_trained_itself(run: Path) -> None:
    final.train_points(run, ["teacher"], seeds=1)
    name = cut_point(run)
    found = final.train_points(run, [name], kinds=["continued"], seeds=1, guided=False)
    assert found["failed"] == []
    shutil.rmtree(run / "final" / "models" / name)
    found = final.train_points(run, [name], kinds=["stand-alone"], seeds=1)
    shutil.move(run / "final", run / "first")
    final.train_points(run, ["teacher"], kinds=["stand-alone"], seeds=1)
    found = final.train_points(run, [name], kinds=["continued"], seeds=1, guided=True)
    assert found["failed"] == []


def test_a_kind_that_was_never_begun_binds_nobody(run: Path) -> None:
    name = cut_point(run)
    final.train_points(run, [name], kinds=["stand-alone"], seeds=1)
    file = run / "final" / "final.json"
    told = json.loads(file.read_text())
    told["settings"]["continued"] = told["settings"]["stand-alone"]  # asked for, interrupted
    file.write_text(json.dumps(told))
    more = ["continued.epochs=1"]
    found = final.train_points(run, [name], kinds=["continued"], seeds=1, overrides=more)
    assert found["settings"]["continued"]["recipe"]["epochs"] == 1


def test_a_search_that_goes_on_keeps_its_test_images_to_itself(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = json.loads((run / "pareto.json").read_text())
    for row in front["points"]:
        row["test_accuracy"] = None
    (run / "pareto.json").write_text(json.dumps(front))
    monkeypatch.setattr(final, "run_standing", lambda run: "Not finished: so it is.")
    heard: list[str] = []
    found = final.train_points(run, [cut_point(run)], seeds=1, observe=heard.append)
    assert heard[0] == "Not finished: so it is."
    told = {row["kind"]: row["test_accuracy"] is None for row in found["rows"]}
    assert told == {"shared": True, "continued": False, "stand-alone": False}


def test_a_point_that_is_dropped_while_its_weights_are_copied_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = cut_point(run)
    copy = checkpoint.copy

    def dropped(source: Path, place: Path) -> None:
        shutil.rmtree(source)
        copy(source, place)

    monkeypatch.setattr(checkpoint, "copy", dropped)
    with pytest.raises(ValueError, match=f"the weights of {name} were not kept"):
        final.train_points(run, [name], seeds=1)


def test_damaged_weights_are_told_with_their_place(run: Path) -> None:
    name = cut_point(run)
    (run / "models" / name / "weights.safetensors").write_bytes(b"cut")
    for _ in range(2):  # and no copy is left to be taken for sound
        with pytest.raises(ValueError, match=f"models/{name}: weights.safetensors is damaged"):
            final.train_points(run, [name], seeds=1)


def test_networks_that_were_saved_but_not_booked_bind_too(run: Path) -> None:
    name = cut_point(run)
    more = ["recipe.epochs=1"]
    final.train_points(run, [name], kinds=["stand-alone"], seeds=1, overrides=more)
    file = run / "final" / "final.json"
    told = json.loads(file.read_text())
    told["rows"] = [row for row in told["rows"] if row["kind"] == "shared"]  # killed before
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"recipe.epochs 1 .now 2"):
        final.train_points(run, [name], kinds=["stand-alone"], seeds=1)
