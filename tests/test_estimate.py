"""What a check times: bounded by memory and time whatever the images, the same answer otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from planter.arch import Architecture
from planter.costs.macs import activations, cost
from planter.data import InMemorySplit
from planter.driver.checking import estimate, memory
from planter.driver.checking.check import prepare
from planter.driver.checking.estimate import Estimate, estimated, timed_batch
from planter.driver.checking.memory import needs_of, too_little
from planter.driver.trials.networks import Planned
from planter.machine.memory import _left_to_groups
from planter.networks.assembly import build
from planter.study.file import read_study
from planter.study.schema import Study
from planter.training.augment import Augment
from planter.training.augmentation import AUGMENTATIONS
from planter.training.recipe import Recipe


def resnet(pixels: int, width: int = 16) -> Architecture:
    widths = {"stem": width, "group1": width, "group2": 2 * width, "group3": 4 * width}
    options = {"depth": 8, "classes": 10, "image": [3, pixels, pixels]}
    return Architecture("resnet", widths, options)


FOLDER = Planned(resnet(224, 64), Recipe(), trained=False)


def test_activations_are_those_that_the_layers_of_the_network_itself_hand_on() -> None:
    architecture = replace(resnet(16, 4), pipelines={"sub": {"before": "group2"}})
    network, seen = build(architecture).eval(), []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output.numel()))
    with torch.no_grad():
        network(torch.rand(1, 3, 16, 16))
    assert activations(architecture) == (sum(seen), max(seen))


@pytest.mark.parametrize("pixels", [8, 32, 224])
def test_a_timed_step_keeps_within_memory_and_has_two_images_for_batch_norms(pixels: int) -> None:
    architecture = resnet(pixels)
    macs = 3 * cost(architecture).macs
    batch = timed_batch(architecture, 128, macs)
    assert batch is not None
    assert 2 <= batch <= 128
    if batch > 2:
        assert 12 * activations(architecture).all * batch <= 256e6
    if pixels == 8:
        assert batch == 128  # as it is trained
    if pixels == 224:
        assert batch < 16


def test_what_is_too_large_to_be_timed_is_estimated_by_its_multiply_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fc = Architecture("convnet", {"fc1": 900_000}, {"classes": 10, "image": [3, 32, 32]})
    assert 4 * cost(fc).params > 256e6
    assert timed_batch(fc, 128, 3 * cost(fc).macs) is None
    study = read_study("quickstart", ["sample=null", "plant=null", "evolve=null"])
    prepared = prepare(study)
    monkeypatch.setattr(estimate, "_measured_pace", lambda: (2e9, 1.0))
    monkeypatch.setattr(estimate, "timed_batch", lambda *given: None)
    monkeypatch.setattr(estimate, "worker_count", lambda study: 1)
    macs = sum(cost(planned.architecture).macs for planned in prepared.networks.values())
    images = len(prepared.data.train) * study.recipe.epochs
    assert estimated(study, prepared).seconds == pytest.approx(3 * macs * images / 2e9)


def test_when_the_time_is_up_the_pace_of_what_was_timed_stands_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[int] = []

    def step(planned: Any, split: Any, batch: int) -> float:
        timed.append(batch)
        return 3 * cost(planned.architecture).macs * batch / 1e9

    monkeypatch.setattr(estimate, "_step_seconds", step)
    monkeypatch.setattr(estimate, "_MOST_S", -1.0)
    monkeypatch.setattr(estimate, "worker_count", lambda study: 1)
    study = read_study("quickstart", ["sample=null", "plant=null", "evolve=null"])
    prepared = prepare(study)
    macs = sum(cost(planned.architecture).macs for planned in prepared.networks.values())
    images = len(prepared.data.train) * study.recipe.epochs
    assert estimated(study, prepared).seconds == pytest.approx(3 * macs * images / 1e9)
    assert len(timed) == 1


def test_a_timed_step_changes_and_mixes_its_images_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = "recipe.augment={flip: true, mixup: 0.2}"
    study = read_study("quickstart", ["sample=null", "plant=null", "evolve=null", changes])
    prepared = prepare(study)
    seen: list[int] = []
    way = AUGMENTATIONS["flip"]

    def flipped(images: Tensor, *given: Any) -> Tensor:
        seen.append(len(images))
        time.sleep(0.05)
        return way.apply(images, *given)

    monkeypatch.setitem(AUGMENTATIONS, "flip", replace(way, apply=flipped))
    monkeypatch.setattr(estimate, "worker_count", lambda study: 1)
    found = estimated(study, prepared).seconds
    steps = sum(
        planned.recipe.epochs * len(prepared.data.train) / planned.recipe.batch
        for planned in prepared.networks.values()
        if planned.trained
    )
    assert found >= 0.05 * steps  # a step takes what its augmentation takes, at least
    assert set(seen) == {study.recipe.batch}


EVERYTHING = """
name: everything
data: {name: digits, subset: 600}
teacher: {builder: convnet, widths: 16, recipe: {epochs: 12, batch: 32}}
baselines: [{widths: 8}, {widths: 4, kd: {}}]
recipe: {epochs: 6, batch: 32, augment: {flip: true}}
plant: {start: 4, rounds: 2, recipe: {epochs: 4, batch: 32, augment: {flip: true}}}
evolve: {trials: 10, recipe: {epochs: 8, batch: 32, augment: {flip: true}}}
resources: {workers: 1}
"""


def convnet_macs(width: int) -> int:
    """Of one channel of 8 x 8 pixels, poolings after conv1, conv2 and conv5, fc1 of 128."""
    pixels = {"conv1": 64, "conv2": 16, "conv3": 4, "conv4": 4, "conv5": 4}
    convolutions = (9 * (1 if name == "conv1" else width) * n for name, n in pixels.items())
    return width * sum(convolutions) + width * 128 + 128 * 10


@pytest.fixture
def everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Estimate]:
    """What a study of all sections is estimated at, where a second is 1e9 multiply-adds."""
    file = tmp_path / "everything.yaml"
    file.write_text(EVERYTHING)

    def step(planned: Any, split: Any, batch: int) -> float:
        return 3 * cost(planned.architecture).macs * batch / 1e9

    def candidates(plant: Any, prepared: Any) -> float:
        return plant.recipe.epochs * 0.25

    monkeypatch.setattr(estimate, "_step_seconds", step)
    monkeypatch.setattr(estimate, "_round_seconds", candidates)

    def made(*overrides: str) -> Estimate:
        study = read_study(file, list(overrides))
        return estimated(study, prepare(study))

    return made


def test_the_parts_of_an_estimate_are_the_trainings_of_the_study(
    everything: Callable[..., Estimate],
) -> None:
    found, images = everything(), 540
    teacher, asked = convnet_macs(16), images * convnet_macs(16)
    assert {name: part.guide_macs for name, part in found.parts.items()} == {
        "teacher": 0,
        "baselines": 6 * asked,  # that of width 4
        "plant": (6 + 2 * 4) * asked,  # the initial network, then once a round
        "evolve": 10 * 8 * asked,
    }
    candidates = 2 * 5 * 4 * 3 * convnet_macs(4) * images
    assert {n: part.train_macs - part.guide_macs for n, part in found.parts.items()} == {
        "teacher": 12 * 3 * teacher * images,
        "baselines": 6 * 3 * (convnet_macs(8) + convnet_macs(4)) * images,
        "plant": 6 * 3 * convnet_macs(4) * images + candidates,
        "evolve": 10 * 8 * 3 * teacher * images / 4,
    }
    for name, part in found.parts.items():
        timed = part.train_macs - (candidates if name == "plant" else 0)
        rounds = 2 * 4 * 0.25 if name == "plant" else 0
        assert part.seconds == pytest.approx(timed / 1e9 + rounds)
    assert found.seconds == pytest.approx(sum(part.seconds for part in found.parts.values()))


def test_half_of_a_key_saves_what_is_told(everything: Callable[..., Estimate]) -> None:
    found = everything()
    assert list(found.halved) == sorted(
        found.halved, key=lambda key: found.halved[key][0], reverse=True
    )
    assert set(found.halved) == {
        "teacher.recipe.epochs",
        "recipe.epochs",
        "plant.rounds",
        "plant.recipe.epochs",
        "evolve.trials",
        "evolve.recipe.epochs",
    }
    for key, (saved, value) in found.halved.items():
        half = everything(f"{key}={int(value) // 2}")
        assert found.seconds - half.seconds == pytest.approx(saved), key


def test_a_teacher_trains_beside_nothing_but_what_learns_from_labels(
    everything: Callable[..., Estimate],
) -> None:
    alone, together = everything().parts, everything("resources.workers=4").parts
    labels = 6 * 3 * convnet_macs(8) * 540 / 1e9
    assert together["teacher"].seconds == pytest.approx(alone["teacher"].seconds - labels / 4)
    assert together["evolve"].seconds == pytest.approx(alone["evolve"].seconds / 4)


def test_children_are_no_larger_than_the_bound_and_end_with_the_budget(
    everything: Callable[..., Estimate],
) -> None:
    quiet = "evolve.recipe={epochs: 8, batch: 32}"
    small = everything(quiet, "objectives.bounds.macs=1000", "plant=null", "baselines=[]")
    assert small.parts["evolve"].train_macs == 10 * 8 * 3 * 1000 * 540
    most = 1e6 + small.parts["teacher"].train_macs
    ended = everything(
        quiet, "objectives.bounds.macs=1000", "plant=null", "baselines=[]",
        f"budget.train_macs={most}",
    )  # fmt: skip
    assert ended.parts["evolve"].train_macs == pytest.approx(1e6)
    assert "evolve.trials" not in ended.halved


@pytest.mark.parametrize(("pixels", "batch"), [(96, 64), (32, 512)])
def test_the_memory_that_is_told_is_about_what_a_training_takes(pixels: int, batch: int) -> None:
    """As the system counts it, of a process of its own."""
    program = f"""
