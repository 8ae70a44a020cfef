"""Studies whose trials train sub-models, branches and image heads together, without Ray."""

import json

import pytest
import torch
from test_driver import rows
from torch.utils.flop_counter import FlopCounterMode

import planter
from planter.driver.checking.check import prepare
from planter.driver.run_folder.read import read_points
from planter.study.file import read_study
from planter.study.schema import StudyError

STUDY = """
name: ways
data: {name: digits, subset: 160, validation: 0.25}
teacher: {builder: resnet, options: {depth: 8}, widths: 4}
recipe: {epochs: 2, batch: 8, optimizer: sgd, lr: 0.02, schedule: constant}
sample: {space: "SPACE:space", trials: 4, sampler: random}
objectives: {family: true}
keep: all
resources: {workers: 0}
"""
SPACE = """
from planter import Architecture, Candidate

ALL = {
    "sub": {"before": "group2", "kernel": 3, "stride": 1},
    "exit1": {"after": "group1"},
    "exit2": {"after": "group2", "branch": "fc"},
    "head-fsrcnn": {"head": "fsrcnn"},
}
DRAWN = [
    dict(pipelines=ALL, synergy="bidirectional", norms="switch_all"),
    # Only the first branch is trained: the paper's control.
    dict(pipelines={"exit1": ALL["exit1"]}, weights={"base": 0}),
    # Distillation onto the branches alone; the sub-model takes no part.
    dict(pipelines=ALL, weights={"sub": 0, "head-fsrcnn": 0}, kd_weight={"exit1": 1, "exit2": 1}),
    dict(pipelines={"sub": ALL["sub"]}, reduction="mean", norms="shared"),
]


def space(trial):
    width = trial.suggest_categorical("width", [4])
    drawn = dict(DRAWN[trial.number % 4])
    network = Architecture("resnet", dict.fromkeys(["stem", "group1", "group2", "group3"], width),
                           {"depth": 8}, drawn.pop("pipelines"))
    return Candidate(network, **drawn)
"""


def write_study(folder, space=SPACE):
    (folder / "space.py").write_text(space)
    file = folder / "ways.yaml"
    file.write_text(STUDY.replace("SPACE", str(folder / "space.py")))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways")
    planter.search(write_study(folder), out=folder / "run")
    return folder / "run"


def points_by_trial(run):
    found = {}
    for point in json.loads((run / "pareto.json").read_text())["points"]:
        found.setdefault(point["trial"], {})[point["pipeline"]] = point
    return found


def test_every_pipeline_that_was_trained_is_a_point_and_no_other(run):
    found = {trial: set(ways) for trial, ways in points_by_trial(run).items()}
    assert found.pop("teacher") == {"base"}
    assert found == {
        "s0000": {"base", "sub", "exit1", "exit2", "head-fsrcnn"},
        "s0001": {"exit1"},
        "s0002": {"base", "exit1", "exit2"},
        "s0003": {"base", "sub"},
    }


def test_saved_pipelines_score_and_cost_what_is_reported(run):
    data = planter.load_data(run)
    for ways in points_by_trial(run).values():
        for point in ways.values():
            network = planter.load(run / point["model"])
            assert planter.evaluate(network, data.validation).accuracy == point["accuracy"]
            with FlopCounterMode(display=False) as counter:
                network(torch.zeros(1, *data.image))
            assert counter.get_total_flops() / 2 == point["macs"]
            assert sum(p.numel() for p in network.parameters()) == point["params"]


def test_training_is_counted_with_what_is_shared_once(run):
    images = len(planter.load_data(run).train)
    found = points_by_trial(run)
    macs = {
        trial: {name: point["macs"] for name, point in ways.items()}
        for trial, ways in found.items()
    }
    # Resnet-8 of width 4 on 8 x 8 pixels: what stands behind group1 and before, by hand.
    stem, group1 = 64 * 9 * 4, 2 * 64 * 9 * 16
    group2, group3 = 2 * 16 * 9 * 16, 2 * 4 * 9 * 16
    assert macs["s0000"]["base"] == stem + group1 + group2 + group3 + 40
    before_exit2 = stem + group1 + group2
    exits = macs["s0000"]["exit1"] - stem - group1 + macs["s0000"]["exit2"] - before_exit2
    alone = macs["s0000"]["base"] + macs["s0000"]["sub"] + macs["s0000"]["head-fsrcnn"]
    expected = {
        "s0000": alone + exits,
        "s0001": macs["s0001"]["exit1"],
        "s0002": macs["s0000"]["base"] + exits,
        "s0003": macs["s0000"]["base"] + macs["s0000"]["sub"],
    }
    for trial, ways in found.items():
        for point in ways.values():
            if trial in expected:
                assert point["train_macs"] == 3 * expected[trial] * images * 2


