"""`planter export` as a person types it, on a finished run and on damaged copies of it."""

import json
import re
import shutil

import pytest
import torch
from torch import nn

import planter
from planter.driver.storage.points import open_storage
from planter.export.points import find_row


@pytest.fixture
def rows(place):
    front = json.loads((place / "runs" / "small" / "pareto.json").read_text())
    return sorted((p for p in front["points"] if p["on_front"]), key=lambda p: p["macs"])


@pytest.fixture
def copied(place):
    """A copy of the run, runs/other, to damage; and its pareto.json, written back by a call."""
    other = place / "runs" / "other"
    shutil.copytree(place / "runs" / "small", other)
    front = json.loads((other / "pareto.json").read_text())

    def write(change):
        change(front)
        (other / "pareto.json").write_text(json.dumps(front))
        return front

    yield write
    shutil.rmtree(other)


def _on_validation(place, session):
    """Accuracy of a file that takes raw images, counted here."""
    split = planter.load_data(place / "runs" / "small").validation
    logits = session.run(None, {"images": split.images.numpy()})[0]
    return (logits.argmax(1) == split.labels.numpy()).mean()


def test_the_best_point_under_a_bound_becomes_a_file(call, place, rows, tmp_path):
    import onnx
    import onnxruntime

    file = tmp_path / "new" / "net.onnx"
    bound = str(rows[-1]["macs"])
    code, out, err = call(
        "export", "small", "--max-macs", bound, "-o", str(file), "--normalise", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert (found["id"], found["macs"]) == (rows[-1]["id"], rows[-1]["macs"])
    assert found["accuracy"] == pytest.approx(rows[-1]["accuracy"])
    assert found["bytes"] == file.stat().st_size
    assert found["max_difference"] < 1e-4
    assert found["input"] == "raw uint8 images [batch, 1, 8, 8], 0..255"
    session = onnxruntime.InferenceSession(file)
    assert _on_validation(place, session) == pytest.approx(rows[-1]["accuracy"])
    told = {pair.key: pair.value for pair in onnx.load(file).metadata_props}
    run = place / "runs" / "small"
    assert told["study"] == "small"
    assert json.loads(told["classes"]) == list("0123456789")
    assert float(told["test_accuracy"]) == rows[-1]["test_accuracy"]
    spec = json.loads((run / rows[-1]["model"] / "arch.json").read_text())
    assert json.loads(told["seed"]) == spec["seed"]
    assert json.loads(told["architecture"]) == spec["architecture"]
    assert json.loads(told["mean"]) == planter.load_data(run).train.mean.flatten().tolist()


def test_a_trial_with_one_network_becomes_plain_code(call, place, tmp_path):
    file = tmp_path / "teacher.safetensors"
    code, out, err = call("export", "runs/small/teacher", "-o", str(file), "--fold-norms")
    assert code == 0, err
    assert re.search(r"teacher/base -> .*teacher.safetensors and .*teacher.py", out)
    assert "normalised float32 images [batch, 1, 8, 8]: (pixel / 255 - mean) / std" in out
    names = {"__file__": str(tmp_path / "teacher.py"), "__name__": "teacher"}
    exec((tmp_path / "teacher.py").read_text(), names)
    run = place / "runs" / "small"
    split = planter.load_data(run).validation
    images = split.normalise(split.images)
    network = planter.load(run / "models" / "teacher" / "base")
    with torch.no_grad():
        assert torch.equal(names["load"]()(images), network(images))
    assert all(type(m).__module__.startswith("torch.nn") for m in names["load"]().children())
    assert isinstance(names["load"]().get_submodule("conv1.conv"), nn.Conv2d)


def test_int8_is_told_with_its_accuracy(call, place, tmp_path):
    import onnxruntime

    file = tmp_path / "small.onnx"
    arguments = ("-o", str(file), "--int8", "--calibration", "50", "--normalise")
    code, out, err = call("export", "small", "--knee", *arguments)
    assert code == 0, err
    accuracy = _on_validation(place, onnxruntime.InferenceSession(file))
    assert f"INT8, ranges from 50 training images: {accuracy:.2%} (" in out
    assert "of 60 validation images" in out
    assert call("export", "small", "--knee", *arguments)[0] == 2  # it is there
    assert call("export", "small", "--knee", *arguments, "--force", "--calibration", "20")[0] == 0


def test_of_many_points_those_near_a_typo_are_named():
    ids = [f"s{n:04d}/base" for n in range(30)]
    front = {"study": "big", "points": [{"id": one, "trial": one[:5]} for one in ids]}
    assert find_row(front, "s0007")["id"] == "s0007/base"
    with pytest.raises(ValueError, match=r"points are .*s0012/base.* and 20 more"):
        find_row(front, "s0012/bse")
    with pytest.raises(ValueError, match=r"points are s0000/base, .* and 20 more"):
        find_row(front, "zzz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch", "--knee", "-o", "x.onnx"], "no run 'nosuch'.*runs here are small"),
        (["small/s0099", "-o", "x.onnx"], "no point 's0099'; points are"),
        (["small", "-o", "x.onnx"], "give either --knee or bounds"),
        (["small", "--knee", "--max-macs", "2M", "-o", "x.onnx"], "give either --knee or bounds"),
        (["small", "--max-macs", "two", "-o", "x.onnx"], "'two': expected a number above 0"),
        (["small", "--min-accuracy", "90", "-o", "x.onnx"], "between 0 and 1"),
        (["small/teacher", "--knee", "-o", "x.onnx"], "small/teacher is one network"),
        (["small/teacher", "-o", "x.h5"], "endings are .onnx, .pt2, .safetensors"),
        (["small/teacher", "-o", "x.onnx", "--format", "pt2"], "expected a file that ends in .pt2"),
        (["small/teacher", "-o", "small.yaml/x.onnx"], "cannot write in small.yaml"),
        (["small/teacher", "-o", "x.pt2", "--int8"], "INT8 is written as ONNX"),
        (["small/teacher", "-o", "x.onnx", "--calibration", "9"], "give --int8 with it"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(call, place, arguments, message):
    before = sorted(place.iterdir())
    code, _, err = call("export", *arguments)
    assert code == 2
    assert re.search(message, re.sub(r"\s+", " ", err)), err
    assert "Traceback" not in err
    assert sorted(place.iterdir()) == before


def test_a_bound_nothing_meets_is_exit_code_3_with_the_nearest(call, rows):
    code, _, err = call("export", "small", "--max-macs", "1", "-o", "x.onnx")
    assert code == 3
    assert f"the nearest is {rows[0]['id']}" in err


def test_a_network_that_was_not_kept_is_told_with_how_to_keep(call, place):
    front = json.loads((place / "runs" / "small" / "pareto.json").read_text())
    gone = next(p for p in front["points"] if p["model"] is None)
    code, _, err = call("export", f"small/{gone['id']}", "-o", "x.onnx")
    assert code == 2
    assert "were not kept" in err
    assert "keep: all" in err


def test_a_trial_of_several_networks_wants_one_named(call, place):
    front = json.loads((place / "runs" / "small" / "pareto.json").read_text())
    trial = next(p["trial"] for p in front["points"] if p["pipeline"].startswith("cut"))
    code, _, err = call("export", f"small/{trial}", "-o", "x.onnx")
    assert code == 2
    assert f"{trial} has several networks: " in err
    assert f"{trial}/base" in err


def test_a_run_that_goes_on_is_exported_with_a_note(call, copied, place, tmp_path):
    storage = open_storage(f"sqlite:///{place / 'runs' / 'other' / 'study.db'}")
    storage.create_new_trial(storage.get_study_id_from_name("small/sampling"))  # and never ended
    storage.close()
    code, _, err = call("export", "other/teacher", "-o", str(tmp_path / "x.onnx"))
    assert code == 0, err
    assert "runs/other: Not finished" in err
    code, _, err = call("export", "small/teacher", "-o", str(tmp_path / "y.onnx"))
    assert code == 0, err
    assert "ot finished" not in err


def test_a_run_without_its_database_is_exported_with_a_note(call, copied, place, tmp_path):
    (place / "runs" / "other" / "study.db").unlink()
    code, _, err = call("export", "other/teacher", "-o", str(tmp_path / "x.onnx"))
    assert code == 0, err
    assert "cannot be told: runs/other has no study.db" in err


@pytest.mark.parametrize("text", ["{}", "{", "[]"])
def test_a_run_that_does_not_say_what_its_images_were_is_told(call, copied, place, text):
    (place / "runs" / "other" / "environment.json").write_text(text)
    code, _, err = call("export", "other/teacher", "-o", "x.onnx")
    assert code == 2
    assert "environment.json does not say what the images of the run were" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["points"][0].pop("on_front"), "older planter: it lacks on_front"),
        (lambda f: f.pop("points"), "older planter: it lacks points"),
        (lambda f: [p.update(on_front=False) for p in f["points"]], "front of small is empty"),
        (lambda f: [p.update(accuracy=0.0) for p in f["points"]], "no longer what was scored"),
    ],
)
def test_a_run_of_another_time_is_told(call, copied, change, message):
    copied(change)
    code, _, err = call("export", "other", "--knee", "-o", "x.onnx")
    assert code == 2
    assert re.search(message, re.sub(r"\s+", " ", err)), err


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "resolved.yaml",
            "subset: 240",
            "subset: 230",
            "images or labels are not those of runs/other",
        ),
        ("resolved.yaml", "subset:", "part:", "resolved.yaml is of another planter"),
        ("models/teacher/base/arch.json", '"format": 1', '"format": 0', "has format 0"),
    ],
)
def test_other_files_of_another_time_are_told(call, place, copied, file, old, new, message):
    path = place / "runs" / "other" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    code, _, err = call("export", "other/teacher", "-o", "x.onnx")
    assert code == 2
    assert re.search(message, re.sub(r"\s+", " ", err)), err
