"""Plants that a search space asks for: studies of such trials, without Ray."""

import copy
import json

import pytest
import torch

import planter
from planter.arch import Architecture
from planter.driver.run_folder.read import read_points
from planter.driver.tasks import context as context_module
from planter.driver.tasks import planting_step, sampled
from planter.networks.pipelines import Pipelines
from planter.study.schema import StudyError
from planter.study.space import Candidate

STUDY = """
name: plants
data: {name: digits, subset: 160, validation: 0.25}
teacher: {builder: convnet, widths: 8}
recipe: {epochs: 2, batch: 30, optimizer: sgd, lr: 0.02, schedule: constant}
sample: {space: "SPACE:space", trials: TRIALS, sampler: random}
keep: all
resources: {workers: 0, max_failures: 0}
"""
SPACE = """
from planter import Architecture, Candidate, KernelFilter

PLANTS = [("conv2", 2), ("conv3", 1), ("conv2", 1)]
CUT = {"sub": {"before": "conv3"}, "exit": {"after": "conv3"}}
DRAWN = [
    (dict(), dict(kd_weight=1.0)),
    (dict(pipelines=CUT), dict(kd_weight=1.0, weights={"exit": 0})),
    (dict(pipelines=CUT), dict(finetune={"epochs": 1}, kernels=KernelFilter(2, rho=2))),
    (dict(), dict(finetune={"epochs": 1}, kernels={"conv2": KernelFilter(2, rho=2)})),
]


def space(trial):
    start = trial.suggest_categorical("start", [4])
    widths = {**dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5"], start), "fc1": 24}
    ways, more = DRAWN[trial.number % 4]
    network = Architecture("convnet", widths, {}, **ways)
    return Candidate(network, plants=PLANTS, plant_recipe={"epochs": 1, "batch": 40}, **more)
"""
PLAIN, WAYS, TUNED_WAYS, TUNED = "s0000", "s0001", "s0002", "s0003"


