"""Children that begin with what their parent's optimiser has learned."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import Bench
from safetensors.torch import load_file
from test_evolving import STUDY, children
from torch import nn

import planter
from planter.arch import Architecture
from planter.driver.checking.check import prepare
from planter.driver.tasks.context import Context
from planter.driver.tasks.evolved import evolve
from planter.driver.trials.jobs import Job
from planter.edits.inherit import inherit_optimizer_state_
from planter.evolution.cut import Cut
from planter.evolution.depth import Deepen, Remove
from planter.evolution.edit import Edit, Individual
from planter.evolution.grow import Grow
from planter.evolution.shrink import Shrink
from planter.evolution.whole import GoOn
from planter.networks import moments
from planter.networks.assembly import build_network
from planter.networks.moments import Moments
from planter.study.file import StudyFile
from planter.training.recipe import Recipe, make_optimizer

RESNET = Architecture(
    "resnet", {"stem": 4, "group1": 5, "group2": 6, "group3": 7},
    {"depth": 8, "shortcut": "conv", "classes": 10, "image": [1, 8, 8]},
)  # fmt: skip
MORE = ["evolve.moments=true", "evolve.trials=2", "evolve.edits=[shrink]"]
SGD = "{epochs: 1, batch: 50, optimizer: sgd, momentum: 0.9, lr: 0.01}"


def weights_as_moments(network: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Moments that say which entry of which weight they belong to."""
    return {name: {"momentum_buffer": p.detach().clone()} for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    "edit",
    [
        Shrink(0.5), Shrink(0.4, "magnitude"), Grow(1.7), GoOn(), Cut("group2"),
        Deepen("group3"), Remove("group3"),
    ],
    ids=str,
)  # fmt: skip
def test_moments_stay_with_the_weights_they_are_of(edit: Edit) -> None:
    """Where the moments are the weights, so are the child's; what is new has none, or zero."""
    architecture = RESNET
    if isinstance(edit, Remove):
        architecture = Deepen("group3").described(RESNET, "base")
    network = build_network(architecture, seed=3)
    with torch.no_grad():
        for parameter in network.parameters():  # each entry tells itself from all others
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    parent = Individual(architecture, "base", network, weights_as_moments(network))
    child, _ = edit.apply(parent, Bench())
    optimizer = make_optimizer(child.network, Recipe(optimizer="sgd", momentum=0.9))
    inherit_optimizer_state_(optimizer, child.moments)
    old, shared = set(network.state_dict()), 0
    for name, parameter in child.network.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if name not in old:
            assert buffer is None
            continue
        # A grown network's new entries are drawn anew or zero; neither is one of its parent's.
        known = torch.isin(parameter, network.get_parameter(name))
        assert torch.equal(buffer, torch.where(known, parameter, 0.0))
        shared += int(known.sum())
    count = sum(parameter.numel() for parameter in child.network.parameters())
    if isinstance(edit, Shrink | GoOn | Remove):
        assert shared == count
    assert 0 < shared <= count


def test_what_is_kept_is_read_back_and_a_damaged_file_is_none(tmp_path, caplog):
    step, buffer = torch.tensor(7.0), torch.rand(3, 2, 1, 1).to(memory_format=torch.channels_last)
    state = {"a.weight": {"exp_avg": buffer, "step": step}, "b.bias": {"step": step}}
    assert moments.load(tmp_path) is None
    moments.save(tmp_path, Moments("adam", {}))
    assert moments.load(tmp_path) is None
    moments.save(tmp_path, Moments("adam", state))
    found = moments.load(tmp_path)
    assert found is not None
    assert found.optimizer == "adam"
    assert {name: set(learned) for name, learned in found.state.items()} == {
        "a.weight": {"exp_avg", "step"}, "b.bias": {"step"}
    }  # fmt: skip
    assert torch.equal(found.state["a.weight"]["exp_avg"], buffer)
    assert torch.equal(found.state["b.bias"]["step"], step)
    file = tmp_path / "moments.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with caplog.at_level(logging.WARNING):
        assert moments.load(tmp_path) is None
    assert "cut short or damaged" in caplog.text


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("moments") / "kin.yaml"
    adam = "{epochs: 15, batch: 15, optimizer: adam, lr: 0.005, schedule: onecycle}"
    teacher = "{epochs: 2, batch: 50, optimizer: sgd, momentum: 0.9, lr: 0.01, schedule: constant}"
    assert adam in STUDY
    file.write_text(STUDY.replace(adam, teacher))
    return file


@pytest.fixture(scope="module")
def kept(study: Path) -> tuple[Path, dict[str, Any]]:
    run = study.parent / "kept"
    return run, planter.search(study, out=run, overrides=[*MORE, f"evolve.recipe={SGD}"])