import json, torch
from torch.nn import functional
from planter import Architecture, Recipe, build, fit
from planter.data import InMemorySplit
from planter.machine.memory import keep_memory

keep_memory()
torch.set_num_threads(1)
network = build(Architecture.from_dict(json.loads({json.dumps(resnet(pixels).to_dict())!r})))
photo, mean = torch.zeros(1, 3, {pixels}, {pixels}, dtype=torch.uint8), torch.zeros(3, 1, 1)
images, labels = photo.expand({3 * batch}, -1, -1, -1), torch.zeros({3 * batch}, dtype=torch.long)

def loss(network, batch):
    return functional.cross_entropy(network(batch.images), batch.labels)

def largest():  # kB; `ru_maxrss` begins with what the process had that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

before = largest()
recipe = Recipe(epochs=1, batch={batch}, lr=0.01)
fit(network, loss, InMemorySplit(images, labels, mean, mean + 1), recipe, seed=0)
print(largest() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    one = {"one": Planned(resnet(pixels), Recipe(epochs=1, batch=batch)), "given": FOLDER}
    (need,) = needs(one, 3 * batch)
    assert need.network == "one"
    assert 0.5 < (need.bytes - 0.5e9) / (1024 * int(done.stdout)) < 2


def needs(
    networks: dict[str, Planned], images: int, study: Study | None = None
) -> list[memory.Need]:
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8).expand(images, -1, -1, -1)
    labels, zero = torch.zeros(images, dtype=torch.int64), torch.zeros(3, 1, 1)
    data = SimpleNamespace(train=InMemorySplit(pixels, labels, zero, zero + 1))
    prepared: Any = SimpleNamespace(networks=networks, data=data)
    return needs_of(study or a_study(), prepared)


