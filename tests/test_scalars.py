"""Scalars for TensorBoard, read back from the records of its files."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event
from test_driver import write_study

import planter
from planter.driver.run_folder.tensorboard import write_scalars


def _scalars(folder):
    """(tag, step) -> value. A record is its length, a checksum, an event and a checksum."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, at, found = file.read_bytes(), 0, {}
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        at += 12 + length + 4
    return found


def test_scalars_are_those_of_the_metrics_and_of_the_points(tmp_path):
    lines = [{"epoch": n, "loss": 2.0 / n, "lr": 0.125, "seconds": 1.5} for n in (1, 2)]
    lines[1] |= {"val_accuracy": 0.25, "val_loss": 3.0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    points = [{"pipeline": "cut1", "accuracy": 0.75, "loss": 0.5, "macs": 3}]
    expected = {
        **{("training/loss", n): 2.0 / n for n in (1, 2)},
        **{("training/lr", n): 0.125 for n in (1, 2)},
        **{("training/seconds", n): 1.5 for n in (1, 2)},
        ("training/val_accuracy", 2): 0.25,
        ("training/val_loss", 2): 3.0,
        ("validation/cut1/accuracy", 2): 0.75,
        ("validation/cut1/loss", 2): 0.5,
    }
    for _ in range(2):  # again, after a kill: the same, once
        write_scalars(tmp_path, {"points": points})
        assert _scalars(tmp_path / "tensorboard") == pytest.approx(expected)


def test_every_trial_of_a_search_has_scalars_where_they_are_asked_for(tmp_path):
    study = write_study(tmp_path)
    few = ["sample.trials=1", "plant.rounds=1", "recipe.epochs=1", "plant.recipe.epochs=1"]
    planter.search(study, out=tmp_path / "run", overrides=few)
    assert not list((tmp_path / "run" / "trials").glob("*/tensorboard"))
    few = ["sample.trials=2", *few[1:], "tensorboard=true"]  # no other study than the one begun
    planter.search(study, out=tmp_path / "run", overrides=few)
    found = _scalars(tmp_path / "run" / "trials" / "s0001" / "tensorboard")
    front = json.loads((tmp_path / "run" / "pareto.json").read_text())
    (point,) = [p for p in front["points"] if p["id"] == "s0001/base"]
    assert found["validation/base/accuracy", 1] == pytest.approx(point["accuracy"])
