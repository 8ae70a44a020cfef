"""Samplers by their place, and what a sampler is told of earlier runs. Without Ray."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import optuna
import pytest
from test_steering import STUDY, refusals, rows

import planter
from planter.driver.checking.check import prepare
from planter.driver.run_folder.read import read_points
from planter.driver.trials.jobs import seed_of
from planter.front.pareto import hypervolume
from planter.study.file import read_study
from planter.study.schema import Study

SPACE = """
from planter import Architecture, Candidate

NAMES = ["conv1", "conv2", "conv3", "conv4", "conv5"]

def space(trial):
    width = trial.suggest_int("width", 2, MOST)
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    network = Architecture("convnet", dict.fromkeys(NAMES, width), {}, {})
    return Candidate(network, recipe={"lr": lr})
"""
MODULE = """
import optuna

asked = []

def make(seed):
    sampler = Watched(seed=seed)
    asked.append((seed, sampler))
    return sampler

class Watched(optuna.samplers.RandomSampler):
    def infer_relative_search_space(self, study, trial):
        self.seen = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
        return super().infer_relative_search_space(study, trial)

def unseeded():
    return optuna.samplers.RandomSampler()

def asking(seed, more):
    return optuna.samplers.RandomSampler(seed=seed)

def other(seed):
    return object()

def broken(seed):
    raise RuntimeError("no licence")

class Needing(optuna.samplers.RandomSampler):
    def infer_relative_search_space(self, study, trial):
        import a_package_that_is_not_here

number = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "space.py").write_text(SPACE.replace("MOST", "9"))
    (tmp_path / "steered.yaml").write_text(STUDY.replace("SPACE", str(tmp_path / "space.py")))
    (tmp_path / "made_samplers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        ("gp", "'tpe', 'nsgaii' or 'random', or a place such as optuna.samplers:GPSampler"),
        ("no_such_module:make", "there is no module 'no_such_module'"),
        ("made_samplers:missing", "'made_samplers' has no 'missing'"),
        ("made_samplers:number", "it is a int: expected a class or a function"),
        ("made_samplers:unseeded", "takes no seed"),
        ("made_samplers:asking", "it needs more beside the seed"),
        ("made_samplers:other", "it makes a object: expected one of Optuna's samplers"),
        ("made_samplers:broken", "making it raised RuntimeError: no licence"),
        ("made_samplers:Needing", "needs the package 'a_package_that_is_not_here'"),
        ("optuna.samplers:CmaEsSampler", "it cannot draw for 2 objectives"),
        ("optuna.samplers:GridSampler", "it needs search_space beside the seed"),
    ],
)
def test_a_sampler_that_cannot_do_the_work_is_refused(place: Path, sampler: str, told: str) -> None:
    found = refusals(place / "steered.yaml", f"sample.sampler={sampler}")
    assert told in found["sample.sampler"]


def test_the_one_of_children_is_tried_with_their_one_objective(place: Path) -> None:
    base = ["evolve={trials: 2}", "evolve.sampler=optuna.samplers:NSGAIISampler"]
    assert prepare(read_study(place / "steered.yaml", base))
    if importlib.util.find_spec("cmaes") is not None:
        pytest.skip("cmaes is installed")
    base[1] = "evolve.sampler=optuna.samplers:CmaEsSampler"
    told = refusals(place / "steered.yaml", *base)["evolve.sampler"]
    assert "needs the package 'cmaes'" in told
    assert "pip install cmaes" in told


def test_a_sampler_by_its_place_draws_each_trial_from_the_trials_own_seed(place: Path) -> None:
    import made_samplers  # type: ignore[import-not-found]

    run, sampler = place / "run", ["sample.sampler=made_samplers:make", "sample.trials=2"]
    planter.search(place / "steered.yaml", out=run, overrides=sampler)
    sampler[1] = "sample.trials=3"
    made_samplers.asked.clear()
    planter.search(place / "steered.yaml", out=run, overrides=sampler)
    assert seed_of(0, "s0002") in [seed for seed, _ in made_samplers.asked]
    expected = []
    for number in range(3):
        seed = seed_of(0, f"s{number:04d}")
        book = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        trial = book.ask()
        trial.suggest_int("width", 2, 9)
        trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        expected.append(trial.params)
    assert [row.params for row in rows(run)] == expected


@pytest.mark.long
def test_optunas_gaussian_process_searches(place: Path) -> None:
    run = place / "run"
    sampler = ["sample.sampler=optuna.samplers:GPSampler", "sample.trials=12"]
    planter.search(place / "steered.yaml", out=run, overrides=sampler)
    assert sum(row.state.name == "COMPLETE" for row in rows(run)) == 12


def warm(place: Path, *more: str, earlier: str = "earlier") -> list[str]:
    return [f"sample.warm_start={place / earlier}", *more]


@pytest.fixture
def earlier(place: Path) -> list[optuna.trial.FrozenTrial]:
    planter.search(place / "steered.yaml", out=place / "earlier")
    return rows(place / "earlier")


