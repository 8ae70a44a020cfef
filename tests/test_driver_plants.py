"""Plants in the driver: what one is, and those that die or fail."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_driver_planting import (
    FINETUNE,
    NO_TEACHER,
    assert_rule,
    books,
    log_of,
    make_study,
    new_run,
    result,
    same_books,
    state_of,
    widened,
)
from torch import nn

import planter
from planter.driver.checking.check import prepare
from planter.driver.tasks import planting_step
from planter.planting import round as fast_round
from planter.planting.plants import channels_to_plant
from planter.study.file import read_study
from planter.study.schema import StudyError

study_file = pytest.fixture(scope="module")(make_study)
run = pytest.fixture(new_run)


# What a plant is


def test_widths_grow_by_a_share_to_a_multiple(study_file: Path, run: Path) -> None:
    overrides = ["plant.channels=0.4", "plant.multiple=4", "plant.rounds=2", "plant.start=5"]
    planter.search(study_file, out=run, overrides=overrides)
    rows = log_of(run)
    assert sum(row["accepted"] for row in rows) > 1
    parent = rows[0]
    for number in (1, 2):
        round_ = [row for row in rows if row["round"] == number]
        for row in round_:
            before, after = parent["widths"][row["layer"]], row["widths"][row["layer"]]
            least = before + before * 2 / 5
            assert after % 4 == 0
            assert least <= after < least + 4
            assert row["channels"] == after - before
            assert widened(parent["widths"], row["widths"]) == {row["layer"]}
        parent = next((row for row in round_ if row["accepted"]), parent)


@pytest.mark.parametrize("multiple", [1, 4, 8])
@pytest.mark.parametrize("hundredths", [1, 7, 10, 29, 30, 55, 57, 60, 99])
def test_a_share_is_rounded_up_once_and_no_further(hundredths: int, multiple: int) -> None:
    for width in range(1, 130):
        wanted = width + -(-width * hundredths // 100)
        wider = -(-wanted // multiple) * multiple
        assert width + channels_to_plant(width, hundredths / 100, multiple) == wider


def test_planting_from_labels_alone_needs_no_teacher(study_file: Path, run: Path) -> None:
    front = planter.search(study_file, out=run, overrides=[*NO_TEACHER, "plant.rounds=1"])
    assert {point["method"] for point in front["points"]} == {"plant"}
    assert [row["layer"] for row in log_of(run)] == ["start", "conv1", "conv3"]
    assert not (run / "trials" / "teacher").exists()
    # Nothing is distilled: the candidates cost their own steps and one pass of their parent.
    images = len(planter.load_data(run).train)
    for name, layer in (("p01-conv1", "conv1"), ("p01-conv3", "conv3")):
        macs = result(run, name)["train_macs"] - images * log_of(run)[0]["macs"]
        whole = 3 * images * 3 * result(run, name)["points"][0]["macs"]
        assert 0 < macs < whole, layer


@pytest.mark.parametrize(
    ("overrides", "place", "words"),
    [
        (["plant.kd_weight=0.0"], "plant", "kd_weight and ce_weight are both 0"),
        (["plant.filters=zero"], "plant", "filters zero with outgoing zero"),
        (["plant.filters=gradient", "plant.outgoing=random"], "plant", "filters gradient with"),
        (["plant.channels=1.5"], "plant", "channels 1.5: a share is below 1"),
        (["plant.channels=0"], "plant.channels", "greater than 0"),
        (["plant.multiple=0"], "plant.multiple", "greater than or equal to 1"),
        (["plant.per_round=0"], "plant.per_round", "greater than or equal to 1"),
        (["plant.patience=-1"], "plant.patience", "greater than or equal to 0"),
        (["plant.accept=accuracy"], "plant.accept", "loss_per_mac"),
        (["plant.bounds.macs=0"], "plant.bounds.macs", "greater than 0"),
        (["plant.memory_gb=-1.0"], "plant.memory_gb", "greater than or equal to 0"),
        (["plant.finetune={epochs: 0}"], "plant.finetune.epochs", "greater than or equal to 1"),
        (
            ["plant.recipe.augment={views: 3}"],
            "plant.recipe.augment",
            "neither crop, flip, resized_crop, color_jitter, randaugment, ",
        ),
        (["plant.recipe.augment={crop: 1, views: 1}"], "plant.recipe.augment.views", "equal to 2"),
    ],
)
def test_settings_without_a_meaning_are_refused_at_their_place(
    study_file: Path, overrides: list[str], place: str, words: str
) -> None:
    with pytest.raises(StudyError) as caught:
        read_study(study_file, overrides)
    assert [problem.place for problem in caught.value.problems] == [place]
    assert words in str(caught.value.problems[0])


@pytest.mark.parametrize(
    ("overrides", "place", "words"),
    [
        (["plant.kernels=acnet"], "plant.kernels", "kflo and do-conv do not"),
        (["plant.kernels=nonsense"], "plant.kernels", "nonsense"),
        ([*NO_TEACHER, "plant.kd_weight=1.0"], "plant", "no teacher"),
        (["plant.bounds.macs=100"], "plant.start", "beyond bounds.macs"),
        (["plant.layers=[conv1, conv9]"], "plant.layers", "conv9"),
    ],
)
def test_what_the_networks_cannot_do_is_refused_at_its_place(
    study_file: Path, overrides: list[str], place: str, words: str
) -> None:
    with pytest.raises(StudyError) as caught:
        prepare(read_study(study_file, overrides))
    assert [problem.place for problem in caught.value.problems] == [place]
    assert words in str(caught.value.problems[0])


def test_a_network_trained_in_another_form_is_saved_plain(study_file: Path, run: Path) -> None:
    overrides = ["plant.kernels=kflo:2x2", "plant.rounds=1", "keep=all"]
    more = [f"plant.finetune={FINETUNE}", f"plant.final={FINETUNE}"]
    front = planter.search(study_file, out=run, overrides=[*overrides, *more])
    data = planter.load_data(run)
    plain = set(planter.load(run / "models" / "teacher" / "base").state_dict())
    losses = {row["id"]: row["val_loss"] for row in log_of(run)}
    assert set(losses) == {"p00-start", "p01-conv1", "p01-conv3", "p01-grown", "p02-final"}
    for point in front["points"]:
        network = planter.load(run / point["model"])
        assert set(network.state_dict()) == plain
        assert not any(hasattr(m, "parametrizations") for m in network.modules())
        if point["method"] == "plant":
            assert planter.evaluate(network, data.validation).loss == losses[point["trial"]]
            spec = json.loads((run / point["model"] / "arch.json").read_text())
            single = point["trial"] in ("p01-conv1", "p01-conv3")
            assert spec["kernels"] == ("plain" if single else "kflo:2x2")


# Plants that die or fail


def channels_of(child: nn.Module, layer: str) -> nn.Conv2d:
    conv = child.get_submodule(f"{layer}.conv")
    assert isinstance(conv, nn.Conv2d)
    return conv


def dead_at_first(
    monkeypatch: pytest.MonkeyPatch, layers: Sequence[str], times: int
) -> dict[str, list[int]]:
    """Lets the first plants of these layers be born dead; the seeds of all plants, by layer."""
    plant = planting_step.plant
    seeds: dict[str, list[int]] = {}

    def planted(before: Any, parent: Any, layer: str, channels: int, **options: Any) -> Any:
        wider, child = plant(before, parent, layer, channels, **options)
        if options["seed"] not in seeds.setdefault(layer, []):
            seeds[layer].append(options["seed"])
        if layer in layers and seeds[layer].index(options["seed"]) < times:
            bias = channels_of(child, layer).bias
            assert bias is not None
            with torch.no_grad():
                bias[-channels:] = -1e4
        return wider, child

    monkeypatch.setattr(planting_step, "plant", planted)
    return seeds


def test_a_dead_plant_is_planted_once_more_with_another_seed(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = dead_at_first(monkeypatch, ["conv3"], times=1)
    told: list[str] = []
    planter.search(
        study_file,
        out=run,
        overrides=["plant.rounds=1", "keep=all"],
        observe=lambda p: told.append(p.event),
    )
    assert [len(seeds[layer]) for layer in ("conv1", "conv3")] == [1, 2]
    dead, other = result(run, "p01-conv3"), result(run, "p01-conv1")
    assert (dead["reseeded"], other["reseeded"]) == (True, False)
    assert 0 < dead["live"] <= 2
    assert "p01-conv3: dead, planted once more" in (run / "trials/p01-conv3/log.txt").read_text()
    assert [e for e in told if "(re-seeded)" in e] == [
        e for e in told if e.startswith("p01-conv3 done")
    ]
    lines = (run / "trials/p01-conv3/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    # The other candidate of the share is not trained again, and its network not changed.
    monkeypatch.undo()
    planter.search(study_file, out=run.with_name("alone"), overrides=["plant.rounds=1", "keep=all"])
    for key, tensor in state_of(run.with_name("alone"), "p01-conv1").items():
        assert torch.equal(tensor, state_of(run, "p01-conv1")[key])
    assert other["train_macs"] == result(run.with_name("alone"), "p01-conv1")["train_macs"]


def test_a_plant_that_dies_twice_is_scored_as_it_is(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = dead_at_first(monkeypatch, ["conv1"], times=9)
    planter.search(study_file, out=run, overrides=["plant.rounds=1"])
    assert len(seeds["conv1"]) == 2
    assert len(seeds["conv3"]) == 1 + result(run, "p01-conv3")["reseeded"]
    dead = result(run, "p01-conv1")
    assert (dead["reseeded"], dead["live"]) == (True, 0)
    rows = {row["id"]: row for row in log_of(run)}
    assert rows["p01-conv1"]["val_loss"] == pytest.approx(rows["p00-start"]["val_loss"], rel=1e-6)
    said = (run / "trials/p01-conv1/log.txt").read_text()
    assert said.count("dead, planted once more") == 1
    assert "2 of 2 planted channels answer to no image" in said


def test_a_kill_while_a_dead_plant_is_trained_once_more_changes_nothing(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = ["plant.rounds=1", "plant.layers=[conv1]", "plant.recipe.epochs=3"]
    dead_at_first(monkeypatch, ["conv1"], times=1)
    planter.search(study_file, out=run, overrides=lean)
    assert result(run, "p01-conv1")["reseeded"]
    monkeypatch.undo()
    killed = run.with_name(f"{run.name}-killed")
    dead_at_first(monkeypatch, ["conv1"], times=1)
    monkeypatch.setattr(fast_round, "_CHECKPOINT_EVERY_S", -1.0)
    end_epoch, ends = fast_round._Student.end_epoch, []

    def cut_off(self: Any, epoch: int, *args: Any) -> None:
        ends.append(epoch)
        if len(ends) == 3 + 2:  # the second epoch of the second training
            raise KeyboardInterrupt
        end_epoch(self, epoch, *args)

    monkeypatch.setattr(fast_round._Student, "end_epoch", cut_off)
    with pytest.raises(KeyboardInterrupt):
        planter.search(study_file, out=killed, overrides=lean)
    assert [file.parent.name for file in killed.rglob("checkpoint*.pt")] == ["p01-conv1"]
    monkeypatch.undo()
    dead_at_first(monkeypatch, ["conv1"], times=1)
    planter.search(study_file, out=killed, overrides=lean)
    same_books(run, killed)
    assert not list(killed.rglob("*.pt"))


@pytest.mark.parametrize("how", ["refused", "no number"])
def test_a_candidate_that_fails_fails_alone(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    plant = planting_step.plant

    def failing(before: Any, parent: Any, layer: str, channels: int, **options: Any) -> Any:
        if layer == "conv2" and how == "refused":
            raise ValueError("conv2 is not to my taste")
        wider, child = plant(before, parent, layer, channels, **options)
        if layer == "conv2":
            with torch.no_grad():
                channels_of(child, layer).weight[-1] = math.nan
        return wider, child

    overrides = ["plant.rounds=1", "plant.layers=[conv1, conv2, conv3]"]
    monkeypatch.setattr(planting_step, "plant", failing)
    planter.search(study_file, out=run, overrides=overrides)
    monkeypatch.undo()
    rows = log_of(run)
    assert [row["id"] for row in rows] == ["p00-start", "p01-conv1", "p01-conv3"]
    assert_rule(rows, "loss", 1, finetune=False)
    failed = books(run)["p01-conv2"]
    assert failed.state.name == "FAIL"
    words = {"refused": "conv2 is not to my taste", "no number": "training loss became nan"}[how]
    assert words in failed.user_attrs["error"]
    assert words in (run / "trials/p01-conv2/log.txt").read_text()
    whole = run.with_name(f"{run.name}-whole")
    planter.search(study_file, out=whole, overrides=overrides)
    others = [row for row in log_of(whole) if row["layer"] != "conv2"]
    assert [row["val_loss"] for row in rows] == [row["val_loss"] for row in others]
