"""Planting in widths inside the blocks of a network: plants, merging, whole searches."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import fill_, images
from torch import Tensor, nn

import planter
from planter.arch import Architecture
from planter.backbones import canonical, free_widths, with_data_options
from planter.driver.tasks.context import Context
from planter.networks.assembly import build_network
from planter.planting.plants import merge, plant
from planter.plots import growth_figure
from planter.study.schema import StudyError

WIDTHS = {"stem": 3, "group1": 3, "group2": 4, "group3": 5}
OPTIONS: dict[str, dict[str, Any]] = {
    "resnet": {"depth": 8},
    "resnet18": {},
    "wrn": {"depth": 10, "widen": 1},
}


def parent_of(builder: str, **inner: int) -> tuple[Architecture, nn.Module]:
    last = {"group4": 6} if builder == "resnet18" else {}
    plain = Architecture(builder, {**WIDTHS, **last, **inner}, OPTIONS[builder])
    arch = with_data_options(plain, 4, (3, 8, 8))
    return arch, fill_(build_network(arch)).eval()


def block(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor[tuple(slice(n) for n in like.shape)]


@pytest.mark.parametrize("builder", OPTIONS)
@pytest.mark.parametrize("start", ["zero outgoing", "zero filters"])
def test_a_plant_in_any_inner_width_keeps_the_function_and_every_weight(
    builder: str, start: str
) -> None:
    arch, parent = parent_of(builder)
    first = "zero" if start == "zero filters" else "random"
    outgoing = "random" if start == "zero filters" else "zero"
    x = images(5, (3, 8, 8)).float()
    inner = [name for name in free_widths(arch) if "." in name]
    assert len(inner) == (8 if builder == "resnet18" else 3)
    for name in inner:
        wider, child = plant(arch, parent, name, 2, seed=1, filters=first, outgoing=outgoing)
        assert wider.widths == {**arch.widths, name: arch.width(name) + 2}
        old, new = parent.state_dict(), child.state_dict()
        for key, tensor in old.items():
            assert torch.equal(block(new[key], tensor), tensor), key
        changed = {key for key in old if new[key].shape != old[key].shape}
        stage = name.partition(".")[0]
        norm = "norm2" if builder == "wrn" else "norm1"
        leaves = ("weight", "bias", "running_mean", "running_var")
        expected = {f"{stage}.conv1.weight", f"{stage}.conv2.weight"}
        assert changed == expected | {f"{stage}.{norm}.{leaf}" for leaf in leaves}
        with torch.no_grad():
            found, before = child.eval().double()(x.double()), parent.double()(x.double())
        torch.testing.assert_close(found, before, rtol=1e-12, atol=1e-12)  # orders of sums
        parent.float()


def test_plants_of_owner_and_given_inner_width_merge_in_any_order() -> None:
    """Of a user's own or of a residual network: shapes alone, as the owner's plant changes what
    the network computes."""
    arch, parent = parent_of("wrn", **{"group1_1.conv1": 5})
    layers = {"group1": 2, "group1_1.conv1": 1, "group2_1.conv1": 3}
    plants = {
        layer: plant(arch, parent, layer, more, seed=2, outgoing="random")
        for layer, more in layers.items()
    }
    # As wide as its owner now, the inner width is not named, and is none the less merged.
    assert plants["group1"][0].widths == {**WIDTHS, "group1": 5}
    expected = {**WIDTHS, "group1": 5, "group1_1.conv1": 6, "group2_1.conv1": 7}
    states = []
    for order in permutations(layers):
        wider, network = merge(arch, parent, [plants[layer] for layer in order])
        assert wider.widths == expected
        states.append(network.state_dict())
        for layer in ("group1_1.conv1", "group2_1.conv1"):
            key = f"{layer}.weight"
            own = plants[layer][1].state_dict()[key]
            assert torch.equal(block(states[-1][key], own), own)
    for state in states[1:]:
        assert all(torch.equal(state[key], states[0][key]) for key in state)


def test_plants_in_one_place_are_not_merged() -> None:
    arch, parent = parent_of("wrn")
    plants = [
        plant(arch, parent, layer, 2, seed=2, outgoing="random")
        for layer in ("group1_1.conv1", "group1")
    ]
    with pytest.raises(ValueError, match=r"plants in group1_1\.conv1 and group1 cannot be merged"):
        merge(arch, parent, plants)
    assert arch.overlap("group1", "group1_1.conv1")
    for pair in (("group1_1.conv1", "group2_1.conv1"), ("group1", "group2_1.conv1"),
                 ("group1", "group2"), ("group1", "group1")):  # fmt: skip
        assert not arch.overlap(*pair)
    given, _ = plants[0]
    assert not given.overlap("group1", "group1_1.conv1")


# Whole searches

STUDY = """
name: inner
seed: 1
data: {name: digits, subset: 160, validation: 0.25}
recipe: {epochs: 1, batch: 20, optimizer: adam, lr: 0.01, schedule: constant, weight_decay: 0.0}
baselines:
  - {builder: resnet, options: {depth: 8}, widths: {stem: 4, group1: 4, group2: 4, group3: 4,
     group1_1.conv1: 2}}
  - {builder: resnet, options: {depth: 8}, widths: {stem: 4, group1: 4, group2: 4, group3: 4,
     group2_1.conv1: 2, group1_1.conv1: 4}}
