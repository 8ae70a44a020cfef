"""The arena's code: its prototype of the chain, its claims, and a short run of it on digits."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import planter
from planter import Architecture
from planter.networks.assembly import build_network
from planter.study.schema import Study

ROOT = Path(__file__).resolve().parents[1]
ARENA = ROOT / "benchmarks" / "arena"
WIDTHS = {"stem": 8, "group1": 8, "group2": 12, "group3": 16}
OPTIONS = {"depth": 8, "shortcut": "conv", "classes": 10, "image": (3, 16, 16)}


@pytest.fixture
def arena(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the arena by its name; forgotten afterwards, as the names are common."""
    known = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(ARENA), *sys.path])
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def _macs(network: torch.nn.Module) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, 3, 16, 16))
    return counter.get_total_flops() // 2


def test_the_chain_first_takes_away_what_does_nothing(arena: Any) -> None:
    chain = arena("chain")
    network = build_network(Architecture("resnet", WIDTHS, OPTIONS), seed=1)
    parts = dict(network.named_modules())
    for name in ("stem.conv", "stem.norm", "group1_1.conv2", "group1_1.norm2"):
        parts[name].weight.data[5] = 0
    for name in ("group2_1.conv1", "group2_1.norm1"):
        parts[name].weight.data[3] = 0
    for name in ("group1_1.conv1", "group2_1.conv1", "group2_1.shortcut.conv"):
        parts[name].weight.data[:, 5] = 0
    parts["group2_1.conv2"].weight.data[:, 3] = 0
    # What goes with channel 5 of the stream (stem, two convolutions that write it and three that
    # read it) and with channel 3 inside of the second block, which is read and written once.
    stream = 256 * (27 + 72 + 72) + 64 * 9 * 12 + 64 * 12
    inner = 64 * 9 * (7 + 12)
    images = torch.randn(4, 3, 16, 16)
    before, whole = network.eval()(images), _macs(network)
    child = chain.shrunk(network, whole - stream - inner, (3, 16, 16))
    assert _macs(child) == whole - stream - inner
    torch.testing.assert_close(child(images), before)
    assert _macs(network) == whole


def test_the_chain_meets_every_size_from_below(arena: Any) -> None:
    chain = arena("chain")
    network = build_network(Architecture("resnet", WIDTHS, OPTIONS), seed=0)
    whole = _macs(network)
    for share in (0.6, 0.3, 0.1):
        network = chain.shrunk(network, int(share * whole), (3, 16, 16))
        assert 0.8 * share * whole < _macs(network) <= share * whole
        assert planter.cost(network, (3, 16, 16)).macs == _macs(network)


def test_the_hypervolume_is_that_of_the_issue_and_the_teacher_adds_none(arena: Any) -> None:
    """Issue 17, the row by halves: 0.929; its macs are told to two digits."""
    covered, teacher = arena("counting").covered, 12_501_632
    table = {6.1: 77.4, 3.1: 74.2, 1.5: 72.7, 0.71: 67.5, 0.35: 58.5}
    points = [{"macs": 1e6 * macs, "test": test / 100} for macs, test in table.items()]
    assert covered(points, teacher) == pytest.approx(0.929, abs=0.005)
    with_teacher = [*points, {"macs": teacher, "test": 0.77}]
    assert covered(with_teacher, teacher) == pytest.approx(covered(points, teacher))
    # Without the smallest, which is at 2.8 % of the teacher's macs.
    assert covered(points, teacher, 0.03) == pytest.approx(covered(points[:4], teacher))


def _line(way: str, seed: int, points: list[tuple[float, int]]) -> dict[str, Any]:
    return {
        "task": "cifar10",
        "way": way,
        "seed": seed,
        "points": [{"test": t, "validation": t, "macs": macs} for t, macs in points],
        "train_macs": 20e12,
        "budget": 24e12,
        "teacher": {"macs": 1_000_000},
        "seconds": 60.0,
    }


