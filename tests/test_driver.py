"""The driver without Ray: small studies trained in this process."""

import csv
import json
from pathlib import Path

import optuna
import pytest
import torch
from interrupted import until_it_ends

import planter
from planter.driver.backends import local
from planter.driver.run_folder.read import read_points
from planter.driver.tasks import context as context_module
from planter.driver.tasks.run_job import TASKS
from planter.driver.trials.jobs import SearchStoppedError
from planter.planting import round as fast_round
from planter.study.schema import StudyError
from planter.training import loop as train

SMALL = """
name: small
data: {name: digits, subset: 240, validation: 0.25}
teacher: {builder: convnet, widths: 8}
baselines: [{widths: 4}]
recipe: {epochs: 2, batch: 30, optimizer: adam, lr: 0.01, schedule: onecycle}
plant:
  start: 3
  channels: 2
  rounds: 2
  layers: [conv1, conv5]
  recipe: {epochs: 3, batch: 30, optimizer: adam, lr: 0.01, weight_decay: 0.0}
sample: {space: "SPACE:space", trials: 4}
resources: {workers: 0}
"""
SPACE = """
from planter import Architecture, Candidate, KernelFilter

def space(trial):
    width = trial.suggest_categorical("width", [4, 6])
    cut = trial.suggest_categorical("cut", ["none", "cut1", "cut2"])
    pipelines = {cut: {}} if cut != "none" else {}
    depth = trial.suggest_int("depth", 1, 2)
    return Candidate(
        Architecture("convnet", dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5"], width),
                     {}, pipelines),
        kernels=KernelFilter(depth, rho=2),
        kd_weight=trial.suggest_float("kd", 0.0, 1.0),
    )
"""


def write_study(folder: Path) -> Path:
    space = folder / "space.py"
    space.write_text(SPACE)
    file = folder / "small.yaml"
    file.write_text(SMALL.replace("SPACE", str(space)))
    return file