plant:
  builder: resnet
  options: {depth: 8}
  start: 4
  channels: 2
  rounds: 2
  kd_weight: 0.0
  ce_weight: 1.0
  layers: [group1_1.conv1, group3_1.conv1]
  per_round: 2
  recipe: {epochs: 1, batch: 20, optimizer: adam, lr: 0.01, weight_decay: 0.0}
sample: {space: "SPACE:space", trials: 1, sampler: random}
objectives: {macs_reference: 1.0e+6}
keep: all
resources: {workers: 0, max_failures: 0}
"""
SPACE = """
from planter import Architecture, Candidate

def space(trial):
    inner = trial.suggest_int("inner", 3, 3)
    widths = {"stem": 4, "group1": 4, "group2": 4, "group3": 4, "group1_1.conv1": inner}
    return Candidate(Architecture("resnet", widths, {"depth": 8}),
                     plants=[("group1_1.conv1", 1), ("group2_1.conv1", 2)],
                     plant_recipe={"epochs": 1})
"""
FOUR = dict.fromkeys(("stem", "group1", "group2", "group3"), 4)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "space.py").write_text(SPACE)
    file = tmp_path / "inner.yaml"
    file.write_text(STUDY.replace("SPACE", str(tmp_path / "space.py")))
    return file


def better(patch: pytest.MonkeyPatch, by: Mapping[str, float]) -> None:
    """Lets trials report another validation loss than they have, so that a case comes about."""
    outcome = Context.outcome

    def shifted(self: Context, trial: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = outcome(self, trial, *args, **kwargs)
        found["points"][0]["loss"] -= by.get(trial, 0.0)
        return found

    patch.setattr(Context, "outcome", shifted)


def table(run: Path) -> dict[str, dict[str, Any]]:
    """planting.csv by id, widths read."""
    rows = {}
    for row in csv.DictReader((run / "planting.csv").read_text().splitlines()):
        widths = {name: int(w) for name, w in (w.split("=") for w in row["widths"].split())}
        rows[f"p{int(row['round']):02d}-{row['layer']}"] = {**row, "widths": widths}
    return rows


def test_a_study_plants_in_inner_widths(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = "group1_1.conv1", "group3_1.conv1"
    better(monkeypatch, {f"p01-{one}": 9.0, f"p01-{two}": 8.0, "p01-grown": 10.0})
    run = tmp_path / "run"
    front = planter.search(study, out=run)
    rows = table(run)
    assert rows["p00-start"]["widths"] == FOUR
    assert rows[f"p01-{one}"]["widths"] == {**FOUR, one: 6}
    assert rows["p01-grown"]["widths"] == {**FOUR, one: 6, two: 6}
    assert rows["p01-grown"]["accepted"] == "True"
    assert rows[f"p02-{two}"]["widths"] == {**FOUR, one: 6, two: 8}
    trials = {point["trial"]: point for point in front["points"]}
    # Named by what differs; what equals its owner is not named.
    for name, widths in {
        "b-width4-4-4-4-group1_1.conv1-2": {**FOUR, one: 2},
        "b-width4-4-4-4-group2_1.conv1-2": {**FOUR, "group2_1.conv1": 2},
        "s0000": {**FOUR, "group2_1.conv1": 6},
        f"p02-{one}": {**FOUR, one: 8, two: 6},
    }.items():
        saved = json.loads((run / "models" / name / "base" / "arch.json").read_text())
        assert saved["architecture"]["widths"] == widths
        network = planter.load(run / "models" / name / "base")
        convs = {key: network.get_submodule(key).out_channels for key in widths if "." in key}
        assert convs == {key: width for key, width in widths.items() if "." in key}
        assert trials[name]["params"] == sum(p.numel() for p in network.parameters())
    parent = planter.load(run / "models" / "p00-start" / "base").state_dict()
    child = planter.load(run / "models" / f"p01-{one}" / "base").state_dict()
    assert all(torch.equal(block(child[key], old), old) for key, old in parent.items())
    assert not torch.equal(child[f"{one}.weight"][4:], torch.zeros(2, 4, 3, 3))
    assert child["group1_1.conv2.weight"][:, 4:].any(), "what reads the plant has learned nothing"
    assert (run / "planting.html").is_file()


def test_of_plants_in_one_place_a_round_accepts_one(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = ["group1_1.conv1", "group1", "group2_1.conv1"]
    better(monkeypatch, {f"p01-{layer}": 9.0 - i for i, layer in enumerate(layers)})
    overrides = [f"plant.layers=[{', '.join(layers)}]", "plant.outgoing=random", "plant.rounds=1"]
    overrides += ["plant.per_round=3", "baselines=[]", "sample=null"]
    planter.search(study, out=tmp_path / "run", overrides=overrides)
    grown = table(tmp_path / "run")["p01-grown"]["widths"]
    assert grown == {**FOUR, "group1_1.conv1": 6, "group2_1.conv1": 6}


def test_by_default_owners_grow_and_an_unknown_inner_width_is_told(
    study: Path, tmp_path: Path
) -> None:
    plain = ["baselines=[]", "sample=null", "plant.rounds=1", "plant.outgoing=random"]
    start = "plant.start={stem: 4, group1: 4, group2: 4, group3: 4, group2_1.conv1: 6}"
    planter.search(study, out=tmp_path / "a", overrides=[*plain, start, "plant.layers=null"])
    layers = {row["layer"] for row in table(tmp_path / "a").values()} - {"start", "grown"}
    assert layers == set(FOUR)
    for missing in ([], ["data.name=folder", f"data.root={tmp_path / 'nowhere'}"]):
        with pytest.raises(StudyError) as refusal:
            planter.search(
                study,
                out=tmp_path / "b",
                overrides=[*plain, *missing, "plant.layers=[group1_2.conv1, group1]"],
            )
        told = [mistake for mistake in str(refusal.value).splitlines() if "layers" in mistake]
        assert len(told) == 1, refusal.value
        for part in ("group1_2.conv1", "stem, group1, group2, group3, and inner ones, group1_1"):
            assert part in told[0]


def test_the_growth_figure_follows_widths_that_come_and_go() -> None:
    """A plant makes the inner width 6, one in its owner as wide as that: both are drawn whole."""
    networks = [
        ("start", "group1=4 stem=3"),
        ("group1_1.conv1", "group1=4 stem=3 group1_1.conv1=6"),
        ("group1", "group1=6 stem=3"),
    ]
    rows = [
        {"round": i, "layer": layer, "channels": 2, "accepted": True, "widths": widths,
         "params": 9, "macs": 9, "val_loss": 1.0 - i / 10, "val_accuracy": 0.5, "seconds": 1.0}
        for i, (layer, widths) in enumerate(networks)
    ]  # fmt: skip
    bars = [bar for bar in growth_figure("x", rows).data if bar.type == "bar"]
    drawn = {bar.name: dict(zip(bar.y, bar.x, strict=True)) for bar in bars}
    assert drawn == {
        "at the start": {"group1": 4, "stem": 3, "group1_1.conv1": 4},
        "planted": {"group1": 2, "stem": 0, "group1_1.conv1": 2},
    }


def test_planting_until_equal_gives_the_key_of_the_plain_network() -> None:
    arch, parent = parent_of("resnet", **{"group1_1.conv1": 2})
    wider, child = plant(arch, parent, "group1_1.conv1", 1, seed=0)
    assert wider.key() == parent_of("resnet")[0].key()
    assert canonical(wider) == wider
    assert child.state_dict()["group1_1.conv1.weight"].shape[0] == 3