def a_study(**more: Any) -> Study:
    resources = more.pop("resources", {"workers": 2})
    network = {"builder": "convnet"}
    return Study.model_validate(
        {"name": "s", "data": {"name": "digits"}, "baselines": [network], "resources": resources}
        | more
    )


def test_the_memory_that_is_told_is_of_the_images_that_a_step_has() -> None:
    def of(images: int, **recipe: Any) -> float:
        ((bytes_, _, many),) = needs({"one": Planned(resnet(224), Recipe(**recipe))}, images)
        assert many == together
        return bytes_ - 0.5e9

    together = 128
    whole = of(12_800, batch=128)
    together = 65
    assert of(130, batch=128) == pytest.approx(whole * 65 / 128, rel=0.01)
    together = 24
    assert of(24, batch=128) == pytest.approx(whole * 24 / 128, rel=0.01)
    together = 32
    assert of(12_800, batch=128, accumulate=4) == pytest.approx(whole / 4, rel=0.01)


def test_a_pool_of_views_is_memory_that_a_training_takes() -> None:
    """A pool of 45,000 images in 24 views took 3.3 GB that nothing told of."""
    few, many = (
        needs({"one": Planned(resnet(8), Recipe(augment=Augment(flip=True, views=views)))}, 1000)
        for views in (None, 24)
    )
    assert many[0].bytes - few[0].bytes == 24 * 1000 * (3 * 8 * 8)


