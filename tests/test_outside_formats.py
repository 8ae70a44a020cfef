"""A format of exported files that users add from outside, without a line of planter changed."""

from __future__ import annotations

import json
from pathlib import Path

import npz_file
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import planter
from planter.cli import app
from planter.data import Split
from planter.export import FORMATS, ExportError, Format, Int8, export_network

STUDY = """
name: outside
data: {name: digits, subset: 120, validation: 0.25}
baselines: [{builder: toy, widths: 3}]
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01}
resources: {workers: 0}
"""
NPZ = Format(npz_file.write, npz_file.load, int8=Int8(npz_file.quantise, npz_file.write_metadata))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "npz", NPZ)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside.yaml").write_text(STUDY)
    planter.search(folder / "outside.yaml", out=folder / "run")
    return folder / "run"


def needy(file: Path) -> object:
    """Loads nothing: this file imports planter and what else the checking process has not."""


def trained(run: Path) -> tuple[torch.nn.Module, Split]:
    return planter.load(run / "models" / "b-width3" / "base"), planter.load_data(run).validation


def test_a_format_from_outside_is_written_and_checked(run: Path, tmp_path: Path) -> None:
    network, data = trained(run)
    done = export_network(network, tmp_path / "net.npz", data, about={"id": "mine"})
    assert done.format == "npz"
    assert done.files == (tmp_path / "net.npz",)
    assert list(tmp_path.iterdir()) == [tmp_path / "net.npz"]
    parts = np.load(tmp_path / "net.npz")
    assert json.loads(str(parts["metadata"]))["id"] == "mine"
    kept = {name: torch.from_numpy(parts[name]) for name in network.state_dict()}
    assert all(torch.equal(kept[name], own) for name, own in network.state_dict().items())
    small = export_network(network, tmp_path / "int8.npz", data, calibration=data)
    assert 0 < small.max_difference < 0.1
    assert json.loads(str(np.load(tmp_path / "int8.npz")["metadata"]))["int8"] == "true"
    wrong = r"endings are .onnx, .pt2, .safetensors, .*.npz, .py"
    with pytest.raises(ValueError, match=wrong):
        export_network(network, tmp_path / "net.h5", data)
    with pytest.raises(ValueError, match=r"as ONNX or NPZ, .* ending in .onnx or .npz"):
        export_network(network, tmp_path / "net.pt2", data, calibration=data)


def test_a_format_from_outside_is_refused_where_it_cannot_be_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, data = trained(run)

    def doubled(network, example, file, metadata):
        with torch.no_grad():
            network.head[-1].bias += 1
        npz_file.write(network, example, file, metadata)

    missing = Format(npz_file.write, npz_file.load, needs=("no_such",), install="no-such")
    for changed, words in (
        (missing, "needs no_such, not installed here: pip install 'no-such'"),
        (Format(doubled, npz_file.load), "does not compute what the network does"),
        (Format(npz_file.write, needy), r"cannot be run without planter: .* No module named"),
    ):
        monkeypatch.setitem(FORMATS, "npz", changed)
        with pytest.raises((ValueError, ExportError), match=words):
            export_network(network, tmp_path / "net.npz", data)
        assert not list(tmp_path.iterdir())


def test_the_command_exports_to_a_format_from_outside(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.npz"
    call = ["export", f"{run}/b-width3", "-o", str(file), "--normalise", "--json"]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert (told["format"], told["code"]) == ("npz", None)
    assert told["accuracy"] == told["accuracy_of_run"]
    data = planter.load_data(run).validation
    logits = npz_file.load(file)(data.images.numpy())
    assert (logits.argmax(1) == data.labels.numpy()).mean() == told["accuracy"]
    timed = CliRunner().invoke(app, ["latency", str(file)])
    assert "holds what no engine here runs" in str(timed.exception)
