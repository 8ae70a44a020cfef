"""Draws of which nothing is trained: drawn again, told to the sampler, bounded. Without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

import planter
from planter.driver.checking import space as check_space
from planter.driver.checking.check import prepare
from planter.driver.proposers.redraws import IN_A_ROW
from planter.study.file import read_study
from planter.study.schema import StudyError

STUDY = """
name: drawn
data: {name: digits, subset: 120, validation: 0.25}
baselines: [{builder: convnet, widths: 2}]
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, schedule: constant}
sample: {space: "SPACE:space", trials: 4, sampler: random}
resources: {workers: 0, max_failures: 0}
"""
HEAD = """
import numpy as np
import optuna
from planter import Architecture, Candidate

NAMES = ["conv1", "conv2", "conv3", "conv4", "conv5"]

def net(width, ways=None, **more):
    return Candidate(Architecture("convnet", dict.fromkeys(NAMES, width), {}, ways or {}), **more)

def space(trial):
"""


def write(folder: Path, body: str) -> Path:
    (folder / "space.py").write_text(HEAD + body)
    file = folder / "drawn.yaml"
    file.write_text(STUDY.replace("SPACE", str(folder / "space.py")))
    return file


def rows(run: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{run / 'study.db'}"
    return optuna.load_study(study_name="drawn/sampling", storage=storage).get_trials()


def by_state(run: Path, state: str) -> list[optuna.trial.FrozenTrial]:
    return [row for row in rows(run) if row.state.name == state]


def searched(folder: Path, body: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    return planter.search(write(folder, body), out=folder / "run", overrides=overrides)


def refusal(folder: Path, body: str) -> str:
    """What the check says of a space."""
    with pytest.raises(StudyError) as caught:
        prepare(read_study(write(folder, body)))
    (problem,) = caught.value.problems
    assert problem.place == "sample.space"
    return problem.expected


def test_a_space_may_refuse_draws_which_are_told_as_pruned_and_drawn_again(tmp_path: Path) -> None:
    body = """
    width, x = trial.suggest_int("width", 2, 9), trial.suggest_float("x", 0, 1)
    if width % 2:
        raise optuna.TrialPruned("odd")
    return net(width)
"""
    front = searched(tmp_path, body)
    done, pruned = by_state(tmp_path / "run", "COMPLETE"), by_state(tmp_path / "run", "PRUNED")
    assert [row.params["width"] % 2 for row in done] == [0] * 4
    assert pruned
    assert {row.params["width"] % 2 for row in pruned} == {1}
    assert {row.user_attrs["redrawn"] for row in pruned} == {"odd"}
    trials = {f"s{row.number:04d}" for row in done}
    assert {p["trial"] for p in front["points"] if p["method"] == "sample"} == trials
    # A search that is asked for no more draws no more.
    planter.search(tmp_path / "drawn.yaml", out=tmp_path / "run")
    assert len(rows(tmp_path / "run")) == len(done) + len(pruned)


def test_the_same_seed_draws_what_it_drew_where_nothing_is_refused(tmp_path: Path) -> None:
    body = 'return net(trial.suggest_int("width", 2, 900) // 100 + 2)\n'
    searched(tmp_path, f"    {body}", ["sample.trials=3"])
    # As planter always has: a sampler of its own for each trial, of the trial's seed.
    from planter.driver.trials.jobs import seed_of

    expected = []
    for number in range(3):
        study = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(seed=seed_of(0, f"s{number:04d}"))
        )
        expected.append(study.ask().suggest_int("width", 2, 900))
    assert [row.params["width"] for row in rows(tmp_path / "run")] == expected


def test_equal_networks_are_trained_once_and_a_used_up_space_ends_the_drawing(
    tmp_path: Path,
) -> None:
    front = searched(tmp_path, '    return net(trial.suggest_categorical("width", [4, 6]))\n')
    run = tmp_path / "run"
    assert sorted(row.params["width"] for row in by_state(run, "COMPLETE")) == [4, 6]
    assert len(by_state(run, "PRUNED")) == IN_A_ROW
    (note,) = front["notes"]
    assert note["about"] == "sample"
    assert "2 of 4 trials" in note["text"]
    assert f"{IN_A_ROW} trained before" in note["text"]
    # Wider bounds would not help, nor other choices under the same name.
    assert "choices that have changed need another name" in note["text"]
    assert "bounds" not in note["text"]


def test_a_network_that_was_trained_under_another_recipe_is_trained_again(tmp_path: Path) -> None:
    body = '    return net(trial.suggest_categorical("width", [4, 6]))\n'
    file, run = write(tmp_path, body), tmp_path / "run"
    planter.search(file, out=run, overrides=["sample.trials=2"])
    more = ["sample.trials=4", "recipe.lr=0.02"]
    planter.search(file, out=run, overrides=more, accept_changes=True)
    assert sorted(row.params["width"] for row in by_state(run, "COMPLETE")) == [4, 4, 6, 6]


def test_a_repeated_draw_is_told_with_the_constraints_of_the_first(tmp_path: Path) -> None:
    body = '    return net(trial.suggest_categorical("width", [4, 6]))\n'
    searched(tmp_path, body, ["objectives.bounds.macs=1000000"])
    done = {row.params["width"]: row.constraints for row in by_state(tmp_path / "run", "COMPLETE")}
    assert {tuple(found) for found in done.values()} == {("macs",)}
    assert done[4]["macs"] < done[6]["macs"] < 0
    for row in by_state(tmp_path / "run", "PRUNED"):
        assert row.constraints == done[row.params["width"]]


def test_a_space_that_looks_at_the_number_draws_other_networks_from_equal_parameters(
    tmp_path: Path,
) -> None:
    body = """
    trial.suggest_categorical("idle", [0])
    return net(3 + trial.number)
