"""Planting by whole searches: shares, what rounds accept, kills at each stage, what is kept."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn

import planter
from planter import Architecture, cost
from planter.driver.backends import local
from planter.driver.progress import Progress
from planter.driver.proposers import planting as rounds_module
from planter.driver.tasks import context as context_module
from planter.driver.tasks.context import Context

# With this seed nearly every plant, merged network and fine-tuning lowers the loss.
GROW = """
name: grow
seed: 2
data: {name: digits, subset: 240, validation: 0.3}
teacher: {builder: convnet, widths: 8, recipe: {epochs: 25, batch: 20, optimizer: adam, lr: 0.01,
  schedule: onecycle, weight_decay: 0.0}}
recipe: {epochs: 12, batch: 20, optimizer: adam, lr: 0.01, schedule: onecycle, weight_decay: 0.0}
plant:
  start: 4
  channels: 2
  rounds: 2
  layers: [conv1, conv3]
  recipe: {epochs: 3, batch: 20, optimizer: adam, lr: 0.02, weight_decay: 0.0}
resources: {workers: 0}
"""
FINETUNE = "{epochs: 2, batch: 20, optimizer: adam, lr: 0.003}"
NO_TEACHER = [
    "teacher=null",
    "plant.builder=convnet",
    "plant.kd_weight=0.0",
    "plant.ce_weight=1.0",
    "objectives.macs_reference=1.0e+6",
]
START = {**dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5"), 4), "fc1": 128}
Row = dict[str, Any]


def make_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of this file; runs beside it share its trained teacher."""
    file = tmp_path_factory.mktemp("planting") / "grow.yaml"
    file.write_text(GROW)
    return file


study_file = pytest.fixture(scope="module")(make_study)


def new_run(study_file: Path, request: pytest.FixtureRequest) -> Path:
    """A new run folder beside the study's others."""
    return study_file.parent / f"run{len(list(study_file.parent.iterdir())):03d}"


run = pytest.fixture(new_run)


def log_of(run: Path) -> list[Row]:
    """planting.csv with its numbers read, without the seconds."""
    rows = []
    for row in csv.DictReader((run / "planting.csv").read_text().splitlines()):
        widths = {name: int(w) for name, w in (w.split("=") for w in row["widths"].split())}
        rows.append(
            {
                "id": f"p{int(row['round']):02d}-{row['layer']}",
                "round": int(row["round"]),
                "layer": row["layer"],
                "channels": int(row["channels"]),
                "accepted": row["accepted"] == "True",
                "widths": widths,
                "params": int(row["params"]),
                "macs": int(row["macs"]),
                "val_loss": float(row["val_loss"]),
                "val_accuracy": float(row["val_accuracy"]),
            }
        )
    return rows