def write_study(folder, space=SPACE, trials=4):
    (folder / "space.py").write_text(space)
    file = folder / "plants.yaml"
    place = str(folder / "space.py")
    file.write_text(STUDY.replace("SPACE", place).replace("TRIALS", str(trials)))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder; and, by trial, each network that a plant was planted into, with the child."""
    folder = tmp_path_factory.mktemp("plants")
    seen = {}
    train = planting_step.PlantingStep.train

    def watched(step, children, *, seed, checkpoint):
        start = copy.deepcopy(step.parent.state_dict())
        found = train(step, children, seed=seed, checkpoint=checkpoint)
        ((_, child),) = children.values()
        trial, number = checkpoint.relative_to(folder / "run" / "trials").parts[:2]
        after = copy.deepcopy(child.state_dict())
        # One planted once more takes the place of the dead one.
        seen.setdefault(trial, {})[number] = (start, after, step.parent)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planting_step.PlantingStep, "train", watched)
        planter.search(write_study(folder), out=folder / "run")
    return folder / "run", {trial: list(plants.values()) for trial, plants in seen.items()}


def test_the_networks_are_as_wide_as_their_plants_make_them(run):
    points = [p for p in read_points(run[0]) if p.trial != "teacher"]
    assert {(p.trial, p.pipeline) for p in points} == {
        *((PLAIN, "base"), (TUNED, "base"), (WAYS, "base"), (WAYS, "sub")),
        *((TUNED_WAYS, "base"), (TUNED_WAYS, "sub"), (TUNED_WAYS, "exit")),
    }
    for point in points:
        widths = point.architecture["widths"]
        assert widths == {"conv1": 4, "conv2": 7, "conv3": 5, "conv4": 4, "conv5": 4, "fc1": 24}
        network = planter.load(run[0] / "models" / point.id)
        assert sum(p.numel() for p in network.parameters()) == point.params
        data = planter.load_data(run[0])
        assert planter.evaluate(network, data.validation).accuracy == point.accuracy
    # What enters at the cut is as wide as what the grown conv2 hands on.
    sub = planter.load(run[0] / "models" / WAYS / "sub")
    assert next(sub.parameters()).shape[0] == 7


@pytest.mark.parametrize("trial", [PLAIN, WAYS, TUNED_WAYS, TUNED])
def test_each_plant_leaves_what_was_there_and_some_learn(run, trial):
    assert len(run[1][trial]) == 3
    learned = 0
    for before, after, _ in run[1][trial]:
        for name, old in before.items():
            shared = tuple(slice(size) for size in old.shape)
            assert torch.equal(after[name][shared], old), name
        # What reads the planted channels started at zero; a single channel may well be a dead one.
        learned += any(
            bool((after[name][:, old.shape[1] :] != 0).any())
            for name, old in before.items()
            if old.dim() > 1 and after[name].shape[1] > old.shape[1]
        )
    assert learned


def test_a_dead_plant_is_planted_once_more_with_another_seed(tmp_path, monkeypatch, caplog):
    seeds, deaf = [], []
    plant = sampled.plant

    def watched(*args, **given):
        seeds.append(given["seed"])
        return plant(*args, **given)

    def never(*args):
        deaf.append(args[1])
        return 0

    for module in (sampled, planting_step):
        monkeypatch.setattr(module, "plant", watched)
    monkeypatch.setattr(planting_step, "live_channels", never)
    with caplog.at_level("WARNING"):
        planter.search(write_study(tmp_path, trials=1), out=tmp_path / "run")
    assert deaf == ["conv2", "conv2", "conv3", "conv3", "conv2", "conv2"]
    # Three times with seed 0 to see whether the plants can be, then each twice.
    assert len(seeds) == 3 + 6
    assert len(set(seeds)) == 1 + 6
    log = (tmp_path / "run" / "trials" / "s0000" / "log.txt").read_text()
    assert log.count("answers to any image") == 6


@pytest.mark.parametrize("trial", [WAYS, TUNED_WAYS])
def test_a_trunk_with_sub_models_is_planted_with_them(run, trial):
    assert all(isinstance(parent, Pipelines) for _, _, parent in run[1][trial])


def test_without_fine_tuning_the_last_plants_network_is_what_is_saved(run):
    _, after, _ = run[1][PLAIN][-1]
    saved = planter.load(run[0] / "models" / PLAIN / "base").state_dict()
    assert saved.keys() == after.keys()
    assert all(torch.equal(saved[name], after[name]) for name in saved)


def test_fine_tuning_moves_all_weights_and_leaves_plain_kernels(run):
    _, after, _ = run[1][TUNED][-1]
    saved = planter.load(run[0] / "models" / TUNED / "base").state_dict()
    assert saved.keys() == after.keys()
    assert not torch.equal(saved["conv1.conv.weight"], after["conv1.conv.weight"])
    point = next(p for p in read_points(run[0]) if p.trial == TUNED)
    assert point.kernels == {"conv2": "kflo:2x2"}


def test_learning_curves_of_all_its_trainings_and_no_checkpoint_are_left(run):
    folder = run[0] / "trials" / TUNED
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert len((folder / "finetune" / "metrics.jsonl").read_text().splitlines()) == 1
    assert not list((run[0] / "trials").rglob("checkpoint.pt"))


def test_more_training_counts_more(run):
    macs = {p.trial: p.train_macs for p in read_points(run[0]) if p.pipeline == "base"}
    point = next(p for p in read_points(run[0]) if p.trial == PLAIN)
    start = planter.cost(
        Architecture("convnet", {**point.architecture["widths"], "conv2": 4, "conv3": 4},
                     point.architecture["options"])
    ).macs  # fmt: skip
    images = len(planter.load_data(run[0]).train)
    # Two epochs of the start, and three passes of parents at least as large.
    assert macs[PLAIN] > (3 * 2 + 3) * start * images
    assert macs[TUNED_WAYS] > macs[WAYS] > macs[PLAIN]


def test_what_cannot_grow_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    space = """
from planter import Architecture, Candidate


