"""Shipped spaces spend what a study has."""

from __future__ import annotations

import pytest

from planter.costs.macs import cost
from planter.driver.checking.check import prepare
from planter.study.file import read_study


def drawn(*overrides):
    study = read_study("pipelines", ["data.subset=200", *overrides])
    return study, prepare(study)


def test_nothing_is_drawn_that_costs_more_than_the_teacher():
    _, prepared = drawn("teacher.widths=8")
    teacher = cost(prepared.networks["teacher"].architecture).macs
    networks = [n for name, n in prepared.networks.items() if name.startswith("sample")]
    assert networks
    for network in networks:
        assert max(way.macs for way in cost(network.architecture).pipelines.values()) <= teacher


def test_no_draw_takes_more_than_a_tenth_of_the_budget():
    study, prepared = drawn("budget.train_macs=1e10")
    assert prepared.drawn is not None
    assert max(prepared.drawn.train_macs) <= 0.1 * study.budget.train_macs
    _, unbounded = drawn()
    assert max(unbounded.drawn.train_macs) > 0.1 * study.budget.train_macs


def test_where_no_draw_is_cheap_enough_any_is_trained_and_that_is_told():
    _, prepared = drawn("budget.train_macs=1e8")
    assert len(prepared.drawn.train_macs) > 0
    assert any("% of budget.train_macs" in warning for warning in prepared.warnings)


def test_a_space_of_ones_own_draws_what_it_says(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from planter import Architecture, Candidate\n"
        "def space(trial):\n"
        "    trial.suggest_int('x', 0, 9)\n"
        "    return Candidate(Architecture('resnet', {}, {'depth': 20}))\n"
    )
    _, prepared = drawn(f"sample.space='{own}:space'", "budget.train_macs=1e9")
    assert cost(prepared.networks["sample0"].architecture).macs > prepared.teacher_macs


@pytest.mark.parametrize("as_json", [False, True])
def test_check_says_what_a_draw_costs_on_average(command_in, tmp_path, as_json):
    more = ["--json"] if as_json else []
    code, shown, _ = command_in(tmp_path)("check", "pipelines", "--set", "data.subset=200", *more)
    assert code == 0
    assert ("train_macs_of_a_draw" if as_json else "A random draw takes") in shown