def books(run: Path) -> dict[str, optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{run / 'study.db'}"
    rows = optuna.load_study(study_name="grow/planting", storage=storage).get_trials()
    return {row.user_attrs["id"]: row for row in rows}


def result(run: Path, name: str) -> dict[str, Any]:
    return json.loads(books(run)[name].user_attrs["result"])


def state_of(run: Path, name: str) -> dict[str, Tensor]:
    return dict(planter.load(run / "models" / name / "base").state_dict())


def block(tensor: Tensor, shape: Iterable[int]) -> Tensor:
    return tensor[tuple(map(slice, shape))]


def shift_losses(patch: pytest.MonkeyPatch, by: Mapping[str, float]) -> None:
    """Lets trials report another validation loss than they have, so that a case comes about."""
    outcome = Context.outcome

    def shifted(self: Context, trial: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = outcome(self, trial, *args, **kwargs)
        found["points"][0]["loss"] += by.get(trial, 0.0)
        return found

    patch.setattr(Context, "outcome", shifted)


def widened(before: Mapping[str, int], after: Mapping[str, int]) -> set[str]:
    return {name for name in before if after[name] != before[name]}


# How many workers there are


AUGMENTED = [
    "plant.layers=[conv1, conv2, conv3]",
    "plant.per_round=2",
    "plant.recipe.augment={crop: 1, flip: true}",
]
VIEWS = [
    *AUGMENTED[:2],
    "plant.recipe.augment={crop: 1, views: 3}",
    f"plant.finetune={FINETUNE[:-1]}, augment: {{crop: 1, views: 3}}}}",
]


def same_books(run: Path, other: Path) -> None:
    assert log_of(run) == log_of(other)
    whole, dealt = (
        {name: json.loads(row.user_attrs["result"]) for name, row in books(r).items()}
        for r in (run, other)
    )
    for found in (*whole.values(), *dealt.values()):
        for fields in (found, *found["points"]):
            fields.pop("seconds", None)
    assert whole == dealt


def test_rounds_are_the_same_however_many_workers_share_them(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shares as several workers get them, trained one after another in this process.
    monkeypatch.setattr(
        "planter.driver.backends.ray_session.run_on_ray",
        lambda context, queue, workers, address: local.run_here(context, queue),
    )
    planter.search(study_file, out=run, overrides=AUGMENTED)
    assert sum(row["accepted"] for row in log_of(run)) > 1
    assert {row["layer"] for row in log_of(run)} >= {"start", "conv1", "conv2", "conv3", "grown"}
    for workers in (1, 2, 3):
        shares: list[list[str]] = []

        def note(progress: Progress, shares: list[list[str]] = shares) -> None:
            if progress.event.startswith("p01-conv") and progress.kind == "start":
                shares.append(progress.event.removesuffix(" starts").split(", "))

        other = run.with_name(f"{run.name}-{workers}")
        more = [*AUGMENTED, f"resources.workers={workers}"]
        planter.search(study_file, out=other, overrides=more, observe=note)
        assert len(shares) == workers
        same_books(run, other)


def test_rounds_are_the_same_on_ray(study_file: Path, run: Path) -> None:
    planter.search(study_file, out=run, overrides=VIEWS)
    assert {row["layer"] for row in log_of(run)} >= {"conv1", "conv2", "conv3", "grown"}
    for workers in (2, 3):
        other = run.with_name(f"{run.name}-{workers}")
        # In a process of its own, as the command does.
        command = [sys.executable, "-c", "from planter.cli import main; main()", "search"]
        command += [str(study_file), "--out", str(other), "--workers", str(workers)]
        for override in VIEWS:
            command += ["--set", override]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        same_books(run, other)


TWICE = """
import sys, planter
for out in ("first", "second"):
    planter.search(sys.argv[1], out=f"{sys.argv[2]}/{out}", overrides=sys.argv[3:])
"""


def test_one_process_may_search_on_ray_twice(study_file: Path, run: Path) -> None:
    lean = ["plant=null", "teacher=null", "baselines=[{builder: convnet, widths: 2}]"]
    command = [sys.executable, "-c", TWICE, str(study_file), str(run), *lean, "recipe.epochs=1"]
    command += ["resources.workers=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert points_of(run / "first") == points_of(run / "second")


# What a round accepts


def assert_rule(rows: Sequence[Row], accept: str, per_round: int, *, finetune: bool) -> None:
    """The rule of acceptance, by brute force over the rows of planting.csv."""
    (parent,) = [row for row in rows if row["layer"] == "start"]
    assert parent["accepted"]
    for number in sorted({row["round"] for row in rows if row["layer"] != "final"} - {0}):
        round_ = [row for row in rows if row["round"] == number]
        single = [row for row in round_ if row["layer"] not in ("grown", "final")]
        better = [row for row in single if row["val_loss"] < parent["val_loss"]]
        if accept == "loss":
            better.sort(key=lambda row: row["val_loss"])
        else:
            what = "macs" if accept == "loss_per_mac" else "params"
            fall = {row["id"]: parent["val_loss"] - row["val_loss"] for row in better}
            more = {row["id"]: row[what] - parent[what] for row in better}
            better.sort(key=lambda row: -fall[row["id"]] / more[row["id"]])
        chosen = better[:per_round] or (
            [min(single, key=lambda row: row["val_loss"])] if finetune else []
        )
        expected = better[0] if better else None
        grown = [row for row in round_ if row["layer"] == "grown"]
        assert len(grown) == int(len(chosen) > 1 or (finetune and bool(chosen)))
        if grown:
            widths = dict(parent["widths"])
            for row in chosen:
                for name in widened(parent["widths"], row["widths"]):
                    widths[name] = row["widths"][name]
            assert grown[0]["widths"] == widths
            if grown[0]["val_loss"] < (expected or parent)["val_loss"]:
                expected = grown[0]
        assert [row for row in [*single, *grown] if row["accepted"]] == (
            [] if expected is None else [expected]
        )
        parent = expected or parent
    for row in rows:
        if row["layer"] == "final":
            assert row["accepted"] == (row["val_loss"] < parent["val_loss"])
            assert row["widths"] == parent["widths"]


@pytest.mark.parametrize(
    ("accept", "per_round", "finetune"),
    [("loss", 1, False), ("loss_per_mac", 2, False), ("loss_per_param", 1, True)],
)
def test_planting_csv_follows_the_rule_of_each_setting(
    study_file: Path, run: Path, accept: str, per_round: int, finetune: bool
) -> None:
    overrides = [
        f"plant.accept={accept}",
        f"plant.per_round={per_round}",
        f"plant.finetune={FINETUNE if finetune else 'null'}",
        f"plant.final={FINETUNE if finetune else 'null'}",
    ]
    front = planter.search(study_file, out=run, overrides=overrides)
    rows = log_of(run)
    assert_rule(rows, accept, per_round, finetune=finetune)
    assert any(row["accepted"] for row in rows if row["round"])
    assert ("final" in {row["layer"] for row in rows}) == finetune
    for row in rows:
        counted = cost(Architecture("convnet", row["widths"], {"image": [1, 8, 8]}))
        assert (row["macs"], row["params"]) == (counted.macs, counted.params)
    planted = [point for point in front["points"] if point["method"] == "plant"]
    assert sorted(point["trial"] for point in planted) == sorted(row["id"] for row in rows)


def test_a_grown_network_holds_each_plants_slices_bit_for_bit(study_file: Path, run: Path) -> None:
    overrides = ["plant.layers=[conv1, conv2, conv5]", "plant.per_round=3", "plant.rounds=1"]
    planter.search(study_file, out=run, overrides=[*overrides, "keep=all"])
    plants = books(run)["p01-grown"].user_attrs["plants"]
    assert len(plants) > 1
    parent, grown = state_of(run, "p00-start"), state_of(run, "p01-grown")
    # Where no plant has put anything, there is nothing: a plant does not read another's channels.
    expected = {name: torch.zeros_like(tensor) for name, tensor in grown.items()}
    for state in (parent, *(state_of(run, name) for name in plants)):
        for name, tensor in state.items():
            block(expected[name], tensor.shape).copy_(tensor)
    for name, tensor in grown.items():
        assert torch.equal(tensor, expected[name]), name
    losses = {row["id"]: row["val_loss"] for row in log_of(run)}
    best = min(losses[name] for name in plants)
    accepted = {row["id"]: row["accepted"] for row in log_of(run)}
    assert accepted["p01-grown"] == (losses["p01-grown"] < best)


def test_plants_move_nothing_of_their_parent_and_finetuning_moves_all_of_it(
    study_file: Path, run: Path
) -> None:
    overrides = ["plant.rounds=1", "keep=all", f"plant.finetune={FINETUNE}"]
    planter.search(study_file, out=run, overrides=overrides)
    parent = state_of(run, "p00-start")
    for name in ("p01-conv1", "p01-conv3"):
        for key, tensor in state_of(run, name).items():
            assert torch.equal(block(tensor, parent[key].shape), parent[key])
    grown = state_of(run, "p01-grown")
    for key, tensor in parent.items():
        assert not torch.equal(block(grown[key], tensor.shape), tensor), key
    (plant,) = books(run)["p01-grown"].user_attrs["plants"]
    for key, tensor in state_of(run, plant).items():
        assert tensor.shape == grown[key].shape
        if tensor.shape != parent[key].shape:
            assert not torch.equal(tensor, grown[key]), key
    # Its training is counted whole: three passes of two epochs over the images.
    images = len(planter.load_data(run).train)
    (point,) = result(run, "p01-grown")["points"]
    assert result(run, "p01-grown")["train_macs"] == 3 * 2 * images * point["macs"]


def test_finetuning_is_tried_where_no_plant_improves(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_losses(monkeypatch, {"p01-conv1": 100.0, "p01-conv3": 50.0, "p01-grown": -1.0})
    overrides = ["plant.rounds=1", f"plant.finetune={FINETUNE}"]
    planter.search(study_file, out=run, overrides=overrides)
    rows = {row["id"]: row for row in log_of(run)}
    assert books(run)["p01-grown"].user_attrs["plants"] == ["p01-conv3"]
    assert rows["p01-grown"]["val_loss"] < rows["p00-start"]["val_loss"]
    assert [name for name, row in rows.items() if row["accepted"]] == ["p00-start", "p01-grown"]


def test_patience_tries_the_same_parent_again_with_other_draws(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(losses: Mapping[str, float], bar: float, *_: Any, **__: Any) -> list[str]:
        return sorted(losses) if math.isinf(bar) else []

    monkeypatch.setattr(rounds_module, "accept", never)
    told: list[str] = []
    overrides = ["plant.rounds=7", "plant.patience=1", "plant.layers=[conv1]", "keep=all"]
    planter.search(study_file, out=run, overrides=overrides, observe=lambda p: told.append(p.event))
    assert [row["id"] for row in log_of(run)] == ["p00-start", "p01-conv1", "p02-conv1"]
    assert {row.user_attrs["parent"] for row in books(run).values()} == {None, "p00-start"}
    first, second = state_of(run, "p01-conv1"), state_of(run, "p02-conv1")
    assert not torch.equal(first["conv1.conv.weight"][4:], second["conv1.conv.weight"][4:])
    assert [event for event in told if "no candidate improves" in event] == [
        "planting round 1: no candidate improves",
        "planting round 2: no candidate improves, planting ends",
    ]


@pytest.mark.parametrize(
    ("key", "measure"), [("plant.bounds.macs", "macs"), ("objectives.bounds.params", "params")]
)
def test_growth_stops_at_a_bound_and_what_is_merged_keeps_it(
    study_file: Path, run: Path, key: str, measure: str
) -> None:
    def of(**more: int) -> int:
        widths = {name: width + more.get(name, 0) for name, width in START.items()}
        return int(getattr(cost(Architecture("convnet", widths, {"image": [1, 8, 8]})), measure))

    # Room for either layer's plant and not for both, nor for a second of one layer.
    limit = max(of(conv3=2), of(conv4=2)) + 10
    assert limit < min(of(conv3=2, conv4=2), of(conv3=4), of(conv4=4))
    layers = "plant.layers=[conv3, conv4]"
    overrides = [layers, "plant.rounds=6", "plant.per_round=2", f"{key}={limit}"]
    front = planter.search(study_file, out=run, overrides=overrides)
    planted = [point for point in front["points"] if point["method"] == "plant"]
    assert {row["id"] for row in log_of(run)} == {"p00-start", "p01-conv3", "p01-conv4"}
    assert all(point[measure] <= limit for point in planted)
    # The candidates of round 2 are refused before any training, with what they are beyond.
    refused = [row for row in books(run).values() if row.state.name == "PRUNED"]
    assert {row.user_attrs["id"] for row in refused} == {"p02-conv3", "p02-conv4"}
    for row in refused:
        (miss,) = [v for k, v in row.system_attrs.items() if k.startswith("constraints")]
        assert max(miss if isinstance(miss, list) else [miss]) > 0


def points_of(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "pareto.json").read_text())["points"])


# The optimiser of a grown network


def test_a_grown_networks_optimiser_is_inherited_by_the_next_finetuning(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = context_module.fit
    began: dict[str, dict[str, dict[str, Tensor]]] = {}
    kept: dict[tuple[str, str], dict[str, Any]] = {}

    def watched(network: nn.Module, *args: Any, **options: Any) -> nn.Module:
        optimizer = options["optimizer"]
        names = {id(p): name for name, p in network.named_parameters()}
        trial = options["checkpoint"].parent.name
        began[trial] = {
            names[id(p)]: {key: value.clone() for key, value in state.items()}
            for p, state in optimizer.state.items()
        }
        for file in run.glob("trials/*/optimizer.pt"):
            kept[file.parent.name, trial] = torch.load(file, weights_only=True)
        return fit(network, *args, **options)

    monkeypatch.setattr(context_module, "fit", watched)
    shift_losses(monkeypatch, {"p01-grown": -1.0})
    accept = ["plant.finetune={epochs: 3, batch: 20, optimizer: adam, lr: 0.01}"]
    planter.search(study_file, out=run, overrides=[*accept, "plant.rounds=2", "keep=all"])
    assert [row["id"] for row in log_of(run) if row["accepted"]][:2] == ["p00-start", "p01-grown"]
    images = len(planter.load_data(run).train)
    steps = math.ceil(images / 20) * 12
    for ancestor, trial in (("p00-start", "p01-grown"), ("p01-grown", "p02-grown")):
        file = kept[ancestor, trial]
        assert file["optimizer"] == "adam"
        old = file["state"]
        before, after = state_of(run, ancestor), state_of(run, trial)
        assert set(began[trial]) == set(before)
        for name, state in began[trial].items():
            assert float(state["step"]) == steps
            for moment in ("exp_avg", "exp_avg_sq"):
                assert old[name][moment].shape == before[name].shape
                expected = torch.zeros_like(after[name])
                block(expected, before[name].shape).copy_(old[name][moment])
                assert torch.equal(state[moment], expected), (name, moment)
        steps += math.ceil(images / 20) * 3
    assert any(bool(state["exp_avg"].any()) for state in began["p02-grown"].values())


@pytest.mark.parametrize(
    ("finetune", "final"), [("sgd", "adam"), ("adam", "sgd"), ("adamw", "adam")]
)
def test_the_last_training_may_have_another_optimiser_than_the_rounds(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch, finetune: str, final: str
) -> None:
    shift_losses(monkeypatch, {"p01-grown": -1.0})
    recipe = "{{epochs: 1, batch: 20, optimizer: {}, lr: 0.003}}"
    overrides = [
        f"plant.finetune={recipe.format(finetune)}",
        f"plant.final={recipe.format(final)}",
        "plant.rounds=1",
        "plant.layers=[conv1]",
        *NO_TEACHER,
    ]
    planter.search(study_file, out=run, overrides=overrides)
    assert [row["id"] for row in log_of(run) if row["accepted"]][1] == "p01-grown"
    found = books(run)["p02-final"]
    assert found.state.name == "COMPLETE", json.loads(found.user_attrs["result"])
