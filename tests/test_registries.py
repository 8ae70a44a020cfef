"""What users add from outside, without a line of planter changed: a proposer, an objective, a
sampler, a backbone; other kinds are added in test_outside_*.py."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from typer.testing import CliRunner

import planter
from planter import Architecture
from planter.backbones import full_widths, with_data_options
from planter.cli import app
from planter.driver.outcome import SearchFailedError
from planter.driver.proposers.proposer import Notice, Proposer, SearchContext
from planter.driver.proposers.registry import PROPOSERS
from planter.driver.tasks.context import Context
from planter.driver.tasks.run_job import TASKS
from planter.driver.tasks.whole import class_loss, of_batch, train_whole
from planter.driver.trials.jobs import Job, Outcome, points_of, seed_of
from planter.front.methods import METHODS, Method
from planter.front.objectives import OBJECTIVES, Objective
from planter.networks.assembly import build_network
from planter.study.samplers import SAMPLERS
from planter.study.schema import StudyError
from planter.training.augment import Augment

STUDY = """
name: outside
data: {name: digits, subset: 120, validation: 0.25}
baselines: [{builder: toy, widths: 2}]
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01}
resources: {workers: 0, max_failures: 3}
"""

SPACE = """
from planter import Architecture, Candidate

def space(trial):
    names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    return Candidate(Architecture("convnet", dict.fromkeys(names, trial.suggest_int("w", 2, 40))))
"""


class Doubling(Proposer):
    """Proposes the toy network at widths 1, 2, 4, each after the one before; it has no book of its
    own but the points."""

    method = "double"
    kinds = representative = ("double",)

    def __init__(self, context: SearchContext) -> None:
        self._book = context.book
        self._latencies = context.latencies
        self._widths = [w for w in (1, 2, 4) if not self._book.has(f"d{w}")]
        self._running = False
        self._failed: dict[str, str] = {}
        self._told: list[Notice] = []

    def next(self) -> Job | None:
        if self._running or not self._widths:
            return None
        self._running = True
        return Job(f"d{self._widths[0]}", "double", {"width": self._widths[0]})

    def finish(self, job: Job, outcome: Outcome) -> None:
        self._running = False
        width = self._widths.pop(0)
        if "error" in outcome:
            self._failed[job.id] = outcome["error"]
            return
        self._told.append(Notice(f"doubled to {width}"))
        self._book.add(points_of(job.id, self.method, self._latencies.added(outcome)), {}, {})

    def left(self) -> int:
        return len(self._widths)

    def done(self) -> int:
        return 3 - len(self._widths)

    def failures(self) -> dict[str, str]:
        return dict(self._failed)

    def notices(self) -> list[Notice]:
        told, self._told = self._told, []
        return told


def train_doubled(context: Context, job: Job) -> Outcome:
    data, study = context.data, context.study
    architecture = with_data_options(
        Architecture("toy", full_widths("toy", job.params["width"], {})), data.classes, data.image
    )
    network = build_network(architecture, seed=seed_of(study.seed, job.id))
    loss = of_batch(class_loss())
    trained = train_whole(context, job.id, network, architecture, study.recipe, loss, guided=False)
    return context.outcome(job.id, {"base": network}, architecture, train_macs=trained.macs)


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method("doubled", "doubled trial", "#008080", "cross", searched=True)
    monkeypatch.setitem(METHODS, "double", method)
    monkeypatch.setitem(TASKS, "double", train_doubled)
    monkeypatch.setattr("planter.driver.proposers.registry.PROPOSERS", [*PROPOSERS, Doubling])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "outside.yaml"
    file.write_text(STUDY)
    return file


def test_a_proposer_from_outside_is_searched_with_shown_and_resumed(
    study: Path, doubling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = study.parent / "run", []

    def interrupted(context: Context, job: Job) -> Outcome:
        if job.id == "d4":
            raise KeyboardInterrupt
        return train_doubled(context, job)

    with monkeypatch.context() as patch:
        patch.setitem(TASKS, "double", interrupted)
        with pytest.raises(KeyboardInterrupt):
            planter.search(study, out=run)
    found = planter.search(study, out=run, observe=lambda now: told.append(now.event))
    assert {p["trial"] for p in found["points"]} == {"b-width2", "d1", "d2", "d4"}
    assert "doubled to 4" in told
    assert not any("d1" in event for event in told)  # trained before
    whole = planter.search(study, out=study.parent / "whole")
    assert whole["points"] == found["points"]
    on_front = [p for p in found["points"] if p["on_front"]]
    assert on_front
    assert {p["method"] for p in on_front} == {"double"}
    shown = CliRunner().invoke(app, ["pareto", str(run), "--html", str(run / "front.html")])
    assert shown.exit_code == 0, shown.output
    assert "d1/base" in shown.stdout  # the cheapest is on any front
    assert "doubled" in (run / "front.html").read_text()
    assert "#008080" in (run / "report.html").read_text()


def test_a_proposer_from_outside_that_fails_is_told_in_its_own_words(
    study: Path, doubling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(context: Context, job: Job) -> Outcome:
        raise RuntimeError("broken on purpose")

    monkeypatch.setitem(TASKS, "double", broken)
    with pytest.raises(SearchFailedError, match=r"every doubled trial failed \(d1: RuntimeError"):
        planter.search(study, out=study.parent / "run")


def kilobytes(score: Any, cost: Any) -> float:
    return float(4 * cost.params / 1000)


def test_an_objective_from_outside_is_measured_written_and_drawn(
    study: Path, doubling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        OBJECTIVES,
        "kilobytes",
        Objective("size (kB)", "size", lambda value: f"{value:.1f} kB", of=kilobytes),
    )
    run = study.parent / "run"
    found = planter.search(study, out=run)
    assert found["objectives"] == ["accuracy", "macs"]
    for point in found["points"]:
        assert point["kilobytes"] == 4 * point["params"] / 1000
    rows = list(csv.DictReader((run / "pareto.csv").read_text().splitlines()))
    assert [float(row["kilobytes"]) for row in rows] == [p["kilobytes"] for p in found["points"]]
    assert planter.search(study, out=run) == found  # from the database
    call = ["pareto", str(run), "--x", "kilobytes", "--html", str(run / "size.html"), "--json"]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    by_size = json.loads(shown.stdout)
    assert by_size["objectives"] == ["accuracy", "kilobytes"]
    assert "size (kB)" in (run / "size.html").read_text()
    # Parameters order the networks as kilobytes do.
    call[3] = "params"
    by_params = json.loads(CliRunner().invoke(app, call).stdout)
    fronts = [[p["id"] for p in f["points"] if p["on_front"]] for f in (by_size, by_params)]
    assert fronts[0] == fronts[1]


def test_a_sampler_from_outside_draws(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    class Watched(optuna.samplers.RandomSampler):
        def sample_independent(self, *given: Any) -> Any:
            drawn.append(1)
            return super().sample_independent(*given)

    monkeypatch.setitem(SAMPLERS, "watched", lambda seed: Watched(seed=seed))
    space = study.parent / "space.py"
    space.write_text(SPACE)
    text = f"sample={{space: '{space}:space', sampler: watched, trials: 2}}"
    found = planter.search(study, out=study.parent / "run", overrides=[text])
    assert drawn
    assert sum(point["method"] == "sample" for point in found["points"]) == 2
    with pytest.raises(StudyError, match=r"'gp'.*'tpe', 'nsgaii', 'random' or 'watched'"):
        planter.search(study, out=study.parent / "gp", overrides=[text.replace("watched", "gp")])


BACKBONE = """
from collections import OrderedDict
from torch import nn
from planter import StagedNet

