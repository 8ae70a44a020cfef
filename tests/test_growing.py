"""Children that grow while they train, against plain torch, and killed on the way."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from planter import Architecture
from planter.backbones import full_widths, with_data_options
from planter.data import load_data
from planter.driver.tasks import growing
from planter.driver.tasks.context import Context
from planter.driver.tasks.evolved import evolve
from planter.driver.tasks.growing import growth_of
from planter.driver.trials.jobs import Job, Outcome, seed_of
from planter.evolution.edit import EditError
from planter.evolution.grow import Grow
from planter.evolution.shrink import Shrink
from planter.evolution.table import to_data
from planter.evolution.whole import Reform
from planter.networks import checkpoint, moments
from planter.networks.assembly import build_network
from planter.networks.moments import Moments
from planter.study.schema import Study
from planter.training import loop
from planter.training.batches import batch_order
from planter.training.recipe import Recipe

RECIPE = Recipe(epochs=8, batch=20, lr=0.02, nesterov=True, weight_decay=1e-3, warmup=1.0)
GROWTH = Grow(3.0, "even", 3)
DATA = load_data("digits", subset=80, validation=0.25)
IMAGES = 60
"""To train on."""
PARENT = with_data_options(Architecture("convnet", full_widths("convnet", 3)), 10, DATA.image)
RESNET = with_data_options(
    Architecture("resnet", {"stem": 3, "group1": 3, "group2": 4, "group3": 6},
                 {"depth": 8, "shortcut": "conv"}), 10, DATA.image,
)  # fmt: skip


def context_at(run: Path, parent: Architecture = PARENT, **evolve: Any) -> Context:
    study = Study.model_validate(
        {"name": "growing", "evolve": evolve, "baselines": [{"builder": "convnet", "widths": 3}]}
    )
    context = Context(study, run, DATA, DATA.fingerprint(), run / "teachers")
    context.outcome("b", {"base": build_network(parent, seed=1).eval()}, parent, train_macs=0)
    return context


def grown(context: Context, growth: Grow = GROWTH, recipe: Recipe = RECIPE, *more: Any) -> Outcome:
    edits = to_data([growth, *more])
    (context.run / "trials" / "e0000").mkdir(parents=True, exist_ok=True)
    params = {"parent": "b/base", "edits": edits, "recipe": recipe.model_dump()}
    return evolve(context, Job("e0000", "evolve", params))


def weights(context: Context) -> dict[str, Tensor]:
    return load_file(context.run / "models" / "e0000" / "base" / "weights.safetensors")


def told_by_epoch(context: Context) -> list[int]:
    """What the log says that the trial had taken after each epoch."""
    lines = context.metrics_of("e0000").read_text().splitlines()
    return [json.loads(line)["train_macs"] for line in lines]


def macs_of(network: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *DATA.image))
    return counter.get_total_flops() // 2


class Bench:
    """Measures nothing."""

    seed = seed_of(0, "e0000")


def stages(parent: Architecture) -> list[Any]:
    """The networks after each step, as they would be without training."""
    one = growing.Individual(parent, "base", build_network(parent, seed=1).eval())
    first, found = one.macs, []
    for number in range(GROWTH.steps):
        one, _ = GROWTH.step(number, first, one, Bench())
        found.append(one)
    return found


@pytest.mark.parametrize(
    ("parent", "inherits"),
    [(PARENT, False), (RESNET, True)],
    ids=["convnet", "resnet with its parent's moments"],
)
def test_growing_while_training_is_what_plain_torch_does(tmp_path, parent, inherits):
    """One schedule, momentum of older weights kept, that of new ones zero."""
    context = context_at(tmp_path, parent, moments=inherits)
    network, momentum, macs, by_epoch = build_network(parent, seed=1), {}, 0, []
    if inherits:
        momentum = {n: 0.1 * torch.ones_like(w) for n, w in network.named_parameters()}
        kept = {name: {"momentum_buffer": buffer} for name, buffer in momentum.items()}
        moments.save(context.run / "models" / "b" / "base", Moments("sgd", kept))
    told = grown(context)
    begins = [0, 1, 3, 8]  # of 8 epochs the first half, in thirds, rounded
    for stage, (begin, end) in zip(stages(parent), pairwise(begins), strict=True):
        wider = build_network(stage.architecture, seed=Bench.seed)
        with torch.no_grad():
            for name, tensor in wider.state_dict().items():
                old = network.state_dict()[name]
                part = tuple(map(slice, old.shape))
                if tensor.dim() > 1:
                    tensor[: old.shape[0], old.shape[1] :] = 0
                tensor[part] = old[part]
        optimizer = torch.optim.SGD(
            wider.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        for name, weight in wider.named_parameters():
            if name in momentum:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
                part = tuple(map(slice, momentum[name].shape))
                optimizer.state[weight]["momentum_buffer"][part] = momentum[name]
        wider.train()
        for epoch in range(begin, end):
            parts, _ = batch_order(DATA.train, RECIPE, Bench.seed, epoch)
            for i, index in enumerate(parts):
                optimizer.param_groups[0]["lr"] = RECIPE.lr_at(epoch + i / len(parts))
                images = DATA.train.normalise(DATA.train.batch(index))
                optimizer.zero_grad()
                functional.cross_entropy(wider(images), DATA.train.labels[index]).backward()
                optimizer.step()
            macs += 3 * IMAGES * stage.macs
            by_epoch.append(macs)
        momentum = {n: optimizer.state[w]["momentum_buffer"] for n, w in wider.named_parameters()}
        assert stage.macs == macs_of(wider.eval())
        network = wider
    assert told["train_macs"] == macs
    assert told_by_epoch(context) == by_epoch
    for name, tensor in weights(context).items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-3, atol=1e-5)
    left = moments.load(context.run / "models" / "e0000" / "base")
    assert (left is not None) == inherits
    if left is not None:
        assert checkpoint.read_spec(context.run / "models/e0000/base")["lineage"][-1]["moments"]
        for name, buffer in momentum.items():
            found = left.state[name]["momentum_buffer"]
            torch.testing.assert_close(found, buffer, rtol=1e-3, atol=1e-5)


def test_a_growing_child_gets_the_size_and_takes_less_than_one_grown_before(tmp_path):
    told = grown(context_at(tmp_path / "in steps"))
    whole = grown(context_at(tmp_path / "before"), Grow(3.0))
    most = 3 * macs_of(build_network(PARENT))
    for outcome in (told, whole):
        assert 0.8 * most < outcome["points"][0]["macs"] <= most
    assert whole["train_macs"] == 3 * IMAGES * 8 * whole["points"][0]["macs"]
    # A third of the size for one epoch, two thirds (in the logarithm) for two.
    share = (3 ** (1 / 3) + 2 * 3 ** (2 / 3) + 5 * 3) / (8 * 3)
    assert GROWTH.mean_size(8) / 3 == pytest.approx(share)
    assert told["train_macs"] == pytest.approx(share * 3 * IMAGES * 8 * most, rel=0.15)


@pytest.mark.parametrize(
    ("growth", "epochs", "when"),
    [(GROWTH, 8, "before"), (Grow(3.0, "measured", 2), 4, "after")],
    ids=["before", "after"],
)
def test_a_kill_at_any_checkpoint_changes_nothing(tmp_path, monkeypatch, growth, epochs, when):
    monkeypatch.setattr(loop, "_CHECKPOINT_EVERY_S", 0.0)
    recipe = RECIPE.model_copy(update={"epochs": epochs})
    context = context_at(tmp_path / "whole")
    told = grown(context, growth, recipe)
    real, left = checkpoint.write_training, [0]

    def write(*arguments: Any) -> None:
        if when == "before" and left[0] == 0:
            raise KeyboardInterrupt
        real(*arguments)
        if when == "after" and left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1

    monkeypatch.setattr(checkpoint, "write_training", write)
    killed, kills = context_at(tmp_path / "killed"), 0
    while True:
        # What was killed before a write comes to that write again.
        left[0] = 0 if when == "after" else min(kills, 1)
        try:
            again = grown(killed, growth, recipe)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= growth.steps + epochs - 1  # of all epochs but the last
    assert again == told
    assert told_by_epoch(killed) == told_by_epoch(context)
    once = weights(context)
    assert all(torch.equal(once[name], tensor) for name, tensor in weights(killed).items())


def test_a_pause_of_a_growing_child_changes_nothing(tmp_path):
    context = context_at(tmp_path / "whole")
    told = grown(context)
    paused, pauses = context_at(tmp_path / "paused"), 0
    paused.ends = 0.0
    while True:
        try:
            again = grown(paused)
            break
        except loop.PausedError:
            pauses += 1
    assert pauses >= 4
    assert again == told
    once = weights(context)
    assert all(torch.equal(once[name], tensor) for name, tensor in weights(paused).items())


def test_a_measured_growth_counts_what_it_measured(tmp_path, monkeypatch):
    real, sizes, measured = Grow.step, [], []

    def step(self: Grow, *arguments: Any) -> Any:
        child, macs = real(self, *arguments)
        sizes.append(macs_of(child.network))
        measured.append(macs)
        return child, macs

    monkeypatch.setattr(Grow, "step", step)
    context = context_at(tmp_path)
    told = grown(context, Grow(3.0, "measured", 2), RECIPE.model_copy(update={"epochs": 4}))
    assert sizes[0] < sizes[1] == told["points"][0]["macs"]
    assert min(measured) > IMAGES * sizes[0]
    training = 3 * IMAGES * (1 * sizes[0] + 3 * sizes[1])
    assert told["train_macs"] == training + sum(measured)
    taken = told_by_epoch(context)
    assert taken[0] == measured[0] + 3 * IMAGES * sizes[0]
    assert taken[1] == taken[0] + measured[1] + 3 * IMAGES * sizes[1]
    assert taken[-1] == told["train_macs"]


def test_a_growing_child_that_diverges_leaves_what_it_took(tmp_path, monkeypatch):
    """The epoch in vain counts, of the network it was trained with."""
    real = loop._epoch

    def epoch(*arguments: Any, **named: Any) -> float:
        mean = real(*arguments, **named)
        return float("nan") if arguments[5] == 2 else mean

    monkeypatch.setattr(loop, "_epoch", epoch)
    context = context_at(tmp_path)
    with pytest.raises(FloatingPointError, match="epoch 3"):
        grown(context)
    first, second, _ = (3 * IMAGES * stage.macs for stage in stages(PARENT))
    assert told_by_epoch(context) == [first, first + second, first + 2 * second]


def test_a_moving_average_begins_after_the_last_step(tmp_path):
    plain, averaged = context_at(tmp_path / "plain"), context_at(tmp_path / "averaged")
    grown(plain)
    grown(averaged, GROWTH, RECIPE.model_copy(update={"ema": 0.9}))
    begun = [checkpoint.read_training(c.checkpoint_of("e0000/grown")) for c in (plain, averaged)]
    assert begun[0] is not None
    assert begun[1] is not None
    assert all(torch.equal(begun[1]["model"][n], t) for n, t in begun[0]["model"].items())
    assert not torch.equal(weights(plain)["conv1.conv.weight"],
                           weights(averaged)["conv1.conv.weight"])  # fmt: skip


def test_kernels_in_a_form_are_collapsed_grown_and_expanded_again(tmp_path):
    context = context_at(tmp_path)
    told = grown(context, GROWTH, RECIPE, Reform("kflo:2x2"))
    assert {p["macs"] for p in told["points"]} == {stages(PARENT)[-1].macs}
    plain = sum(
        3 * IMAGES * (end - begin) * stage.macs
        for stage, (begin, end) in zip(stages(PARENT), [(0, 1), (1, 3), (3, 8)], strict=True)
    )
    assert told["train_macs"] > plain
    assert not any("parametrizations" in name for name in weights(context))


def test_no_edit_but_a_form_follows_a_growth_in_steps():
    assert growth_of([Shrink(0.5), GROWTH, Reform("plain")]) == ([Shrink(0.5)], GROWTH)
    assert growth_of([Grow(2.0), Shrink(0.5)]) == ([Grow(2.0), Shrink(0.5)], None)
    with pytest.raises(EditError, match="no edit follows"):
        growth_of([GROWTH, Shrink(0.5)])