"""
    searched(tmp_path, body)
    assert [row.state.name for row in rows(tmp_path / "run")] == ["COMPLETE"] * 4


def test_full_checks_take_none_of_the_time_for_weighing_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(check_space, "time", SimpleNamespace(monotonic=lambda: now[0]))
    check_network = check_space.check_network

    def slow(architecture: planter.Architecture) -> None:
        now[0] += 10
        check_network(architecture)

    monkeypatch.setattr(check_space, "check_network", slow)
    body = '    return net(trial.suggest_int("width", 1, 100))\n'
    prepared = prepare(read_study(write(tmp_path, body), ["objectives.bounds.macs=1000000000"]))
    assert prepared.drawn is not None
    assert prepared.drawn.weighed == 50


def test_bounds_that_nothing_keeps_to_end_the_search_with_nothing_within(tmp_path: Path) -> None:
    body = '    return net(trial.suggest_int("width", 4, 4000) % 7 + 4)\n'
    front = searched(tmp_path, body, ["objectives.bounds.macs=10"])
    assert len(rows(tmp_path / "run")) == IN_A_ROW
    assert {row.state.name for row in rows(tmp_path / "run")} == {"PRUNED"}
    assert [p["method"] for p in front["points"]] == ["baseline"]
    assert f"{IN_A_ROW} beyond the bounds" in front["notes"][0]["text"]
    assert "wider bounds let more through (with --accept-changes" in front["notes"][0]["text"]


def test_only_pipelines_within_the_bounds_are_trained_and_paid_for(tmp_path: Path) -> None:
    body = """
    trial.suggest_float("idle", 0, 1)
    return net(8, {"cut3": {}, "cut2": {}})
"""
    costs = planter.cost(
        planter.Architecture(
            "convnet",
            {**dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5"], 8), "fc1": 128},
            {"image": [1, 8, 8], "classes": 10},
            {"cut3": {}, "cut2": {}},
        )
    ).pipelines
    assert costs["cut3"].macs < costs["cut2"].macs < costs["base"].macs
    front = searched(
        tmp_path, body, [f"objectives.bounds.macs={costs['cut3'].macs}", "sample.trials=2"]
    )
    sampled = [p for p in front["points"] if p["method"] == "sample"]
    assert {p["id"] for p in sampled} == {"s0000/cut3", "s0001/cut3"}
    images = 90  # of 120, a quarter of which selects
    assert {p["train_macs"] for p in sampled} == {3 * costs["cut3"].macs * images}
    network = planter.load(tmp_path / "run" / sampled[0]["model"])
    assert planter.cost(network, [1, 8, 8]).macs == costs["cut3"].macs
    # Told as feasible: one of its networks is.
    assert {row.constraints["macs"] for row in rows(tmp_path / "run")} == {0.0}


def test_synergy_is_that_of_the_classifiers_within_the_bounds() -> None:
    ways = {"one": {"after": "group1"}, "two": {"after": "group2"}, "sub": {"before": "group2"}}
    candidate = planter.Candidate(
        planter.Architecture("resnet", {}, {"depth": 8, "image": [3, 16, 16]}, ways),
        synergy="bidirectional",
        kd_weight={"one": 1.0, "sub": 0.5},
        synergy_weight={("base", "one"): 2.0, ("one", "two"): 1.0},
    )
    left = candidate.only(["base", "one"])
    assert left.trained == ["base", "one"]
    assert left.synergy == "bidirectional"
    assert left.synergy_weight == {("base", "one"): 2.0}
    assert left.kd_weight == {"one": 1.0}
    alone = candidate.only(["two", "sub"])
    assert alone.trained == ["two", "sub"]
    assert alone.synergy is None
    assert alone.kd_weight == {"sub": 0.5}
    assert candidate.only(candidate.trained) == candidate


# What a space may do, and what is refused at the check


def test_numbers_of_numpy_and_choices_that_are_tuples_are_taken(tmp_path: Path) -> None:
    body = """
    sizes = [(4, "s"), (np.int64(6), {"form": ["m", None]}), np.int32(7)]
    size = trial.suggest_categorical("size", sizes)
    assert size in sizes and type(size) in (tuple, int)
    rate = np.float32(trial.suggest_float("rate", np.float64(0.001), 0.01))
    width = np.int64(size if isinstance(size, int) else size[0])
    trial.report(0.5, 1)
    assert not trial.should_prune()
    trial.set_user_attr("note", np.float64(width))
    return net(width, {"cut2": {"stride": np.int64(2)}}, recipe={"lr": rate}, kd_weight=np.int8(0))
