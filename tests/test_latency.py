"""`planter latency`: engines that answer alike, what is kept of a measurement, the command."""

from __future__ import annotations

import csv
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml
from filelock import FileLock
from typer.testing import CliRunner

from planter import Architecture
from planter.cli import app
from planter.front.points import COLUMNS, document, measured_latency
from planter.latency import engines, timing
from planter.latency.engines import calls_of, to_onnx
from planter.latency.file import measurement, write_column, write_measurement
from planter.latency.timing import Timing
from planter.networks import checkpoint
from planter.networks.assembly import build_network

WIDTHS = {"conv1": 3, "conv2": 3, "conv3": 4, "conv4": 4, "conv5": 5, "fc1": 6}
NET = Architecture("convnet", WIDTHS, {"image": [1, 8, 8], "classes": 4})
NO_GPU = not torch.cuda.is_available()


def save(folder: Path, seed: int = 0) -> torch.nn.Module:
    network = build_network(NET, seed=seed).eval()
    checkpoint.save(folder, network, NET, "base")
    return network


# Engines


def test_an_exported_network_answers_like_the_one_in_torch() -> None:
    network = build_network(NET, seed=3).eval()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    session = onnxruntime.InferenceSession(
        to_onnx(network, images), providers=["CPUExecutionProvider"]
    )
    (told,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(told), network(images), atol=1e-5)


def test_a_saved_network_is_called_in_every_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "net")
    calls = calls_of(tmp_path / "net", 1, 1)
    assert list(calls)[:2] == ["torch", "onnxruntime"]
    (told,) = calls["onnxruntime"]()
    assert told.shape == (1, 4)
    monkeypatch.setattr(engines, "onnx_is_here", lambda: False)
    assert "onnxruntime" not in calls_of(tmp_path / "net", 1, 1)


def test_a_model_that_answers_otherwise_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "net")
    other = to_onnx(build_network(NET, seed=9).eval(), torch.zeros(1, 1, 8, 8))
    monkeypatch.setattr(engines, "to_onnx", lambda network, images: other)
    assert "onnxruntime" not in calls_of(tmp_path / "net", 1, 1)
    assert "answers otherwise than in torch" in caplog.text


