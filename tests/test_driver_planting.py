"""Planting by whole searches: shares, what rounds accept, kills at each stage, what is kept."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn

import planter
from planter import Architecture, cost, fast_round, train
from planter.driver.backends import local
from planter.driver.checking.check import prepare
from planter.driver.proposers import planting as rounds_module
from planter.driver.run import Progress
from planter.driver.tasks import context as context_module
from planter.driver.tasks import planting_step
from planter.driver.tasks.context import Context
from planter.planting import channels_to_plant
from planter.study import StudyError
from planter.study_file import read_study

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


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of this file; runs beside it share its trained teacher."""
    file = tmp_path_factory.mktemp("planting") / "grow.yaml"
    file.write_text(GROW)
    return file


@pytest.fixture
def run(study_file: Path, request: pytest.FixtureRequest) -> Path:
    """A new run folder beside the study's others."""
    return study_file.parent / f"run{len(list(study_file.parent.iterdir())):03d}"


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
        (["plant.recipe.augment={views: 3}"], "plant.recipe.augment", "none of crop, flip is set"),
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


# Kills, and going on


EVERYTHING = [
    "plant.layers=[conv1, conv2, conv3]",
    "plant.per_round=2",
    "plant.kernels=kflo:2x2",
    f"plant.finetune={FINETUNE[:-1]}, augment: {{crop: 1, views: 2}}}}",
    "plant.final={epochs: 3, batch: 20, optimizer: sgd, lr: 0.003}",
]
STAGES = ["teacher", "p00-start", "p01-conv1", "p01-grown", "p02-conv1", "p02-grown", "p03-final"]


@pytest.fixture(scope="module")
def whole(study_file: Path) -> Path:
    """What the study with every stage finds when nothing interrupts it."""
    run = study_file.parent / "whole"
    planter.search(study_file, out=run, overrides=EVERYTHING)
    rows = {row["id"] for row in log_of(run)}
    assert {name for name in rows if "grown" in name} == {"p01-grown", "p02-grown"}
    assert "p03-final" in rows
    return run


def points_of(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "pareto.json").read_text())["points"])