"""
    searched(tmp_path, body)
    done = rows(tmp_path / "run")
    assert {row.state.name for row in done} == {"COMPLETE"}
    texts = {"(4, 's')": 4, "(6, {'form': ['m', None]})": 6, 7: 7}
    assert [row.user_attrs["note"] for row in done] == [texts[row.params["size"]] for row in done]


def test_whole_floats_are_widths_and_fractions_name_their_parameter(tmp_path: Path) -> None:
    searched(tmp_path, '    return net(trial.suggest_float("w", 2, 80, step=2))\n')
    assert {row.state.name for row in rows(tmp_path / "run")} == {"COMPLETE"}
    told = refusal(tmp_path, '    return net(trial.suggest_float("share", 4, 8))\n')
    assert "width conv1 must be a whole number" in told
    assert "parameter 'share'" in told
    assert "suggest_int" in told


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            'a = trial.suggest_categorical("a", [0, 1]); '
            'return net(trial.suggest_categorical("w", [4, 6] if a else [8, 10]))',
            "parameter 'w': its choices are not those of an earlier trial",
        ),
        (
            'a = trial.suggest_categorical("a", [0, 1]); '
            'return net(trial.suggest_int("w", 4, 6) if a else trial.suggest_float("w", 4, 6))',
            "parameter 'w': it was drawn otherwise in an earlier trial",
        ),
        (
            'trial.suggest_categorical("w", [net, 3]); return net(4)',
            "parameter 'w': the choice <function net",
        ),
        ('trial.suggest_int("w", 4, 8)', "got NoneType: is a return missing?"),
        ("return net(4)", "it suggests nothing"),
        ('trial.suggest_int("w", 1, 2); raise optuna.TrialPruned', "in a row: let more through"),
        ('trial.suggest_int("w", 1, 2); raise SystemExit("bye")', "called sys.exit('bye')"),
        (
            'return net(trial.suggest_int("w", 4, 5), recipe={"lr": float("nan")})',
            "lr: Input should be a finite number",
        ),
        (
            'return net(trial.suggest_int("w", 4, 5), recipe={"learning_rate": 1})',
            "recipe has the key 'learning_rate', expected one of a recipe",
        ),
        ('return net(trial.suggest_int("w", 0, 0))', "width conv1 must be a whole number >= 1"),
        (
            'trial.suggest_int("w", 1, 2); return net(np.random.default_rng().integers(4, 400))',
            "it gives another network for the same parameters",
        ),
        (
            'trial.suggest_int("w", 1, 2); trial.set_user_attr("result", 3); return net(4)',
            "the attribute 'result' is planter's own",
        ),
        (
            'trial.suggest_int("w", 1, 2); trial.set_user_attr("k", np.arange(3)); return net(4)',
            "attribute 'k': Object of type ndarray is not JSON serializable; expected what JSON",
        ),
    ],
)
def test_what_a_space_cannot_be_is_refused_at_the_check(
    tmp_path: Path, body: str, words: str
) -> None:
    assert words in refusal(tmp_path, f"    {body}\n")


def test_a_whole_number_may_have_another_range_in_each_trial(tmp_path: Path) -> None:
    body = """
    most = trial.suggest_categorical("most", [6, 30])
    return net(trial.suggest_int("width", 4, most))
"""
    searched(tmp_path, body, ["sample.sampler=tpe"])
    done = by_state(tmp_path / "run", "COMPLETE")
    assert len(done) == 4
    assert all(row.params["width"] <= row.params["most"] for row in done)


def test_the_check_says_which_share_of_the_draws_keeps_to_the_bounds(tmp_path: Path) -> None:
    body = '    return net(trial.suggest_int("width", 1, 100))\n'
    file = write(tmp_path, body)
    widths = dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5"], 5)
    largest = planter.Architecture("convnet", {**widths, "fc1": 128}, {"image": [1, 8, 8]})
    bound = f"objectives.bounds.macs={planter.cost(largest).macs}"
    prepared = prepare(read_study(file, [bound]))
    assert prepared.drawn is not None
    # The same draws, counted by hand.
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [study.ask().suggest_int("width", 1, 100) for _ in range(prepared.drawn.weighed)]
    assert prepared.drawn.within == sum(width <= 5 for width in drawn)
    (warning,) = prepared.warnings
    assert f"{prepared.drawn.within} of {prepared.drawn.weighed} random draws" in warning
    assert prepare(read_study(file, ["objectives.bounds.macs=1000000000"])).warnings == []