def test_the_best_family_is_told_and_kept_whole(run):
    front = json.loads((run / "pareto.json").read_text())
    points = [p for p in read_points(run) if p.method == "sample"]
    covered = {}
    for trial in {p.trial for p in points}:
        own = [(p.accuracy, p.macs) for p in points if p.trial == trial]
        covered[trial] = planter.hypervolume(own, front["reference_point"])
    best = max(sorted(covered), key=covered.get)
    assert front["family"] == {
        "trial": best,
        "points": [p.id for p in points if p.trial == best],
        "hypervolume": covered[best],
    }
    told = {f"s{row.number:04d}": row.values for row in rows(run, "ways/sampling")}
    assert told == {trial: [value] for trial, value in covered.items()}
    by_id = {p["id"]: p for p in front["points"]}
    assert all(by_id[point]["test_accuracy"] is not None for point in front["family"]["points"])


def test_a_family_keeps_its_networks_though_they_are_not_on_the_front(tmp_path):
    run = tmp_path / "run"
    file = write_study(tmp_path)
    front = planter.search(file, out=run, overrides=["keep=front", "sample.trials=2"])
    saved = {p["id"] for p in front["points"] if p["model"]}
    on_front = {p["id"] for p in front["points"] if p["on_front"]}
    assert saved == on_front | set(front["family"]["points"]) | {"teacher/base"}


def test_simple_branches_under_synergy_are_warned_about(run, tmp_path):
    prepared = prepare(read_study(write_study(tmp_path), []))
    (warning,) = prepared.warnings
    assert "synergy with simple branches (exit2)" in warning
    assert warning in (run / "trials" / "s0000" / "log.txt").read_text()
    assert "WARNING" not in (run / "trials" / "s0003" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("synergy='bidirectional'", "no pipeline is a branch"),
        ("synergy='top_down', weights={'exit': 0}", "exit has weight 0 and so is not trained"),
        ("temperature=0.0", "temperature must be above 0"),
        (
            "synergy='top_down', synergy_weight={('base', 'gone'): 1.0}, weights={'exit': 1}",
            "synergy_weight of ('base', 'gone'); classifiers are base, exit",
        ),
        ("synergy_weight=-1.0", "synergy_weight must be >= 0"),
        ("synergy='sideways'", "synergy is top_down, bottom_up, bidirectional, got 'sideways'"),
        ("weights={'base': 0, 'sub': 0}", "pipeline weights must be >= 0 and one above 0"),
        ("weights={'sub': -1}", "pipeline weights must be >= 0 and one above 0"),
        ("weights={'cut9': 1}", "weights name cut9; pipelines are base, sub"),
        ("kd_weight={'cut9': 1}", "kd_weight name cut9; pipelines are base, sub"),
        ("kd_weight={'sub': -1}", "kd_weight must be >= 0, got {'sub': -1}"),
        ("norms='own'", "norms are shared, switch_stats, switch_all, got 'own'"),
        ("reduction='max'", "reduction is 'sum' or 'mean', got 'max'"),
    ],
)
def test_settings_that_mean_nothing_are_problems_of_the_space(settings, words, tmp_path):
    space = f"""
from planter import Architecture, Candidate

def space(trial):
    trial.suggest_int("n", 0, 1)
    ways = {{"sub": {{"before": "group2"}}}}
    if "exit" in {settings!r}:
        ways["exit"] = {{"after": "group1"}}
    return Candidate(Architecture("resnet", {{}}, {{"depth": 8}}, ways), {settings})
"""
    with pytest.raises(StudyError) as caught:
        prepare(read_study(write_study(tmp_path, space), []))
    (problem,) = caught.value.problems
    assert problem.place == "sample.space"
    assert words in str(problem)


@pytest.mark.parametrize(
    ("pipelines", "words"),
    [
        ({"sub": {"before": "group3", "stride": 16}}, "pipeline sub of resnet cannot take"),
        ({"late": {"after": "group3"}}, "a branch may leave at"),
        ({"late": {"after": "group3_1"}}, "a branch may leave at"),
        ({"sub": {"before": "group2_1.conv2"}}, "lies inside stage group2_1"),
        ({"head": {"head": "test_driver_pipelines:shrinking"}}, "must keep channels and size"),
        ({"head": {"head": "unet"}}, "unknown image head 'unet'"),
        ({"exit": {"after": "group1", "branch": "big"}}, "unknown kind of branch 'big'"),
        ({"keys": {"before": "group2"}}, "pipeline name 'keys'"),
    ],
)
def test_pipelines_that_cannot_be_are_problems_of_the_space(pipelines, words, tmp_path):
    space = f"""
from planter import Architecture, Candidate

def space(trial):
    trial.suggest_int("n", 0, 1)
    return Candidate(Architecture("resnet", {{}}, {{"depth": 8}}, {pipelines!r}))
"""
    with pytest.raises(StudyError) as caught:
        prepare(read_study(write_study(tmp_path, space), []))
    (problem,) = caught.value.problems
    assert problem.place == "sample.space"
    assert words in str(problem)


def shrinking(channels):
    return torch.nn.Conv2d(channels, channels, 3)


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    net = planter.build(planter.Architecture("resnet", {}, {"depth": 8, "classes": 7}))
    with pytest.raises(ValueError, match="both need the same images and classes"):
        planter.distillation_loss(torch.zeros(2, 10), net(torch.zeros(2, 3, 8, 8)))