def test_claims_are_means_of_three_seeds_and_need_their_rows(arena: Any) -> None:
    report, task = arena("report"), arena("task").TASKS["cifar10"]
    small = [_line("planter-small", s, [(0.60 + 0.01 * s, 10_000)]) for s in range(3)]
    scratch = [_line("scratch", s, [(0.55, 10_000), (0.58, 100_000)]) for s in range(3)]
    assert report.claims_of(small[:2] + scratch, task) == []
    found = {claim["name"]: claim for claim in report.claims_of(small + scratch, task)}
    # Two decades below the teacher, (0.61 - 0.1) x 2 in the mean; no better at ten times the size.
    assert found["small end: hypervolume"]["value"] == pytest.approx(1.02)
    assert found["small end: hypervolume"]["holds"]
    over = found["small end: points over scratch, at the worst size"]
    assert over["value"] == pytest.approx(3.0)
    over = found["small end: points over scratch at its macs, at the worst size (at 12 %)"]
    assert over["value"] == pytest.approx(3.0)
    assert len(found) == 3
    evolve = [_line("planter-evolve", s, [(0.56, 10_000), (0.9, 500_000)]) for s in range(3)]
    found = {claim["name"]: claim for claim in report.claims_of(evolve + scratch, task)}
    assert found["evolve: hypervolume over the best other's (scratch)"]["holds"]
    worst = found["evolve: points over the best other, at the worst size (at 12 %)"]
    assert worst["value"] == pytest.approx(-2.0)
    assert not worst["holds"]
    worst = found["evolve: points over the best other at its macs, at the worst size (at 3 %)"]
    assert worst["value"] == pytest.approx(1.0)
    larger = [_line("scratch", s, [(0.85, 50_000 * 10**0.5)]) for s in range(3)]
    (worst,) = (
        claim
        for claim in report.claims_of(evolve + larger, task)
        if claim["name"].startswith("evolve: points over the best other at its macs")
    )
    share = (math.log10(5) + 0.5) / math.log10(50)  # of the way from 10,000 to 500,000
    assert worst["value"] == pytest.approx(100 * (0.56 + 0.34 * share - 0.85), abs=1e-3)


def test_what_stands_between_two_points(arena: Any) -> None:
    between = arena("counting").between
    points = [
        {"macs": 100, "validation": 0.5, "test": 0.4},
        {"macs": 1_000, "validation": 0.4, "test": 0.9},  # not on the front
        {"macs": 10_000, "validation": 0.7, "test": 0.8},
    ]
    assert between(points, 1_000) == pytest.approx(0.6)
    assert between(points, 100) == pytest.approx(0.4)
    assert between(points, 10_000) == pytest.approx(0.8)
    assert between(points, 99) is None
    assert between(points, 20_000) == 0.8
    assert between([], 100) is None


def test_a_picture_shows_what_validation_images_choose(arena: Any) -> None:
    points = [  # macs, validation, test
        (400, 0.6, 0.5), (100, 0.3, 0.4), (200, 0.3, 0.9), (200, 0.25, 0.9), (300, 0.5, 0.2),
    ]  # fmt: skip
    names = ("macs", "validation", "test")
    lines = [
        {"way": way, "seed": seed, "points": [dict(zip(names, p, strict=True)) for p in points]}
        for way, seed in (("chain", 1), ("planter-evolve", 0), ("chain", 0))
    ]
    figure = arena("picture").fronts_figure(lines)
    assert len(figure.data) == 3
    for drawn in figure.data:
        assert list(zip(drawn.x, drawn.y, strict=True)) == [(100, 40), (300, 20), (400, 50)]
    named = [drawn.name for drawn in figure.data if drawn.showlegend]
    assert [name.rpartition(" (")[2] for name in named] == ["2 seeds)", "1 seed)"]


@pytest.mark.long
def test_a_short_arena_runs_counts_and_reports(tmp_path: Path) -> None:
    ways = ["scratch", "chain", "planter-sample"]
    if "evolve" in Study.model_fields:
        ways += ["planter-evolve", "planter-evolve-less", "planter-small"]
    command = [sys.executable, str(ARENA / "run.py"), "--quick", "--json", "--seeds", "0"]
    command += ["--out", str(tmp_path / "out"), "--only", *ways, "fastnas"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fastnas, seed 0 left out: no environment" in done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"task", "claims", "rows", "lines", "machine", "versions"}
    assert found["claims"] == []  # of one seed
    assert sorted(line["way"] for line in found["lines"]) == sorted(ways)
    assert sorted(row["way"] for row in found["rows"]) == sorted(ways)
    data = planter.load_data("digits", validation=0.2)
    images = len(data.train)
    for line in found["lines"]:
        teacher = line["teacher"]["macs"]
        assert line["teacher_train_macs"] == 3 * teacher * images * 6
        children = sum(point["train_macs"] for point in line["points"])
        assert line["train_macs"] == line["teacher_train_macs"] + children + line["search_macs"]
        assert line["points"]
        for point in line["points"]:
            assert point["macs"] == point["flop_counter_macs"]
            assert 0 <= point["test"] <= 1
        if line["way"] in ("scratch", "chain"):
            for point in line["points"]:
                assert point["train_macs"] == (3 * point["macs"] + teacher) * images * 3
            assert line["search_macs"] == 0
        if line["way"] != "planter-sample":  # ends with the training that goes beyond
            assert line["train_macs"] <= line["budget"]
    results = (tmp_path / "out" / "results.jsonl").read_bytes()
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == found
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == results