def child_of(study: Path, run: Path, recipe: Recipe, *settings: str) -> dict[str, torch.Tensor]:
    """The weights of the teacher trained further in a run, from its files."""
    settled = StudyFile.of(study).study(["evolve.kd=null", *settings])
    prepared = prepare(settled)
    context = Context(settled, run, prepared.data, prepared.fingerprint, run / "t")
    job = Job("e0099", "evolve", {"parent": "teacher/base", "edits": [{"edit": "go_on"}],
                                  "recipe": recipe.model_dump()})  # fmt: skip
    evolve(context, job)
    return load_file(run / "models" / "e0099" / "base" / "weights.safetensors")


def test_the_first_step_goes_where_the_parents_optimiser_was_going(study, kept, tmp_path):
    """One step of SGD: the gradient is the same, so the weights differ by rate x momentum x buffer
    alone, w - lr (mu buffer + g) beside w - lr g."""
    run = tmp_path / "run"
    for part in ("models", "trials"):
        shutil.copytree(kept[0] / part / "teacher", run / part / "teacher")
    recipe = Recipe(epochs=1, batch=150, optimizer="sgd", lr=0.1, momentum=0.8, weight_decay=0.0,
                    nesterov=False, schedule="constant", warmup=None)  # fmt: skip
    begun = child_of(study, run, recipe, "evolve.moments=true")
    fresh = child_of(study, run, recipe, "evolve.moments=false")
    buffers = moments.load(run / "models" / "teacher" / "base")
    assert buffers is not None
    for name, learned in buffers.state.items():
        moved, expected = fresh[name] - begun[name], 0.1 * 0.8 * learned["momentum_buffer"]
        torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-4)
        assert moved.abs().sum() > 0


def test_moments_lie_beside_the_networks_of_a_study_that_asks_for_them(study, kept):
    run, found = kept
    for point in found["points"]:
        network = planter.load(run / point["model"])
        own = moments.load(run / point["model"])
        assert own is not None
        assert own.optimizer == "sgd"
        shapes = {name: p.shape for name, p in network.named_parameters()}
        assert {n: one["momentum_buffer"].shape for n, one in own.state.items()} == shapes
    for point in children(found):
        spec = json.loads((run / point["model"] / "arch.json").read_text())
        assert spec["lineage"][-1]["moments"] is True
    without = study.parent / "without"
    planter.search(study, out=without, overrides=[*MORE[1:], f"evolve.recipe={SGD}"])
    assert not list(without.rglob("moments.safetensors"))


def test_a_teacher_that_was_trained_before_brings_its_moments(study, kept):
    run = study.parent / "again"
    found = planter.search(study, out=run, overrides=[*MORE, f"evolve.recipe={SGD}"])
    assert "was trained before" in (run / "trials/teacher/log.txt").read_text()
    assert [p["accuracy"] for p in found["points"]] == [p["accuracy"] for p in kept[1]["points"]]
    both = [at / "models/teacher/base/moments.safetensors" for at in (run, kept[0])]
    assert both[0].read_bytes() == both[1].read_bytes()


@pytest.mark.parametrize(
    ("optimizer", "told"), [("adam", "are of sgd, not adam"), ("sgd", "no moments are kept")]
)
def test_a_parent_without_such_moments_gives_fresh_ones_and_that_is_told(
    study, kept, tmp_path, caplog, optimizer, told
):
    run = tmp_path / "run"
    for part in ("models", "trials"):
        shutil.copytree(kept[0] / part / "teacher", run / part / "teacher")
    recipe = Recipe(epochs=1, batch=50, optimizer=optimizer, lr=0.01)
    if optimizer == "sgd":
        (run / "models/teacher/base/moments.safetensors").unlink()
    fresh = child_of(study, run, recipe, "evolve.moments=false")
    assert told not in caplog.text
    begun = child_of(study, run, recipe, "evolve.moments=true")
    assert told in caplog.text
    assert all(torch.equal(fresh[name], begun[name]) for name in fresh)


def test_moments_of_adam_go_on_with_their_counts(study, tmp_path):
    """Steps of the parent (2 epochs of 3) and of the child."""
    run = study.parent / "adam"
    adam = "{epochs: 2, batch: 50, optimizer: adam, lr: 0.01}"
    found = planter.search(
        study, out=run,
        overrides=[*MORE, f"teacher.recipe={adam}", f"evolve.recipe={adam}", "evolve.trials=1"],
    )  # fmt: skip
    (child,) = children(found)
    learned = moments.load(run / child["model"])
    assert learned is not None
    assert {float(one["step"]) for one in learned.state.values()} == {2 * 3 + 2 * 3}


def test_a_child_stopped_on_rungs_begins_with_them_too(study):
    rungs = "evolve.early_stopping={rungs: [0.5], wait: 9}"
    more = [*MORE, "evolve.recipe=" + SGD.replace("epochs: 1", "epochs: 2")]
    once = planter.search(study, out=study.parent / "whole", overrides=more)
    found = planter.search(study, out=study.parent / "rungs", overrides=[*more, rungs])
    assert found["points"] == once["points"]
    for child in children(found):
        own, other = (
            study.parent / at / child["model"] / "moments.safetensors" for at in ("rungs", "whole")
        )
        assert own.read_bytes() == other.read_bytes()