def test_a_study_that_takes_more_memory_than_there_is_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large, small = Planned(resnet(224), Recipe(batch=32)), Planned(resnet(64), Recipe(batch=32))
    networks = {"small": small, "teacher": large, "sample0": small}
    guide = {"builder": "resnet"}

    def told(free: float, **more: Any) -> str:
        monkeypatch.setattr(memory, "available_bytes", lambda: int(free))
        study = a_study(teacher={**guide, **more.pop("teacher", {})}, **more)
        return too_little(study, needs(networks, 1000, study)) or ""

    study = a_study(teacher=guide)
    found = needs(networks, 1000, study)
    most, less, *drawn = (need.bytes for need in found)
    assert [need.network for need in found] == [
        "teacher", "small", "a draw of sample.space", "a draw of sample.space"
    ]  # fmt: skip
    assert drawn == [less, less]
    assert told(most + less) == ""
    few = told(0.99 * (most + less))
    assert "2 trainings at a time" in few
    assert "resources.workers: 1 fits" in few
    assert "recipe.accumulate" in few
    assert told(0.99 * (most + less), resources={"workers": 1}) == ""
    assert f"a training of teacher takes about {most / 1e9:.1f} GB" in told(0.99 * most)
    limit = {"workers": 2, "memory_gb": 0.99 * most / 1e9}
    assert "resources.memory_gb is" in told(1e12, resources=limit)
    assert told(1e12, resources={**limit, "workers": 0}) == ""  # a limit of workers
    # A teacher that several processes train has no limit, and nobody beside it.
    divided = needs(networks, 1000, a_study(teacher={**guide, "processes": 4}))[0]
    assert divided.bytes == pytest.approx(most + 3 * (0.5e9 + 16 * cost(resnet(224)).params))
    assert told(divided.bytes, resources=limit, teacher={"processes": 4}) == ""
    alone = told(0.99 * divided.bytes, teacher={"processes": 4})
    assert "more than the" in alone
    assert "accumulate" not in alone
    assert too_little(study, []) is None


def test_children_take_what_their_parents_would_within_the_bounds() -> None:
    recipe = {"epochs": 1, "batch": 16}
    evolving = {"trials": 3, "recipe": recipe}
    given = {"teacher": Planned(resnet(224), Recipe(batch=64), trained=False)}
    assert needs(given, 1000, a_study()) == []
    found = needs(given, 1000, a_study(evolve=evolving))
    assert [(need.network, need.images) for need in found] == [("a child of teacher", 16)] * 2
    (whole,) = needs({"one": Planned(resnet(224), Recipe(**recipe))}, 1000, a_study())
    assert found[0].bytes == whole.bytes
    macs = cost(resnet(224)).macs
    half = a_study(evolve=evolving, objectives={"bounds": {"macs": macs / 2}})
    bounded = needs(given, 1000, half)[0].bytes
    kept = 0.5e9 + 16 * cost(resnet(224)).params
    assert bounded - kept == pytest.approx((whole.bytes - kept) / 2)


def test_what_a_container_may_hold_is_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 9000\nshmem 500\n")
    assert min(_left_to_groups(tmp_path)) == 1500  # files give way
    (tmp_path / "memory.max").write_text("max\n")
    assert min(_left_to_groups(tmp_path)) > 2**60
    (tmp_path / "memory.stat").unlink()
    assert min(_left_to_groups(tmp_path)) > 2**60