def test_a_kill_before_and_after_every_job_changes_nothing(
    study_file: Path, whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = local.run_job
    left = [(name, when) for name in STAGES for when in ("before", "after")]

    def killed(self: Context, job: Any) -> Any:
        if (job.id, "before") in left:
            left.remove((job.id, "before"))
            raise KeyboardInterrupt
        outcome = do(self, job)
        if (job.id, "after") in left:
            left.remove((job.id, "after"))
            raise KeyboardInterrupt
        return outcome

    monkeypatch.setattr(local, "run_job", killed)
    for _ in range(len(left)):
        with pytest.raises(KeyboardInterrupt):
            planter.search(study_file, out=run, overrides=EVERYTHING)
    assert left == []
    planter.search(study_file, out=run, overrides=EVERYTHING)
    same_books(whole, run)
    assert points_of(run) == points_of(whole)


def test_a_training_of_any_stage_cut_off_in_the_middle_goes_on_from_its_last_epoch(
    study_file: Path, whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", -1.0)
    monkeypatch.setattr(fast_round, "_CHECKPOINT_EVERY_S", -1.0)
    metrics, end_epoch = Context.metrics, fast_round._Student.end_epoch
    left = {name: 2 for name in STAGES if "conv" not in name and name != "teacher"}
    rounds = [1, 2]

    def cut_off(self: Context, trial: str) -> Callable[[Any], None]:
        note = metrics(self, trial)

        def noted(epoch: Any) -> None:
            note(epoch)
            if left.get(trial) == epoch.epoch:
                del left[trial]
                raise KeyboardInterrupt

        return noted

    def cut_off_plants(self: Any, epoch: int, *args: Any) -> None:
        if epoch == 1 and rounds and (run / "trials" / f"p{rounds[0]:02d}-conv1").is_dir():
            rounds.pop(0)
            raise KeyboardInterrupt
        end_epoch(self, epoch, *args)

    monkeypatch.setattr(Context, "metrics", cut_off)
    monkeypatch.setattr(fast_round._Student, "end_epoch", cut_off_plants)
    stages = len(left) + len(rounds)
    for _ in range(stages):
        with pytest.raises(KeyboardInterrupt):
            planter.search(study_file, out=run, overrides=EVERYTHING)
    assert (left, rounds) == ({}, [])
    planter.search(study_file, out=run, overrides=EVERYTHING)
    same_books(whole, run)
    for name in STAGES[1:]:
        assert "taken up after epoch 1" in (run / "trials" / name / "log.txt").read_text(), name
    assert not list(run.rglob("checkpoint*.pt"))


def test_more_rounds_go_on_from_the_last_network_of_the_rounds(
    study_file: Path, whole: Path, run: Path
) -> None:
    planter.search(study_file, out=run, overrides=[*EVERYTHING, "plant.rounds=1"])
    one = log_of(run)
    assert one[-1]["id"] == "p02-final"
    assert one[-1]["accepted"], "no subject: an end that is accepted"
    planter.search(study_file, out=run, overrides=EVERYTHING)
    last = [row for row in one if row["accepted"]][-2]
    assert books(run)["p02-conv1"].user_attrs["parent"] == last["id"]
    # But for the first end, all is as if two rounds had been asked for at once.
    assert [row for row in log_of(run) if row["id"] != "p02-final"] == log_of(whole)
    assert one[-1] in log_of(run)


def test_changed_acceptance_settings_hold_for_new_rounds_alone(study_file: Path, run: Path) -> None:
    first = ["plant.rounds=1", "plant.layers=[conv1, conv5]"]
    planter.search(study_file, out=run, overrides=first)
    before = log_of(run)
    second = ["plant.rounds=2", first[1], "plant.accept=loss_per_mac", "plant.per_round=2"]
    more = [*second, f"plant.finetune={FINETUNE}"]
    planter.search(study_file, out=run, overrides=more, accept_changes=True)
    after = log_of(run)
    assert after[: len(before)] == before
    assert {row["round"] for row in after[len(before) :]} == {2}
    assert "p02-grown" in {row["id"] for row in after}
    assert "p01-grown" not in books(run)


def test_models_are_kept_as_long_as_planting_reads_them(study_file: Path, run: Path) -> None:
    """After each step: the front, the teacher, the last accepted, the open round and its parent."""
    seen = []

    def look(progress: Progress) -> None:
        if progress.kind != "done":
            return
        there = {f"{f.parent.name}/{f.name}" for f in (run / "models").glob("*/*") if f.is_dir()}
        rows = books(run)
        opened = {n for n, row in rows.items() if "result" in row.user_attrs}
        opened = {n for n in opened if not rows[n].state.is_finished()}
        # Of a share that is booked trial by trial some may be there that are not booked yet.
        waiting = {n for n, row in rows.items() if not row.state.is_finished()}
        accepted = [n for n, row in rows.items() if row.user_attrs.get("accepted")]
        parents = {rows[n].user_attrs["parent"] for n in waiting} - {None}
        front = {point.id for point in progress.front}
        must = front | {f"{n}/base" for n in opened | parents | set(accepted[-1:])}
        assert must <= there
        may = must | {"teacher/base"} | {f"{n}/base" for n in waiting}
        if accepted:
            rounds = [n for n in accepted if not n.endswith("final")]
            may |= {f"{rounds[-1]}/base"}
        assert there <= may, progress.event
        seen.append(len(there))

    front = planter.search(study_file, out=run, overrides=EVERYTHING, observe=look)
    assert len(seen) == 1 + 1 + 3 + 1 + 3 + 1 + 1
    rows = log_of(run)
    accepted = [row["id"] for row in rows if row["accepted"]]
    kept = {point["trial"] for point in front["points"] if point["model"]}
    wanted = {point["trial"] for point in front["points"] if point["on_front"]}
    wanted |= {"teacher", accepted[-1], [n for n in accepted if "final" not in n][-1]}
    assert kept == wanted
    assert len(kept) < len(front["points"])


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