def test_a_sampler_learns_from_an_earlier_run_whose_points_stay_there(
    place: Path, earlier: list[optuna.trial.FrozenTrial]
) -> None:
    import made_samplers

    file, run = place / "steered.yaml", place / "run"
    more = warm(
        place,
        "sample.sampler=made_samplers:make",
        "objectives.macs_reference=100000",
        "objectives.bounds.macs=20000",
        "sample.trials=2",
        "seed=1",
    )
    made_samplers.asked.clear()
    found = planter.search(file, out=run, overrides=more)
    told = rows(run)[:4]
    assert [row.params for row in told] == [row.params for row in earlier]
    assert [row.values for row in told] == [row.values for row in earlier]  # one pipeline each
    marks = [row.user_attrs["warm_start"].rpartition("/")[2] for row in told]
    assert marks == ["s0000", "s0001", "s0002", "s0003"]
    macs = {p.trial: p.macs for p in read_points(place / "earlier")}
    for row, trial in zip(told, marks, strict=True):
        assert row.constraints == {"macs": macs[trial] / 20000 - 1}
    # The sampler has seen them before its first draw, and they are nobody's points.
    seen = next(s.seen for seed, s in made_samplers.asked if seed == seed_of(1, "s0004"))
    assert [row.params for row in seen] == [row.params for row in earlier]
    trained = [p["trial"] for p in found["points"] if p["method"] == "sample"]
    assert len(trained) == 2
    assert not set(trained) & set(marks)
    # The same command once more, and one with more trials, tell nothing twice.
    more[4] = "sample.trials=3"
    planter.search(file, out=run, overrides=more)
    assert sum("warm_start" in row.user_attrs for row in rows(run)) == 4
    counted = [r for r in rows(run) if r.state.name == "COMPLETE" and "result" in r.user_attrs]
    assert len(counted) == 3


def test_what_a_narrower_space_does_not_draw_is_left_out_and_told(
    place: Path, earlier: list[optuna.trial.FrozenTrial]
) -> None:
    (place / "space.py").write_text(SPACE.replace("MOST", "5"))
    prepared = prepare(read_study(place / "steered.yaml", warm(place)))
    fitting = [row.params for row in earlier if row.params["width"] <= 5]
    assert [one.draw.params for one in prepared.earlier] == fitting
    assert 0 < len(fitting) < 4
    (told,) = [text for text in prepared.warnings if "sample.warm_start" in text]
    assert f"{len(fitting)} of 4 sampled trials" in told
    assert "expected 2 to 5" in told
    # Parameters that the space draws beside them, or no longer.
    text = SPACE.replace("MOST", "9")
    (place / "space.py").write_text(
        text.replace("    lr =", '    trial.suggest_int("x", 0, 1)\n    lr =')
    )
    prepared = prepare(read_study(place / "steered.yaml", warm(place)))
    assert prepared.earlier == []
    assert "this space draws x as well" in " ".join(prepared.warnings)


def test_other_images_are_told_and_other_objectives_refused(
    place: Path, earlier: list[optuna.trial.FrozenTrial]
) -> None:
    file = place / "steered.yaml"
    told = prepare(read_study(file, warm(place, "data.subset=100"))).warnings
    assert any("searched with other images" in text for text in told)
    found = refusals(file, *warm(place, "objectives.family=true"))
    assert "expected a run with objectives.family: true" in found["sample.warm_start"]
    found = refusals(file, *warm(place, earlier="nowhere"))
    assert "is no run folder" in found["sample.warm_start"]
    with pytest.raises(ValueError, match="an earlier run: with its own trials"):
        planter.search(file, out=place / "earlier", overrides=warm(place))


def test_rows_of_a_family_are_told_by_their_hypervolume_from_the_new_reference(
    place: Path,
) -> None:
    (place / "space.py").write_text(
        SPACE.replace("MOST", "9").replace("{}, {})\n", '{}, {"cut2": {"before": "conv3"}})\n')
    )
    family = ["objectives.family=true", "sample.trials=2"]
    file = place / "steered.yaml"
    planter.search(file, out=place / "earlier", overrides=family)
    more = warm(place, *family, "objectives.macs_reference=500000", "seed=1")
    planter.search(file, out=place / "run", overrides=more)
    points = read_points(place / "earlier")
    for row in rows(place / "run")[:2]:
        trial = row.user_attrs["warm_start"].rpartition("/")[2]
        own = [(p.accuracy, p.macs) for p in points if p.trial == trial]
        assert len(own) == 2
        assert row.values == [pytest.approx(hypervolume(own, [0.1, 500000]), rel=1e-12)]


def test_paths_of_earlier_runs_are_relative_to_the_study(place: Path) -> None:
    text = (place / "steered.yaml").read_text()
    file = place / "steered.yaml"
    file.write_text(text.replace("trials: 4", "trials: 4, warm_start: [a, sub/b]"))
    sample = read_study(file).sample
    assert sample is not None
    assert sample.earlier() == [str(place / "a"), str(place / "sub" / "b")]


def test_settings_that_steer_are_no_other_study(place: Path) -> None:
    schema: dict[str, Any] = Study.model_json_schema()["$defs"]["Sample"]["properties"]
    assert {"enqueue", "warm_start", "sampler"} <= set(schema)
    file, run = place / "steered.yaml", place / "run"
    planter.search(file, out=run, overrides=["sample.trials=1"])
    planter.search(file, out=run, overrides=["sample.trials=2", "sample.enqueue=[{width: 3}]"])
    assert rows(run)[1].params["width"] == 3
    with pytest.raises(ValueError, match="another study than the one begun here"):
        planter.search(file, out=run, overrides=["sample.trials=2", "sample.sampler=nsgaii"])
