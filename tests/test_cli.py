"""Commands as a person types them; a mistake is one message and exit code 2."""

import csv
import importlib.metadata
import json
import queue
import re
import subprocess
import sys
import threading
import urllib.request

import pytest

from planter.driver.dashboard.serve import serve_dashboard
from planter.driver.run_folder.read import read_points

COMMANDS = [
    "search", "check", "pareto", "report", "show", "cost", "dashboard", "export", "latency",
    "table", "train",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: planter {command}" in re.sub(r"\s+", " ", out)


def test_help_does_not_wait_for_torch():
    program = (
        "import sys; sys.argv = ['planter', '--help']\n"
        "from planter.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split("\n")[-2] == "False False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere.yaml"], "nowhere.yaml, expected a study file"),
        (["search", "small.yaml", "--set", "recipe.epoch=3"], "'epochs'"),
        (["search", "small.yaml", "--set", "recipe.epochs=-3"], "recipe.epochs: got -3"),
        (["search", "small.yaml", "--set", "nonsense"], "KEY=VALUE"),
        (["check", "small.yaml", "--set", "data.name=mnist"], "needs a root"),
        (["check"], "check needs a STUDY"),
        (["show", "nosuch"], "no run 'nosuch'.*runs here are small"),
        (["show", "small", "s0099"], "no trial or point 's0099'"),
        (["pareto", "nosuch"], "no run 'nosuch'"),
        (["cost", "nonet"], "unknown builder 'nonet'; builders are convnet"),
        (["cost", "vgg16", "--cut", "cut99"], "'cut99' is not a cut; cuts are cut1"),
        (["cost", "vgg16", "--image", "3x8x8"], "too small for vgg16"),
        (["cost", "vgg16", "--image", "three"], "expected channels x height x width"),
        (["cost", "convnet", "--widths", "conv9=3"], "no width conv9"),
        (["cost", "convnet", "--option", "depth=3"], "no option depth"),
        (["cost", "small/s0099"], "no point 's0099'"),
        (["cost", "small/s0000", "--cut", "cut1"], "give them for a BUILDER"),
        (["check", "small.yaml", "--set", "teacher.options={pool_after: 5}"], "pool_after"),
        (["dashboard", "nosuch"], "no run 'nosuch'"),
        (
            ["search", "small.yaml", "--set", "name=x", "--storage", "nodb"],
            "storage 'nodb' cannot be opened",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(call, arguments, message):
    code, _, err = call(*arguments)
    assert code == 2
    assert re.search(message, re.sub(r"\s+", " ", err))
    assert "Traceback" not in err


def test_debug_shows_the_traceback(call):
    code, _, err = call("cost", "nonet", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_an_unknown_option_is_a_usage_error(call):
    assert call("search", "small.yaml", "--no-such")[0] == 2


def test_check_reports_every_problem_as_json(call):
    code, out, _ = call("check", "small.yaml", "--json", "--set", "recipe.epochs=0", "--set", "x=1")
    found = json.loads(out)
    assert code == 2
    assert set(found) == {"ok", "problems", "estimate_s", "macs", "params"}
    assert found["ok"] is False
    assert {p["place"] for p in found["problems"]} == {"recipe.epochs", "x"}
    assert all(set(p) == {"place", "got", "expected"} for p in found["problems"])


def test_check_states_what_a_sound_study_costs(call):
    code, out, _ = call("check", "small.yaml", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["estimate_s"] > 0
    # One channel of 8 x 8 pixels, poolings after conv1, conv2 and conv5, width 8, fc1 128.
    maps = {"conv1": 64, "conv2": 16, "conv3": 4, "conv4": 4, "conv5": 4}
    macs = sum(9 * (1 if name == "conv1" else 8) * 8 * n for name, n in maps.items())
    assert found["macs"]["teacher"] == macs + 8 * 128 + 128 * 10
    assert 0.5 <= found["memory_gb"] < 0.6
    assert "A training takes up to about 0.5 GB of memory (" in call("check", "small.yaml")[1]


def test_check_divides_the_time_among_sections_and_names_what_to_turn_down(call):
    found = json.loads(call("check", "small.yaml", "--json")[1])
    parts, saved = found["parts"], found["half_saves_s"]
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(
        found["estimate_s"], abs=0.05
    )
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    lines = call("check", "small.yaml")[1].splitlines()
    (head,) = (n for n, line in enumerate(lines) if line.startswith("section"))
    told = [line.split()[0] for line in lines[head + 1 : head + 1 + len(parts)]]
    assert told == list(parts)
    (line,) = (line for line in lines if line.startswith("half of "))
    assert set(re.findall(r"of ([a-z.]+) \(", line)) <= set(saved)
    assert "budget.scale" in line


def test_check_prints_the_schema_of_study_files(call):
    schema = json.loads(call("check", "--schema")[1])
    assert set(schema["required"]) == {"name"}
    assert {"data", "teacher", "plant", "sample", "recipe"} <= set(schema["properties"])


def test_pareto_prints_and_writes_what_pareto_json_says(call, place, tmp_path):
    front = json.loads((place / "runs/small/pareto.json").read_text())
    code, out, _ = call("pareto", "small", "--json")
    assert code == 0
    assert json.loads(out) == front
    page, table = tmp_path / "new" / "f.html", tmp_path / "new" / "f.csv"
    code, out, _ = call("pareto", "small", "runs/small", "--html", str(page), "--csv", str(table))
    assert code == 0
    for point in front["points"]:
        if point["on_front"]:
            assert point["id"] in out
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["id"] for row in rows] == [point["id"] for point in front["points"]] * 2
    assert "<script" in page.read_text()


def test_show_tells_of_a_trial_what_the_run_knows(call, place):
    front = json.loads((place / "runs/small/pareto.json").read_text())
    point = next(p for p in front["points"] if p["on_front"])
    code, out, _ = call("show", "small", point["id"])
    assert code == 0
    assert f"{point['macs']:,}" in out
    assert "convnet: conv1=" in out
    assert call("show", "small")[1].count("sample") == sum(
        p["method"] == "sample" for p in front["points"]
    )


def test_cost_of_cnsns_vgg16_is_the_published_one(call):
    code, out, _ = call("cost", "vgg16", "--cut", "cut2", "--cut", "cut7", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["macs"], found["macs_all"], found["params"]) == (
        313_201_664,
        314_432_512,
        14_724_042,
    )
    ways = found["pipelines"]
    assert [ways[name]["macs"] for name in ("cut2", "cut7")] == [273_880_064, 123_474_944]
    assert [ways[name]["params"] for name in ("cut2", "cut7")] == [14_686_090, 13_037_066]
    assert "313,201,664" in call("cost", "vgg16")[1]


def test_cost_of_one_width_leaves_the_fully_connected_layers(call):
    found = json.loads(call("cost", "convnet", "--widths", "8", "--json")[1])
    assert found["params"] == 20_362  # channel planting's table, CIFAR-10
    named = "conv1=8,conv2=8,conv3=8,conv4=8,conv5=8"
    assert json.loads(call("cost", "convnet", "--widths", named, "--json")[1]) == found


def test_cost_of_a_point_is_that_of_the_run(call, place):
    front = json.loads((place / "runs/small/pareto.json").read_text())
    for point in front["points"][:4]:
        found = json.loads(call("cost", f"small/{point['id']}", "--json")[1])
        for counted in (found, found["pipelines"][point["pipeline"]]):
            assert (counted["macs"], counted["params"]) == (point["macs"], point["params"])


def test_dashboard_serves_the_run_on_the_loopback(place):
    addresses = queue.Queue()
    # Port 0 lets the system choose a free one.
    arguments = (place / "runs/small", "127.0.0.1", 0, addresses.put)
    threading.Thread(target=serve_dashboard, args=arguments, daemon=True).start()
    address = addresses.get(timeout=30)
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.status == 200
    server = address.partition("/dashboard")[0]
    with urllib.request.urlopen(f"{server}/api/studies", timeout=30) as answer:
        studies = json.load(answer)["study_summaries"]
    assert {study["study_name"] for study in studies} == {
        "small",
        "small/sampling",
        "small/planting",
    }
    main = next(study for study in studies if study["study_name"] == "small")
    assert main["directions"] == ["maximize", "minimize"]
    assert address.endswith(f"/studies/{main['study_id']}")


def test_nothing_within_the_bounds_is_exit_code_3(call, tmp_path):
    code, _, err = call(
        "search", "small.yaml", "--out", str(tmp_path / "run"), "--set", "plant=null",
        "--set", "objectives.bounds.macs=10", "--set", "sample.trials=2",
    )  # fmt: skip
    assert code == 3
    assert "nothing within the bounds" in err


def test_a_failed_search_is_exit_code_4(call, tmp_path):
    code, _, err = call(
        "search", "small.yaml", "--out", str(tmp_path / "run"), "--set", "resources.max_failures=0",
        "--set", "recipe={epochs: 2, lr: 1.0e+30, optimizer: sgd, schedule: constant}",
    )  # fmt: skip
    assert code == 4
    assert "lower lr" in err
    assert "same command goes on" in err


def test_a_search_of_which_nothing_came_is_exit_code_4(call, tmp_path):
    code, _, err = call(
        "search", "small.yaml", "--out", str(tmp_path / "run"), "--set", "plant=null",
        "--set", "recipe={epochs: 2, lr: 1.0e+30, optimizer: sgd, schedule: constant}",
        "--set", "baselines=[]",
        "--set", f"teacher={{model: {place_of_teacher()}}}",
    )  # fmt: skip
    assert code == 4
    assert "every sampled trial failed" in err


def place_of_teacher():
    return "runs/small/models/teacher/base"


def test_version_is_the_installed_one(call):
    code, out, _ = call("--version")
    assert code == 0
    assert out.strip() == f"planter {importlib.metadata.version('planter')}"


def test_search_prints_plain_lines_and_the_front_without_a_terminal(call, tmp_path):
    code, out, _ = call(
        "search", "small.yaml", "--out", str(tmp_path / "run"), "--set", "sample=null",
        "--set", "plant=null",
    )  # fmt: skip
    assert code == 0  # nothing was searched, and nothing was to be
    assert "teacher done: base" in out
    assert "\x1b" not in out
    assert "b-width4/base" in out


TRAINING = {"kernels", "batch", "macs_step", "macs_step_plain", "params", "params_plain"}
# Weights of Cifar-quick's layers times their filters, then its multiply-adds (facts.md 3.5, 3.6).
QUICK_PRODUCT = 26_153_984
QUICK_STEP = 3 * 10_763_904 - 32 * 75 * 1024


def test_cost_of_training_is_json_beside_the_cost_of_the_network(call):
    code, out, _ = call("cost", "cifar_quick", "--training", "--kernels", "kflo:2x4", "--json")
    assert code == 0
    found = json.loads(out)
    step = found.pop("training")
    assert set(step) == TRAINING
    assert step == {
        "kernels": "kflo:2x4",
        "batch": 128,
        "macs_step": 128 * QUICK_STEP + 3 * QUICK_PRODUCT,
        "macs_step_plain": 128 * QUICK_STEP,
        "params": 508_176 + 2 * 128 + 4 * 74,
        "params_plain": 116_704 + 2 * 128 + 74,
    }
    assert json.loads(call("cost", "cifar_quick", "--json")[1]) == found
    # The published form is the one a builder is shown in by default.
    assert json.loads(call("cost", "cifar_quick", "--training", "--json")[1])["training"] == step


def test_cost_of_training_takes_a_batch_and_the_plain_form(call):
    arguments = ["cost", "cifar_quick", "--training", "--json"]
    step = json.loads(call(*arguments, "--batch", "7", "--kernels", "plain")[1])["training"]
    assert (step["kernels"], step["batch"]) == ("plain", 7)
    assert step["macs_step"] == step["macs_step_plain"] == 7 * QUICK_STEP
    step = json.loads(call(*arguments, "--batch", "7")[1])["training"]
    assert step["macs_step"] == 7 * QUICK_STEP + 3 * QUICK_PRODUCT


def test_cost_of_training_is_a_table_with_what_is_added(call):
    code, out, _ = call("cost", "cifar_quick", "--training", "--kernels", "kflo:2x4")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    added = f"{3 * QUICK_PRODUCT:,} ({3 * QUICK_PRODUCT / (128 * QUICK_STEP):.1%})"
    assert added in lines["added"]
    assert f"{508_176 - 116_704 + 3 * 74:,}" in lines["added"]
    assert f"{128 * QUICK_STEP:,}" in lines["plain"]
    assert f"{128 * QUICK_STEP + 3 * QUICK_PRODUCT:,}" in lines["kflo:2x4"]
    assert "added" not in call("cost", "cifar_quick")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernels", "kflo:2x4"], "give --training with it"),
        (["--training", "--kernels", "kflow:2x4"], "unknown training form 'kflow:2x4'; forms are"),
        (["--training", "--kernels", "kflo:two"], "cannot read the training form 'kflo:two'"),
        (["--training", "--kernels", "kflo:0x2"], r"depth \(B\) must be a whole number >= 1"),
        (["--training", "--kernels", "acnet", "--cut", "cut1"], "pipelines cut1, each with norm"),
        (["--training", "--batch", "1"], "batch"),
    ],
)
def test_training_costs_that_cannot_be_counted_are_exit_code_2(call, arguments, message):
    code, _, err = call("cost", "cifar_quick", *arguments)
    assert code == 2
    assert re.search(message, re.sub(r"\s+", " ", err))
    assert "Traceback" not in err


def test_cost_of_a_wrn_follows_its_widening(call):
    code, out, _ = call("cost", "wrn", "--option", "widen=2", "--json", "--classes", "100")
    assert code == 0
    found = json.loads(out)
    outputs = {stage["name"]: stage["output"] for stage in found["stages"]}
    assert outputs["stem"] == [16, 32, 32]
    assert outputs["group1_1"] == outputs["group1_4"] == [16 * 2, 32, 32]
    assert outputs["group2_4"] == [32 * 2, 16, 16]
    assert outputs["group3_4"] == [64 * 2, 8, 8]
    assert outputs["head"] == [100]
    assert abs(found["params"] - 1.48e6) <= 5e3  # WRN-28-2, facts.md 4.3
    # Per group: a first block and its shortcut, then three blocks of two convolutions.
    macs = 27 * 16 * 1024 + 128 * 100
    for channels, width, pixels in ((16, 32, 1024), (32, 64, 256), (64, 128, 64)):
        macs += (9 * channels + channels + 9 * width + 3 * 18 * width) * width * pixels
    assert found["macs"] == macs


def test_show_and_cost_know_the_form_a_trial_was_trained_in(call, place):
    points = [p for p in read_points(place / "runs/small") if p.method == "sample"]
    assert {"kflo:2x2"} <= {point.kernels for point in points}
    for point in points:
        code, out, _ = call("show", "small", point.trial)
        assert code == 0
        shown = re.findall(r"kernels in training: (\S+)", out)
        assert shown == ([] if point.kernels == "plain" else [point.kernels])
    expanded = next(point for point in points if point.kernels == "kflo:2x2")
    arguments = ["cost", f"small/{expanded.id}", "--training", "--batch", "30", "--json"]
    step = json.loads(call(*arguments)[1])["training"]
    assert step["kernels"] == "kflo:2x2"
    # 180 training images in 6 steps of 30, for two epochs: what the trial was booked for.
    found = json.loads(call("cost", f"small/{expanded.trial}", "--json")[1])
    macs = sum(way["macs"] for way in found["pipelines"].values())
    extra = step["macs_step"] - step["macs_step_plain"]
    assert extra > 0
    assert expanded.train_macs == 3 * macs * 180 * 2 + extra * 12
    assert json.loads(call(*arguments, "--kernels", "plain")[1])["training"]["kernels"] == "plain"


PIPELINE_KEYS = {"macs", "macs_all", "params", "extra_params", "extra_statistics"}


def test_cost_of_every_kind_of_pipeline_is_json(call):
    code, out, _ = call(
        "cost", "vgg16", "--cut", "cut2", "--branch", "cut7=rest", "--branch", "conv3=fc",
        "--head", "fsrcnn", "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    ways = found["pipelines"]
    assert list(ways) == ["base", "cut2", "branch-cut7", "branch-conv3", "head-fsrcnn"]
    assert {key for way in ways.values() for key in way} == PIPELINE_KEYS
    assert ways["cut2"]["extra_params"] == 896
    # conv8 ... conv13, their norms and the linear layer once more.
    rest = 9 * 256 * 512 + 5 * 9 * 512 * 512 + 6 * 2 * 512 + 513 * 10
    assert ways["branch-cut7"]["extra_params"] == rest
    assert ways["branch-cut7"]["macs"] == ways["base"]["macs"]
    assert ways["branch-conv3"]["extra_params"] == 128 * 129 + 129 * 10
    assert ways["head-fsrcnn"]["extra_params"] == 27_263
    assert ways["head-fsrcnn"]["macs"] == ways["base"]["macs"] + 27_072 * 1024  # facts.md 5.2
    assert found["extra_params"] == sum(way["extra_params"] for way in ways.values())


def test_cost_says_what_a_family_stores(call):
    out = call("cost", "vgg16", "--cut", "cut2", "--cut", "cut7")[1]
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["cut2"] == ["cut2", "273,880,064", "274,586,624", "14,686,090", "896"]
    assert lines["cut7"] == ["cut7", "123,474,944", "123,624,448", "13,037,066", "49,664"]
    assert "store 50,560 parameters (0.34%) and 14,976 norm statistics" in re.sub(r"\s+", " ", out)
    assert "all pipelines together" not in call("cost", "vgg16")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cut", "cut1", "--cut", "cut1"], "pipeline cut1 is given twice"),
        (["--branch", "cut1=fc", "--branch", "cut1=conv"], "pipeline branch-cut1 is given twice"),
        (["--head", "vdsr", "--head", "vdsr"], "pipeline head-vdsr is given twice"),
        (["--cut", "head-vdsr", "--head", "vdsr"], "pipeline head-vdsr is given twice"),
        (["--cut", "conv1"], "'conv1' is not a cut; cuts are cut1 (before conv2)"),
        (["--cut", "base"], "'base' is the backbone's own pipeline"),
        (["--branch", "conv4"], "'conv4' is not a cut; a branch may leave at cut1 (after conv1)"),
        (["--branch", "conv2=deep"], "unknown kind of branch 'deep'; kinds are blocks, narrow"),
        (["--branch", "conv2=blocks"], "toy has no branch of kind 'blocks'"),
        (["--head", "srcnn"], "unknown image head 'srcnn'; kinds are fsrcnn, vdsr"),
        (["--head", "nowhere.heads:build"], "cannot import 'nowhere.heads'"),
    ],
)
def test_pipelines_that_cannot_be_counted_are_exit_code_2(call, arguments, message):
    code, _, err = call("cost", "toy", *arguments)
    assert code == 2
    assert message in re.sub(r"\s+", " ", err)
    assert "Traceback" not in err


def test_a_point_of_a_run_takes_no_more_pipelines(call):
    for arguments in (["--branch", "cut1"], ["--head", "vdsr"], ["--cut", "cut1"]):
        code, _, err = call("cost", "small/teacher", *arguments)
        assert code == 2
        assert "give them for a BUILDER" in err