def space(trial):
    stem = trial.suggest_int("stem", 4, 8)
    return Candidate(Architecture("densenet", {"stem": stem, "growth": 2}, {"depth": 7}),
                     plants=[("growth", 1)])
"""
    fit = context_module.Context.fit

    def teacher_alone(context, trial, *args, **how):
        assert trial == "teacher", f"{trial} was trained"
        fit(context, trial, *args, **how)

    monkeypatch.setattr(context_module.Context, "fit", teacher_alone)
    with pytest.raises(planter.driver.trials.jobs.SearchStoppedError):
        planter.search(write_study(tmp_path, space, 1), out=tmp_path / "run")
    log = (tmp_path / "run" / "trials" / "s0000" / "log.txt").read_text()
    assert "densenet cannot grow in growth" in log


@pytest.mark.parametrize(
    ("plants", "told"), [('("conv9", 1)', "'conv9' is not a width"), ('("conv1", 0)', "at least")]
)
def test_a_plant_that_does_not_exist_is_a_problem_of_the_study(tmp_path, plants, told):
    space = SPACE.replace(
        'PLANTS = [("conv2", 2), ("conv3", 1), ("conv2", 1)]', f"PLANTS=[{plants}]"
    )
    with pytest.raises(StudyError) as caught:
        planter.search(
            write_study(tmp_path, space.replace("[trial.number % 4]", "[0]")), out=tmp_path / "run"
        )
    (problem,) = caught.value.problems
    assert problem.place == "sample.space"
    assert told in str(problem)


def test_the_shipped_space_draws_networks_that_grow():
    import optuna

    from planter.study.space import load_space

    space = load_space("planting", image=(1, 8, 8), classes=10)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        candidate = space(study.ask())
        assert isinstance(candidate, Candidate)
        more = dict.fromkeys(candidate.architecture.widths, 0)
        for layer, channels in candidate.plants:
            more[layer] += channels
        assert candidate.grown.widths == {
            name: width + more[name] for name, width in candidate.architecture.widths.items()
        }
        assert json.loads(json.dumps(candidate.grown.to_dict())) == candidate.grown.to_dict()


def test_a_trial_whose_time_is_over_begins_no_further_phase_and_loses_none(tmp_path):
    # Plain and in several pipelines, both tuned after their plants.
    space = SPACE.replace("trial.number % 4", "3 - trial.number")
    file = write_study(tmp_path, space, trials=2)
    phases, over = [], [True]
    phase = context_module.Context.phase

    def watched(worker, name, network, recipe, train, **more):
        def counted():
            if name.startswith("s"):
                phases.append(name)
            return train()

        return phase(worker, name, network, recipe, counted, **more)

    only = ["recipe.epochs=1", "budget.hours=9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context_module.Context, "phase", watched)
        # The teacher is trained in any case.
        patch.setattr(context_module.Context, "pause", lambda self: over[0] and bool(phases))
        for trial in ("s0000", "s0001"):
            while not (tmp_path / "run" / "models" / trial).exists():
                before = len(phases)
                found = planter.search(file, out=tmp_path / "run", overrides=only)
                assert len(phases) > before
        over[0] = False
        whole = planter.search(file, out=tmp_path / "whole", overrides=only)
    once = phases[: len(phases) // 2]
    assert once == phases[len(once) :]  # the same phases, each of them once
    assert len(set(once)) == len(once)
    assert len(once) >= 10
    for points in (found["points"], whole["points"]):
        for point in points:
            for end in ("", "_low", "_high"):  # also read of what was on the front on the way
                del point[f"test_accuracy{end}"]
    assert found["points"] == whole["points"]