@pytest.fixture
def study_file(tmp_path):
    return write_study(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the small study finds when nothing interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    return planter.search(write_study(folder), out=folder / "run")


def rows(run: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{run / 'study.db'}"
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def assert_complete(run: Path, trials: int = 4, *, may_stop: bool = False) -> set[str]:
    """What must hold of a finished run whatever happened on the way; with early stopping, the
    trials that were stopped."""
    front = json.loads((run / "pareto.json").read_text())
    sampled = rows(run, "small/sampling")
    assert [row.number for row in sampled] == list(range(trials))
    stopped = {f"s{row.number:04d}" for row in sampled if row.state.name == "PRUNED"}
    assert not stopped or may_stop
    assert all(row.state.name in ("COMPLETE", "PRUNED") for row in sampled)
    assert all(row.state.name == "COMPLETE" for row in rows(run, "small/planting"))
    ids = [row.user_attrs["id"] for row in rows(run, "small")]
    assert len(ids) == len(set(ids))
    assert {p["id"] for p in front["points"]} == set(ids)
    assert {p["trial"] for p in front["points"] if p["method"] == "sample"} == {
        f"s{number:04d}" for number in range(trials)
    } - stopped
    for method, count in (("teacher", 1), ("baseline", 1)):
        assert sum(p["method"] == method for p in front["points"]) == count
    return stopped


class Interruption(Exception):
    """Stands for a kill: raised where the driver never catches anything."""


def test_every_saved_model_has_exactly_the_accuracy_it_is_reported_with(study_file, tmp_path):
    run = tmp_path / "run"
    front = planter.search(study_file, out=run)
    assert_complete(run)
    data = planter.load_data(run)
    saved = [point for point in front["points"] if point["model"]]
    assert {p["id"] for p in saved} >= {p["id"] for p in front["points"] if p["on_front"]}
    for point in saved:
        network = planter.load(run / point["model"])
        assert planter.evaluate(network, data.validation).accuracy == point["accuracy"]
        if point["test_accuracy"] is not None:
            assert planter.evaluate(network, data.test).accuracy == point["test_accuracy"]
        counter = torch.utils.flop_counter.FlopCounterMode(display=False)
        with counter:
            network(torch.zeros(1, *data.image))
        assert counter.get_total_flops() / 2 == point["macs"]
        assert sum(p.numel() for p in network.parameters()) == point["params"]


def test_only_the_front_the_teacher_and_the_baselines_are_scored_on_test_images(
    study_file, tmp_path
):
    front = planter.search(study_file, out=tmp_path / "run")
    for point in front["points"]:
        reported = point["on_front"] or point["method"] in ("teacher", "baseline")
        assert (point["test_accuracy"] is not None) == reported
    stored = (tmp_path / "run" / "study.db").read_bytes()
    assert b"test_accuracy" not in stored


def test_the_front_is_what_brute_force_finds(study_file, tmp_path):
    front = planter.search(study_file, out=tmp_path / "run")
    searched = [p for p in front["points"] if p["method"] in ("plant", "sample")]
    for point in searched:
        dominated = any(
            other["accuracy"] >= point["accuracy"]
            and other["macs"] <= point["macs"]
            and (other["accuracy"], -other["macs"]) != (point["accuracy"], -point["macs"])
            for other in searched
        )
        assert point["on_front"] == (not dominated)
    assert not any(p["on_front"] for p in front["points"] if p not in searched)


def test_planting_log_follows_the_greedy_rule(study_file, tmp_path):
    run = tmp_path / "run"
    planter.search(study_file, out=run)
    log = list(csv.DictReader((run / "planting.csv").read_text().splitlines()))
    assert [row["layer"] for row in log if row["round"] == "0"] == ["start"]
    best = float(log[0]["val_loss"])
    for number in sorted({int(row["round"]) for row in log} - {0}):
        candidates = [row for row in log if int(row["round"]) == number]
        assert {row["layer"] for row in candidates} == {"conv1", "conv5"}
        smallest = min(float(row["val_loss"]) for row in candidates)
        for row in candidates:
            chosen = row["accepted"] == "True"
            assert chosen == (float(row["val_loss"]) == smallest < best)
        best = smallest


def test_an_interruption_at_any_job_loses_and_doubles_nothing(
    study_file, whole, tmp_path, monkeypatch
):
    """Each job is interrupted once before it begins, each time by another command."""
    begun = []
    do = local.run_job

    def interrupted(self, job):
        if job.id not in begun:
            begun.append(job.id)
            raise Interruption
        return do(self, job)

    monkeypatch.setattr(local, "run_job", interrupted)
    run = tmp_path / "run"
    resumed = until_it_ends(lambda: planter.search(study_file, out=run), 9, Interruption)
    assert_complete(run)
    # With one job at a time nothing depends on timing: the outcome is the uninterrupted one.
    assert resumed["points"] == whole["points"]
    assert resumed["hypervolume"] == whole["hypervolume"]


@pytest.mark.parametrize("when", ["before tell", "after tell"])
def test_a_kill_between_the_writes_of_one_result_loses_and_doubles_nothing(
    study_file, whole, tmp_path, monkeypatch, when
):
    tell = optuna.Study.tell
    calls = []

    def killed(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 4 and when == "before tell":
            raise Interruption
        told = tell(self, *args, **kwargs)
        if len(calls) == 4:
            raise Interruption
        return told

    monkeypatch.setattr(optuna.Study, "tell", killed)
    run = tmp_path / "run"
    with pytest.raises(Interruption):
        planter.search(study_file, out=run)
    monkeypatch.undo()
    assert planter.search(study_file, out=run)["points"] == whole["points"]
    assert_complete(run)


def test_a_finished_run_trains_nothing_again_and_goes_on_when_more_is_asked(
    study_file, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    first = planter.search(study_file, out=run)
    trained = []
    do = local.run_job
    monkeypatch.setattr(local, "run_job", lambda self, job: trained.append(job.id) or do(self, job))
    assert planter.search(study_file, out=run) == first
    assert trained == []
    planter.search(study_file, out=run, overrides=["sample.trials=6"])
    assert trained == ["s0004", "s0005"]
    assert_complete(run, trials=6)


def test_a_failing_trial_is_recorded_with_its_reason_and_the_study_goes_on(
    study_file, tmp_path, monkeypatch
):
    sample = TASKS["sample"]

    def failing(self, job):
        if job.id == "s0001":
            raise FloatingPointError("the loss became nan")
        return sample(self, job)

    monkeypatch.setitem(TASKS, "sample", failing)
    run = tmp_path / "run"
    planter.search(study_file, out=run)
    states = [row.state.name for row in rows(run, "small/sampling")]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "the loss became nan" in rows(run, "small/sampling")[1].user_attrs["error"]
    assert "the loss became nan" in (run / "trials" / "s0001" / "log.txt").read_text()


def test_too_many_failures_and_a_failing_teacher_stop_the_study(study_file, tmp_path, monkeypatch):
    def failing(self, job):
        raise RuntimeError("broken")

    monkeypatch.setitem(TASKS, "sample", failing)
    with pytest.raises(SearchStoppedError, match=r"max_failures is 1"):
        planter.search(study_file, out=tmp_path / "a", overrides=["resources.max_failures=1"])
    monkeypatch.setitem(TASKS, "teacher", failing)
    with pytest.raises(SearchStoppedError, match="the teacher failed: RuntimeError: broken"):
        planter.search(study_file, out=tmp_path / "b")


def test_networks_beyond_a_bound_are_refused_before_training_and_told_as_constraints(
    study_file, tmp_path
):
    run = tmp_path / "run"
    limit = planter.cost(
        planter.Architecture(
            "convnet",
            {**dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5"], 4), "fc1": 128},
            {"image": [1, 8, 8]},
        )
    ).macs
    front = planter.search(
        study_file, out=run, overrides=[f"objectives.bounds.macs={limit}", "sample.trials=8"]
    )
    for row in rows(run, "small/sampling"):
        refused = row.params["width"] == 6 and row.params["cut"] == "none"
        assert (row.state.name == "PRUNED") == refused or row.params["cut"] != "none"
        assert any(key.startswith("constraints") for key in row.system_attrs)
    assert all(p["macs"] <= limit for p in front["points"] if p["on_front"])


def test_a_family_study_is_told_the_hypervolume_of_each_trial(study_file, tmp_path):
    run = tmp_path / "run"
    planter.search(
        study_file, out=run, overrides=["objectives.family=true", "plant=null", "sample.trials=2"]
    )
    points = read_points(run)
    reference = json.loads((run / "pareto.json").read_text())["reference_point"]
    for row in rows(run, "small/sampling"):
        own = [p for p in points if p.trial == f"s{row.number:04d}"]
        values = [(p.accuracy, p.macs) for p in own]
        assert row.values == [planter.hypervolume(values, reference)]


def test_a_teacher_is_trained_once_for_all_studies_that_share_it(study_file, tmp_path, monkeypatch):
    fitted = []
    fit = context_module.fit
    monkeypatch.setattr(
        context_module, "fit", lambda model, *a, **k: fitted.append(model) or fit(model, *a, **k)
    )
    lean = ["plant=null", "sample=null", "baselines=[{widths: 4, kd: {weight: 1.0}}]"]
    first = planter.search(study_file, out=tmp_path / "a", overrides=lean)
    second = planter.search(study_file, out=tmp_path / "b", overrides=lean)
    assert len(fitted) == 3  # one teacher, two baselines
    assert [p["accuracy"] for p in first["points"]] == [p["accuracy"] for p in second["points"]]


def test_a_loaded_teacher_must_fit_the_data(study_file, tmp_path, caplog):
    planter.search(study_file, out=tmp_path / "a", overrides=["sample=null", "plant=null"])
    model = tmp_path / "a" / "models" / "teacher" / "base"
    loaded = ["sample=null", "plant=null", f"teacher={{model: {model}}}"]
    planter.search(study_file, out=tmp_path / "b", overrides=loaded)
    assert "another split" not in caplog.text
    planter.search(study_file, out=tmp_path / "c", overrides=[*loaded, "seed=5"])
    assert "another split" in caplog.text
    spec = json.loads((model / "arch.json").read_text())
    spec["architecture"]["options"]["classes"] = 7
    (model / "arch.json").write_text(json.dumps(spec))
    with pytest.raises(
        StudyError, match="got a network with classes 7, expected one with classes 10"
    ):
        planter.search(study_file, out=tmp_path / "d", overrides=loaded)


@pytest.mark.parametrize("kind", ["teacher", "sample", "plant"])
def test_a_training_cut_off_in_the_middle_goes_on_from_its_last_epoch(
    study_file, tmp_path, monkeypatch, kind
):
    longer = ["recipe.epochs=4", "plant.recipe.epochs=4", "plant.rounds=1"]
    whole = planter.search(study_file, out=tmp_path / "a" / "run", overrides=longer)
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", -1.0)
    monkeypatch.setattr(fast_round, "_CHECKPOINT_EVERY_S", -1.0)
    metrics, end_epoch = context_module.Context.metrics, fast_round._Student.end_epoch
    first = {"teacher": "teacher", "sample": "s0000", "plant": "p01-conv1"}[kind]
    hits = []

    def cut_off(self, trial, *args):
        note = metrics(self, trial, *args)

        def noted(epoch):
            note(epoch)
            if trial == first and epoch.epoch == 3:
                hits.append(trial)
                raise KeyboardInterrupt

        return noted

    def cut_off_plants(self, epoch, *args):
        if kind == "plant" and epoch == 2:
            hits.append(first)
            raise KeyboardInterrupt
        end_epoch(self, epoch, *args)

    monkeypatch.setattr(context_module.Context, "metrics", cut_off)
    monkeypatch.setattr(fast_round._Student, "end_epoch", cut_off_plants)
    run = tmp_path / "b" / "run"
    with pytest.raises(KeyboardInterrupt):
        planter.search(study_file, out=run, overrides=longer)
    monkeypatch.setattr(context_module.Context, "metrics", metrics)
    monkeypatch.setattr(fast_round._Student, "end_epoch", end_epoch)
    if kind == "plant":  # of all the round's candidates, which one worker trains together
        assert [file.parent.name for file in run.rglob("checkpoint.pt")] == ["p01-conv1"]
    resumed = planter.search(study_file, out=run, overrides=longer)
    # Compared bit for bit: a single different weight would show in some accuracy or loss.
    assert resumed["points"] == whole["points"]
    losses = [[p.loss for p in read_points(tmp_path / place / "run")] for place in "ab"]
    assert losses[0] == losses[1]
    (hit,) = hits
    for trial in ["p01-conv1", "p01-conv5"] if kind == "plant" else [hit]:
        said = "round taken up after epoch 2" if kind == "plant" else "taken up after epoch 2 of 4"
        assert said in (run / "trials" / trial / "log.txt").read_text()
        lines = (run / "trials" / trial / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in lines]
        assert epochs == [1, 2, 3, 4]
    assert not list(run.rglob("*.pt"))
    assert not list((tmp_path / "b").rglob("*.part"))


def test_models_kept_are_those_the_interface_names(study_file, tmp_path):
    front = planter.search(study_file, out=tmp_path / "front")
    log = list(csv.DictReader((tmp_path / "front" / "planting.csv").read_text().splitlines()))
    last = [row for row in log if row["accepted"] == "True"][-1]
    for point in front["points"]:
        planted_last = point["trial"] == f"p{int(last['round']):02d}-{last['layer']}"
        kept = point["on_front"] or planted_last or point["method"] in ("teacher", "baseline")
        assert (point["model"] is not None) == kept
        assert (tmp_path / "front" / "models" / point["id"]).is_dir() == kept
    every = planter.search(study_file, out=tmp_path / "all", overrides=["keep=all"])
    assert all(point["model"] for point in every["points"])


def test_a_sampled_network_trained_with_expanded_kernels_is_saved_plain(study_file, tmp_path):
    run = tmp_path / "run"
    front = planter.search(study_file, out=run, overrides=["keep=all", "plant=null"])
    expanded = {f"s{r.number:04d}" for r in rows(run, "small/sampling") if r.params["depth"] > 1}
    assert expanded
    for point in front["points"]:
        if point["trial"] in expanded:
            names = set(planter.load(run / point["model"]).state_dict())
            assert not any("parametrizations" in name for name in names)
            assert "head.fc2.weight" in names


def test_a_space_may_use_the_names_of_plantings_own_parameters(study_file, tmp_path):
    space = tmp_path / "space.py"
    space.write_text(SPACE.replace('"depth"', '"channels"').replace('"cut"', '"layer"'))
    planter.search(study_file, out=tmp_path / "run")
    names = {name for row in rows(tmp_path / "run", "small") for name in row.params}
    assert {"channels", "plant_channels", "layer", "plant_layer"} <= names


def test_plants_that_end_in_no_number_fail_and_the_study_goes_on(study_file, tmp_path):
    overrides = ["plant.recipe={epochs: 1, batch: 400, optimizer: sgd, lr: 1.0e+25}"]
    front = planter.search(study_file, out=tmp_path / "run", overrides=overrides)
    states = {r.user_attrs["id"]: r.state.name for r in rows(tmp_path / "run", "small/planting")}
    assert states["p00-start"] == "COMPLETE"
    assert set(states.values()) == {"COMPLETE", "FAIL"}
    assert {p["trial"] for p in front["points"]} >= {"s0003", "p00-start"}


def test_a_failed_start_of_planting_stops_the_search_and_is_tried_again(
    study_file, tmp_path, monkeypatch
):
    start = TASKS["start"]

    def failing(self, job):
        raise OSError("no space left on device")

    monkeypatch.setitem(TASKS, "start", failing)
    run = tmp_path / "run"
    with pytest.raises(SearchStoppedError, match="no space left"):
        planter.search(study_file, out=run)
    monkeypatch.setitem(TASKS, "start", start)
    planter.search(study_file, out=run)
    assert_complete(run)


def test_a_sampler_is_told_a_point_that_keeps_the_bounds(study_file, tmp_path):
    run = tmp_path / "run"
    # Below every base network and above the cut ones of width 4.
    limit = 7_000
    planter.search(
        study_file,
        out=run,
        overrides=[f"objectives.bounds.macs={limit}", "plant=null", "sample.trials=10"],
    )
    told = [r for r in rows(run, "small/sampling") if r.state.name == "COMPLETE"]
    assert told
    assert all(row.values[1] <= limit for row in told)


def test_a_worker_sees_the_trial_the_driver_saw(study_file, tmp_path):
    space = tmp_path / "space.py"
    space.write_text(SPACE.replace("width),", "width + trial.number),"))
    planter.search(study_file, out=tmp_path / "run", overrides=["plant=null"])
    for row in rows(tmp_path / "run", "small"):
        if row.user_attrs["method"] == "sample":
            number = int(row.user_attrs["trial"][1:])
            widths = row.user_attrs["architecture"]["widths"]
            assert widths["conv1"] == row.params["width"] + number


def test_a_trial_cut_off_while_it_was_asked_is_completed_as_it_would_have_been(
    study_file, tmp_path, monkeypatch
):
    lean = ["plant=null", "sample.sampler=random"]
    planter.search(study_file, out=tmp_path / "a", overrides=lean)
    suggest = optuna.trial.Trial.suggest_float
    calls = []

    def cut_off(self, name, *args, **kwargs):
        calls.append(name)
        # Eight draws are the check's; the second trial of the study is hit.
        if len(calls) == 10:
            raise KeyboardInterrupt
        return suggest(self, name, *args, **kwargs)

    monkeypatch.setattr(optuna.trial.Trial, "suggest_float", cut_off)
    with pytest.raises(KeyboardInterrupt):
        planter.search(study_file, out=tmp_path / "b", overrides=lean)
    monkeypatch.undo()
    (running,) = [r for r in rows(tmp_path / "b", "small/sampling") if r.state.name == "RUNNING"]
    assert set(running.params) == {"width", "cut", "depth"}
    planter.search(study_file, out=tmp_path / "b", overrides=lean)
    whole, resumed = (rows(tmp_path / place, "small/sampling") for place in "ab")
    assert [set(row.params) for row in resumed] == [set(row.params) for row in whole]
    kept = {name: resumed[1].params[name] for name in ("width", "cut", "depth")}
    assert kept == running.params
    # Trials after it are drawn as if nothing had happened.
    assert [row.params for row in resumed[2:]] == [row.params for row in whole[2:]]


def test_a_cut_pipeline_is_refused_as_a_teacher(study_file, tmp_path):
    front = planter.search(
        study_file, out=tmp_path / "a", overrides=["plant=null", "keep=all", "sample.trials=8"]
    )
    cut = next(p for p in front["points"] if p["pipeline"] != "base")
    with pytest.raises(StudyError, match="a pipeline 'base'"):
        planter.search(
            study_file,
            out=tmp_path / "b",
            overrides=[f"teacher={{model: {tmp_path / 'a' / cut['model']}}}"],
        )


def test_a_teacher_of_an_edited_builder_is_trained_anew(study_file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = (Path(__file__).parent / "nets.py").read_text()
    (tmp_path / "edited_nets.py").write_text(source)
    lean = [
        "teacher={builder: 'edited_nets:residual'}",
        "plant=null",
        "sample=null",
        "baselines=[{}]",
    ]
    planter.search(study_file, out=tmp_path / "a", overrides=lean)
    (tmp_path / "edited_nets.py").write_text(source + "\n# edited\n")
    planter.search(study_file, out=tmp_path / "b", overrides=lean)
    assert len(list((tmp_path / ".teachers").glob("*/arch.json"))) == 2
    saved = tmp_path / "b" / "models" / "teacher" / "base"
    with pytest.raises(ValueError, match="own_code=True"):
        planter.load(saved)
    assert planter.load(saved, own_code=True)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_what_is_sampled_in_multiples_is_trained_in_multiples(study_file, tmp_path):
    lean = ["plant=null", "sample.trials=2", "sample.multiple=8"]
    planter.search(study_file, out=tmp_path / "run", overrides=lean)
    sampled = [r for r in rows(tmp_path / "run", "small") if r.user_attrs["method"] == "sample"]
    assert {row.user_attrs["trial"] for row in sampled} == {"s0000", "s0001"}
    for row in sampled:
        # The space draws 4 or 6, and leaves the 128 units of fc1 as they are.
        assert set(row.user_attrs["architecture"]["widths"].values()) == {8, 128}