def build(widths, *, classes=10, image=(3, 32, 32)):
    def stage(inputs, outputs):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    stages = OrderedDict(
        stem=stage(image[0], widths["stem"]), mid=stage(widths["stem"], widths["mid"])
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths["mid"], classes))
    return StagedNet(nn.Sequential(stages), head)

build.widths = {"stem": 4, "mid": 6}
"""
OF_BACKBONE = """
from planter import Architecture, Candidate

def space(trial):
    widths = {"stem": trial.suggest_int("stem", 3, 5), "mid": 6}
    return Candidate(Architecture("outside_nets:build", widths, {}, {"short": {"before": "mid"}}))
"""


def test_a_backbone_from_outside_is_cut_planted_exported_and_loaded(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study.parent
    monkeypatch.syspath_prepend(folder)
    (folder / "outside_nets.py").write_text(BACKBONE)
    (folder / "space.py").write_text(OF_BACKBONE)
    training = "recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01}"
    overrides = [
        "teacher={builder: 'outside_nets:build'}",
        "baselines=[{}]",
        f"plant={{start: 2, channels: 1, rounds: 1, {training}}}",
        f"sample={{space: '{folder / 'space.py'}:space', trials: 1}}",
        "keep=all",
    ]
    run = folder / "run"
    found = planter.search(study, out=run, overrides=overrides)
    assert not found["failed"]
    macs = {point["id"]: point["macs"] for point in found["points"]}
    stem = (macs["s0000/base"] - 10 * 6) // (9 * 64 + 9 * 6 * 16)
    assert 3 <= stem <= 5
    rest = 9 * stem * 6 * 16 + 10 * 6
    assert macs == {
        "teacher/base": plain_macs(4, 6),
        "b-width4-6/base": plain_macs(4, 6),
        "p00-start/base": plain_macs(2, 2),
        "p01-stem/base": plain_macs(3, 2),
        "p01-mid/base": plain_macs(2, 3),
        "s0000/base": plain_macs(stem, 6),
        "s0000/short": 4 * stem * 16 + rest,  # a convolution of 2 x 2 and stride 2 for the stem
    }
    validation = planter.load_data(run).validation
    images = validation.normalise(validation.images)
    for point in found["points"]:
        place = run / point["model"]
        with pytest.raises(ValueError, match=r"calling 'outside_nets:build'.*own_code=True"):
            planter.load(place)
        network = planter.load(place, own_code=True)
        assert planter.evaluate(network, validation).accuracy == point["accuracy"]
        if point["pipeline"] == "short":
            file = folder / "short.safetensors"
            done = CliRunner().invoke(app, ["export", f"{run}/{point['id']}", "-o", str(file)])
            assert done.exit_code == 0, done.output
            source = file.with_suffix(".py")
            assert "outside_nets" not in source.read_text()
            alone: dict[str, Any] = {"__name__": "alone", "__file__": str(source)}
            exec(compile(source.read_text(), source, "exec"), alone)
            with torch.no_grad():
                # Sums in another order, in float32.
                assert torch.allclose(alone["load"]()(images), network(images), atol=1e-5)


def plain_macs(stem: int, mid: int) -> int:
    """Of 3 x 3 kernels on maps of 8 x 8 and 4 x 4, and a linear layer to ten classes."""
    return 9 * stem * 64 + 9 * stem * mid * 16 + 10 * mid


def test_whatever_is_set_of_an_augmentation_changes_images() -> None:
    """A teacher's kept logits are right only where it does not."""

    class More(Augment):
        blur: int = 0

    assert not More().changes()
    assert More(blur=1).changes()
    assert not More(blur=1, views=3).changes()
    with pytest.raises(ValueError, match=r"neither crop, flip, blur, .* nor erasing is set"):
        More(views=3)