def test_files_are_timed_at_the_batch_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network(NET).eval()
    fixed, two = tmp_path / "two.onnx", torch.zeros(2, 1, 8, 8)
    fixed.write_bytes(to_onnx(network, two))
    assert list(calls_of(fixed, 2, 1)) == ["onnxruntime"]
    with pytest.raises(ValueError, match=r"takes 2 images at once; give --batch 2"):
        calls_of(fixed, 1, 1)
    open_batch = tmp_path / "open.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (two,), dynamic_shapes=shapes), open_batch)
    for batch in (1, 3):
        calls = calls_of(open_batch, batch, 1)
        assert "torch" in calls
        calls["torch"]()
    monkeypatch.setattr(engines, "onnx_is_here", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'planter\[export\]'"):
        calls_of(fixed, 2, 1)


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2"])
def test_what_is_no_network_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        calls_of(tmp_path / name, 1, 1)
    (tmp_path / name).write_bytes(b"no network")
    with pytest.raises(ValueError, match=name):
        calls_of(tmp_path / name, 1, 1)


# What is kept


def told(ms: float, *, threads: int = 1, batch: int = 1, column: str = "torch") -> dict[str, Any]:
    timings = {
        ("s0001/base", "torch"): Timing(ms - 1, ms, ms + 1, 20),
        ("s0001/base", "cuda"): Timing(0.1, 0.2, 0.3, 20),
    }
    return measurement(timings, threads=threads, batch=batch, load=0.0, column=column)


def test_a_measurement_takes_the_place_of_one_of_the_same_kind(tmp_path: Path) -> None:
    assert measured_latency(tmp_path) == {}
    for found in (told(5), told(7, batch=8), told(6, threads=2), told(4)):
        write_measurement(tmp_path, found)
    kept = json.loads((tmp_path / "latency.json").read_text())["measurements"]
    assert kept == [told(7, batch=8), told(6, threads=2), told(4)]
    # The column is the last one's of one image, whatever was measured of more since.
    write_measurement(tmp_path, told(9, batch=8))
    assert measured_latency(tmp_path) == {"s0001/base": 4}
    write_measurement(tmp_path, told(3, column="cuda"))
    assert measured_latency(tmp_path) == {"s0001/base": 0.2}


def test_a_damaged_file_ends_no_search_and_is_not_written_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "latency.json").write_text('{"measurements": [{"batch": 1}]}')
    assert document("x", [], (0.1, 10), {}, {}, tmp_path)["points"] == []
    assert "latency.json is damaged" in caplog.text
    (tmp_path / "latency.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        write_measurement(tmp_path, told(1))
    assert (tmp_path / "latency.json").read_text() == "{"


# The command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of four points, of which three are reported and saved."""
    folder = tmp_path / "runs" / "done"
    folder.mkdir(parents=True)
    (folder / "resolved.yaml").write_text("name: done\nresources: {cpu: 1}\n")
    points = []
    for number, (name, method, front, saved) in enumerate(
        [
            ("teacher/base", "teacher", False, True),
            ("s0000/base", "sample", True, True),
            ("s0001/base", "sample", False, True),
            ("s0002/base", "sample", True, False),
            ("b-width4/base", "baseline", False, True),
        ]
    ):
        if saved:
            save(folder / "models" / name, seed=number)
        row = dict.fromkeys(COLUMNS)
        row |= {"id": name, "method": method, "on_front": front, "accuracy": 0.5, "macs": 100}
        points.append({**row, "latency_ms": 99.0, "model": f"models/{name}" if saved else None})
    told = {"study": "done", "objectives": ["accuracy", "macs"], "points": points}
    told |= {"hypervolume": 0.5, "reference_point": [0.1, 1000], "cost": {}}
    (folder / "pareto.json").write_text(json.dumps(told))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "onnx_is_here", lambda: False)  # an export takes a second
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is timed instead of time itself."""
    seen: list[Any] = []

    def told_times(
        calls: Mapping[Hashable, Any], *, rounds: int, seconds: float
    ) -> dict[Hashable, Timing]:
        seen.append((list(calls), rounds * seconds, torch.get_num_threads()))
        for call in calls.values():
            call()
        return {key: Timing(n + 1.0, n + 2.0, n + 3.0, 20) for n, key in enumerate(calls)}

    monkeypatch.setattr(timing, "time_calls", told_times)
    return seen


REPORTED = ["teacher/base", "s0000/base", "b-width4/base"]


@pytest.mark.skipif(not NO_GPU, reason="lists the CPU's engine alone")
def test_what_a_run_reports_is_measured_and_becomes_its_column(run: Path, asked: list[Any]) -> None:
    result = CliRunner().invoke(app, ["latency", "done", "--seconds", "2"])
    assert result.exit_code == 0, result.output
    assert asked == [([(name, "torch") for name in REPORTED], 2.0, 1)]
    (kept,) = json.loads((run / "latency.json").read_text())["measurements"]
    assert [row["id"] for row in kept["rows"]] == REPORTED
    assert kept["rows"][1]["torch"] == {
        "lower_ms": 2, "median_ms": 3, "upper_ms": 4, "runs": 20,
    }  # fmt: skip
    assert (kept["threads"], kept["batch"], kept["column"]) == (1, 1, "torch")
    # What was not measured has no latency beside those that were.
    expected = {
        **dict.fromkeys(["s0001/base", "s0002/base"]),
        **dict(zip(REPORTED, (2, 3, 4), strict=True)),
    }
    rows = json.loads((run / "pareto.json").read_text())["points"]
    assert {row["id"]: row["latency_ms"] for row in rows} == expected
    with (run / "pareto.csv").open() as file:
        read = {r["id"]: r["latency_ms"] for r in csv.DictReader(file)}
    assert {name: float(told) if told else None for name, told in read.items()} == expected
    assert "3 (2-4)" in result.output
    assert "50.00 %" in result.output


def test_several_images_and_threads_are_kept_beside_the_column(run: Path, asked: list[Any]) -> None:
    arguments = ["latency", "done", "--batch", "4", "--threads", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert asked[0][2] == 2
    found = json.loads(result.stdout)
    assert (found["batch"], found["threads"]) == (4, 2)
    assert json.loads((run / "latency.json").read_text()) == {"measurements": [found]}
    rows = json.loads((run / "pareto.json").read_text())["points"]
    assert {row["latency_ms"] for row in rows} == {99.0}


def test_a_damaged_file_is_told_before_anything_is_measured(run: Path, asked: list[Any]) -> None:
    for text in ('{"measurements": [{}]}', "{", "[]"):
        (run / "latency.json").write_text(text)
        result = CliRunner().invoke(app, ["latency", "done"])
        assert isinstance(result.exception, ValueError)
        assert "latency.json is damaged" in str(result.exception)
    assert asked == []


@pytest.mark.skipif(not NO_GPU, reason="is of a machine without a GPU")
def test_a_run_of_a_gpu_is_measured_where_there_is_none(run: Path, asked: list[Any]) -> None:
    file = run / "resolved.yaml"
    study = yaml.safe_load(file.read_text())
    study["resources"]["gpu"] = 1
    file.write_text(yaml.safe_dump(study))
    result = CliRunner().invoke(app, ["latency", "done"])
    assert result.exit_code == 0, result.output
    assert measured_latency(run).keys() == set(REPORTED)


def test_tensors_alone_are_not_timed() -> None:
    result = CliRunner().invoke(app, ["latency", "net.safetensors"])
    assert "holds tensors alone" in str(result.exception)


def test_a_run_with_a_search_at_work_is_refused_unless_asked_for(
    run: Path, asked: list[Any]
) -> None:
    before = (run / "pareto.json").read_text()
    with FileLock(run / ".lock"):
        result = CliRunner().invoke(app, ["latency", "done"])
        assert isinstance(result.exception, ValueError)
        assert "a search is at work" in str(result.exception)
        assert asked == []
        result = CliRunner().invoke(app, ["latency", "done", "--anyway"])
        assert result.exit_code == 0
    # The search writes pareto.json, and takes the column from latency.json.
    assert (run / "pareto.json").read_text() == before
    assert measured_latency(run).keys() == set(REPORTED)
    write_column(run)
    rows = json.loads((run / "pareto.json").read_text())["points"]
    assert {row["id"] for row in rows if row["latency_ms"] is not None} == set(REPORTED)


def test_no_search_begins_while_a_run_is_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def seen(calls: Mapping[Hashable, Any], **kwargs: Any) -> dict[Hashable, Timing]:
        lock = FileLock(run / ".lock")
        with pytest.raises(TimeoutError):
            lock.acquire(timeout=0)
        held.append(True)
        return {key: Timing(1.0, 2.0, 3.0, 20) for key in calls}

    monkeypatch.setattr(timing, "time_calls", seen)
    assert CliRunner().invoke(app, ["latency", "done"]).exit_code == 0
    assert held == [True]
    with FileLock(run / ".lock", timeout=0):
        pass


def test_files_are_compared_in_turn(run: Path, asked: list[Any]) -> None:
    folder = str(run / "models" / "s0001" / "base")
    other = str(run / "models" / "teacher" / "base")
    result = CliRunner().invoke(app, ["latency", folder, other, "--json"])
    assert [row["id"] for row in json.loads(result.stdout)["rows"]] == [folder, other]
    assert not (run / "latency.json").exists()
    result = CliRunner().invoke(app, ["latency", folder, "done"])
    assert "expected one RUN, or files" in str(result.exception)
    result = CliRunner().invoke(app, ["latency", "nothing"])
    assert "runs here are done" in str(result.exception)
