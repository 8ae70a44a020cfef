"""What a check times: bounded by memory and time whatever the images, the same answer otherwise."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from planter.arch import Architecture
from planter.costs.macs import activation_numbers, cost
from planter.driver.checking import estimate
from planter.driver.checking.check import prepare
from planter.driver.checking.estimate import estimate_seconds, timed_batch
from planter.networks.assembly import build
from planter.study.file import read_study
from planter.training.augmentation import AUGMENTATIONS


def resnet(pixels: int, width: int = 16) -> Architecture:
    widths = {"stem": width, "group1": width, "group2": 2 * width, "group3": 4 * width}
    options = {"depth": 8, "classes": 10, "image": [3, pixels, pixels]}
    return Architecture("resnet", widths, options)


def test_activations_are_those_that_the_layers_of_the_network_itself_hand_on() -> None:
    architecture = replace(resnet(16, 4), pipelines={"sub": {"before": "group2"}})
    network, seen = build(architecture).eval(), []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output.numel()))
    with torch.no_grad():
        network(torch.rand(1, 3, 16, 16))
    assert activation_numbers(architecture) == sum(seen)


@pytest.mark.parametrize("pixels", [8, 32, 224])
def test_a_timed_step_keeps_within_memory_and_has_two_images_for_batch_norms(pixels: int) -> None:
    architecture = resnet(pixels)
    macs = 3 * cost(architecture).macs
    batch = timed_batch(architecture, 128, macs)
    assert batch is not None
    assert 2 <= batch <= 128
    if batch > 2:
        assert 12 * activation_numbers(architecture) * batch <= 256e6
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
    assert estimate_seconds(study, prepared) == pytest.approx(3 * macs * images / 2e9)


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
    assert estimate_seconds(study, prepared) == pytest.approx(3 * macs * images / 1e9)
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
    found = estimate_seconds(study, prepared)
    steps = sum(
        planned.recipe.epochs * len(prepared.data.train) / planned.recipe.batch
        for planned in prepared.networks.values()
        if planned.trained
    )
    assert found >= 0.05 * steps  # a step takes what its augmentation takes, at least
    assert set(seen) == {study.recipe.batch}
