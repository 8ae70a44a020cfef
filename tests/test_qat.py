"""Fine-tuning with 8 bits simulated, against onnxruntime's INT8 files and closed forms."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import npz_file
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import CASES, _made
from torch import nn

import planter
from planter.cli.exporting import _of_qat
from planter.export import FORMATS, FineTuning, Format, Int8, export_network, onnx_file
from planter.export.deployable import deployable
from planter.export.int8 import static
from planter.export.int8.finetuning import fine_tuned
from planter.export.int8.simulated import (
    RoundedActivation,
    RoundedWeight,
    Simulated,
    rounded_in,
    simulated,
)
from planter.training.batches import layout_of

pytestmark = pytest.mark.usefixtures("forked_checks")
QUICK = ("resnet",)
FACTOR = 200.0


@pytest.fixture(autouse=True)
def _needs_onnx():
    for package in FORMATS["onnx"].needs:
        pytest.importorskip(package)


STUDY = """
name: spread
data: {name: digits, validation: 0.2}
baselines: [{name: normed, builder: "test_qat:normed"}]
recipe: {epochs: 5, batch: 32, optimizer: adam, lr: 0.005, weight_decay: 0.0}
resources: {workers: 0}
"""


def normed(classes: int = 10) -> nn.Module:
    """For digits: norms to fold, and maps that are flattened."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, classes),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the run runs/spread. After the search one channel of each convolution of its
    network was made to give values so much larger that a range of 8 bits holds little of the
    others. As ReLU is homogeneous and the next layer takes the factor back, the network computes
    what it did."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "spread.yaml").write_text(STUDY)
    planter.search(folder / "spread.yaml", out=folder / "runs" / "spread")
    (file,) = (folder / "runs" / "spread" / "models").rglob("weights.safetensors")
    state = load_file(file)
    for norm, following, size in (("1", "3", 1), ("4", "7", 16)):
        state[f"{norm}.weight"][0] *= FACTOR
        state[f"{norm}.bias"][0] *= FACTOR
        state[f"{following}.weight"][:, :size] /= FACTOR
    save_file(state, file)
    return folder


@pytest.fixture(scope="module")
def digits(place):
    return planter.load_data(place / "runs" / "spread")


@pytest.fixture
def network(place):
    (file,) = (place / "runs" / "spread" / "models").rglob("weights.safetensors")
    return planter.load(file.parent, own_code=True).eval()


def _session(file):
    import onnxruntime

    return onnxruntime.InferenceSession(file)


def _right(file, split):
    """The share that a file which takes normalised images classifies correctly."""
    images = split.normalise(split.images).numpy()
    logits = _session(file).run(None, {"images": images})[0]
    return float((logits.argmax(1) == split.labels.numpy()).mean())


def _scales_of(file):
    """Scale and zero point of every activation that a QDQ file rounds, by its name."""
    import onnx

    graph = onnx.load(file).graph
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    return {
        node.input[0]: (float(kept[node.input[1]]), int(kept[node.input[2]]))
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in kept
    }


@pytest.mark.parametrize(
    "case",
    [
        *QUICK,
        *(
            pytest.param(case, marks=pytest.mark.long)
            for case in CASES
            if case not in QUICK and not case.startswith("torchvision")
        ),
    ],
)
def test_the_simulation_computes_what_the_int8_file_does(case, tmp_path):
    network, data = _made(*CASES[case])
    network, _ = deployable(network, data, fold_norms=True)
    images = data.normalise(data.images)
    twin = simulated(network, images)
    onnx_file.write(network, images[:2], tmp_path / "net.onnx", {})
    static.quantise(tmp_path / "net.onnx", images.numpy(), tmp_path / "int8.onnx")
    exact, expected = (
        _session(tmp_path / name).run(None, {"images": images.numpy()})[0]
        for name in ("net.onnx", "int8.onnx")
    )
    with torch.no_grad():
        found = twin(images).numpy()
    scales = _scales_of(tmp_path / "int8.onnx")
    step, _ = scales[rounded_in(tmp_path / "int8.onnx").output]
    # Sums in another order may round otherwise where they come to half a step.
    assert np.abs(found - expected).max() < 2.01 * step
    assert np.abs(found - expected).mean() < 0.5 * np.abs(exact - expected).mean() + 1e-7
    mine = [m for m in twin.program.modules() if isinstance(m, RoundedActivation)]
    for module in mine:
        pairs = [(s, z) for s, z in scales.values() if s == pytest.approx(float(module.scale))]
        assert any(abs(zero - int(module.zero_point)) <= 1 for _, zero in pairs)
    missing = 1 if case in ("long stride", "alexnet") else 0  # a mean that ONNX writes in two steps
    assert len(mine) >= len({*scales.values()}) - missing


def test_gradients_pass_a_rounding_within_its_range_and_end_beyond():
    rounding = RoundedActivation()
    rounding.watch_()
    seen = torch.tensor([-1.0, 0.25, 2.0])
    assert rounding(seen) is seen
    rounding.settle_()
    step = 3 / 255
    assert float(rounding.scale) == pytest.approx(step)
    assert int(rounding.zero_point) == round(-128 + 1 / step)
    values = torch.tensor([-1.5, -0.9, 0.0, 0.013, 1.99, 2.5], requires_grad=True)
    rounded = rounding(values)
    rounded.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0]
    expected = np.clip(values.detach().numpy(), -1, 2)
    assert np.allclose(rounded.detach(), np.round(expected / step) * step, atol=1e-6)
    assert rounded[2] == 0  # zeros stay, as padding needs


def test_a_range_without_a_value_but_zero_is_no_division_by_zero():
    rounding = RoundedActivation()
    rounding.watch_()
    rounding(torch.zeros(3))
    rounding.settle_()
    assert (float(rounding.scale), int(rounding.zero_point)) == (1.0, 0)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_a_weight_is_rounded_by_the_largest_value_of_its_channel(axis):
    weight = torch.randn(3, 4, 2, requires_grad=True)
    with torch.no_grad():
        weight[0] = 0  # a channel that is not there
    rounded = RoundedWeight(axis)(weight)
    exact = weight.detach().double().numpy()
    others = tuple(n for n in range(3) if n != axis)
    step = np.abs(exact).max(axis=others, keepdims=True) / 127
    step[step == 0] = 1
    assert np.allclose(rounded.detach(), np.round(exact / step) * step, atol=1e-6)
    rounded.backward(torch.arange(24.0).reshape(3, 4, 2))
    assert torch.equal(weight.grad, torch.arange(24.0).reshape(3, 4, 2))


def test_the_gradient_of_a_linear_layer_is_that_of_its_rounded_input():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    images = torch.randn(16, 3, 2, 2)
    twin = simulated(net, images)
    given = torch.randn(16, 4)
    logits = twin(images)
    inside = (logits > logits.min()) & (logits < logits.max())  # the ends may round beyond
    (logits * given * inside).sum().backward()
    low, high = min(0.0, float(images.min())), max(0.0, float(images.max()))
    step = (high - low) / 255
    zero = round(-128 - low / step)
    rounded = (np.clip(np.round(images.numpy() / step) + zero, -128, 127) - zero) * step
    expected = (given * inside).numpy().T @ rounded.reshape(16, 12)
    assert np.allclose(net[1].weight.grad, expected, atol=1e-4)
    assert np.allclose(net[1].bias.grad, (given * inside).sum(0), atol=1e-5)


def test_layers_that_must_not_lie_channels_last_tell_the_training_so():
    net = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Flatten(), nn.Linear(64, 4)).eval()
    twin = Simulated(net, torch.fx.symbolic_trace(net))
    assert layout_of(twin) is torch.contiguous_format


def test_what_loses_by_int8_recovers_and_the_network_stays(digits, network, tmp_path):
    import onnx

    before = copy.deepcopy(network.state_dict())
    calibration = digits.train.sample(torch.arange(200))
    plain = export_network(
        network, tmp_path / "static.onnx", digits.validation, calibration=calibration
    )
    assert plain.loses_much
    assert plain.qat is None
    assert plain.lost > 0.05  # so that a recovery is not chance
    qat = FineTuning(digits.train, epochs=6)
    file = tmp_path / "tuned.onnx"
    done = export_network(network, file, digits.validation, calibration=calibration, qat=qat)
    assert done.qat.kept
    assert (
        done.qat.static_accuracy
        == plain.accuracy
        == _right(tmp_path / "static.onnx", digits.validation)
    )
    assert done.qat.accuracy == done.accuracy == _right(file, digits.validation)
    assert done.accuracy > plain.accuracy + plain.lost / 2
    # Images that neither trained it nor chose between the two.
    assert _right(file, digits.test) > _right(tmp_path / "static.onnx", digits.test)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    told = {pair.key: pair.value for pair in onnx.load(file).metadata_props}
    assert json.loads(told["qat"]) == done.qat.told()
    assert float(told["accuracy"]) == pytest.approx(done.accuracy, abs=1e-6)
    with torch.no_grad():
        logits = network(digits.validation.normalise(digits.validation.images))
    exact = (logits.argmax(1) == digits.validation.labels).double().mean()
    assert float(told["float_accuracy"]) == pytest.approx(float(exact), abs=1e-6)
    assert done.lost == pytest.approx(float(exact) - plain.accuracy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["static.onnx", "tuned.onnx"]


def test_fine_tuning_repeats_itself_with_its_seed(digits, network):
    plain, _ = deployable(network, digits.validation, fold_norms=True)
    few = digits.train.sample(torch.arange(128))
    states = [
        fine_tuned(plain, few, FineTuning(few, epochs=1, seed=seed)).state_dict()
        for seed in (3, 3, 4)
    ]
    same, other = ([torch.equal(states[0][k], s[k]) for k in s] for s in states[1:])
    assert all(same)
    assert not any(other)


def _coarse(file, images, small):
    """Weights of three levels: what loses accuracy without a word of ONNX."""
    parts = dict(np.load(file))
    for name, array in parts.items():
        if name.endswith("weight"):
            most = abs(array).max()
            parts[name] = (np.round(array / most) * most).astype(np.float32)
    with small.open("wb") as opened:
        np.savez(opened, **parts)


def _npz(monkeypatch, quantise, training):
    int8 = Int8(quantise, npz_file.write_metadata, training)
    monkeypatch.setitem(FORMATS, "npz", Format(npz_file.write, npz_file.load, int8=int8))


def test_fine_tuned_weights_that_are_no_better_are_left_out(digits, network, tmp_path, monkeypatch):
    def no_better(net, calibration, tuning):
        spoiled = copy.deepcopy(net)
        with torch.no_grad():
            spoiled.get_submodule("7").bias += 1
        return spoiled  # classifies the same

    _npz(monkeypatch, _coarse, no_better)
    parts = []
    for qat in (None, FineTuning(digits.train, 1)):
        done = export_network(
            network,
            tmp_path / "net.npz",
            digits.validation,
            calibration=digits.train,
            qat=qat,
            force=True,
        )
        parts.append(dict(np.load(tmp_path / "net.npz")))
    assert not done.qat.kept
    assert done.qat.accuracy == done.qat.static_accuracy == done.accuracy
    assert np.array_equal(parts[0]["7.bias"], parts[1]["7.bias"])
    assert list(tmp_path.iterdir()) == [tmp_path / "net.npz"]


def test_what_loses_no_more_than_a_point_is_not_fine_tuned(digits, network, tmp_path, monkeypatch):
    def never(net, calibration, tuning):
        raise AssertionError("not to be called")

    _npz(monkeypatch, npz_file.quantise, never)
    few = digits.validation.sample(torch.arange(100))
    qat = FineTuning(digits.train, 1)
    settings = {"calibration": digits.train, "qat": qat, "force": True}
    done = export_network(network, tmp_path / "net.npz", few, **settings)
    assert done.qat is None
    # One image of a hundred is a point, and no more than that.
    assert _of_qat(done, asked=True).startswith("static INT8 loses no more than a point")
    assert _of_qat(done, asked=False) is None
    worse = replace(done, lost=0.98 - 0.97)
    assert 0.98 - 0.97 > 0.01
    assert not worse.loses_much
    assert replace(done, lost=0.98 - 0.96).loses_much


def test_what_cannot_be_fine_tuned_is_told(digits, network, tmp_path, monkeypatch):
    qat = FineTuning(digits.train, 1)
    with pytest.raises(ValueError, match=r"--qat EPOCHS .* is for INT8: give --int8"):
        export_network(network, tmp_path / "net.onnx", digits.validation, qat=qat)
    with pytest.raises(ValueError, match="--qat 0: expected a whole number of epochs above 0"):
        FineTuning(digits.train, 0)
    with pytest.raises(ValueError, match="--qat needs training images"):
        FineTuning(digits.train.sample(torch.arange(0)), 1)
    settings = {"calibration": digits.train, "qat": qat}
    with pytest.raises(ValueError, match="INT8 is written as ONNX"):
        export_network(network, tmp_path / "net.pt2", digits.validation, **settings)
    _npz(monkeypatch, npz_file.quantise, None)
    with pytest.raises(ValueError, match=r"--qat is not for \.npz files"):
        export_network(network, tmp_path / "net.npz", digits.validation, **settings)
    assert not list(tmp_path.iterdir())


def test_the_command_tells_the_loss_and_then_what_fine_tuning_gave(call, place, tmp_path):
    models = place / "runs" / "spread" / "models"
    kept = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    file = tmp_path / "net.onnx"
    command = ("export", "spread/b-normed", "-o", str(file), "--int8", "--force")
    code, out, err = call(*command, "--no-card")
    assert code == 0, err
    static = re.search(r"static INT8 loses (\S+) points; --qat 10 fine-tunes the network", out)
    assert float(static[1]) > 1
    code, out, err = call(*command, "--qat", "3")
    assert code == 0, err
    found = re.search(
        r"static INT8 loses (\S+) points \((\S+)%\); fine-tuned for 3 epochs: (\S+)%", out
    )
    assert found[1] == static[1]
    split = planter.load_data(place / "runs" / "spread").validation
    best = max(float(found[2]), float(found[3]))
    assert 100 * _right(file, split) == pytest.approx(best, abs=0.006)
    assert kept == {path: path.read_bytes() for path in kept}
    card = (tmp_path / "net.onnx.card.md").read_text()
    assert "| fine-tuning with 8 bits simulated | 3 epochs on the training images, seed 0" in card
    assert f"| validation images, INT8 without fine-tuning | 288 | {found[2]}% |" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "x.onnx", "--qat", "3"), "--qat is a number of epochs for --int8: give --int8"),
        (
            ("-o", "x.onnx", "--int8", "--qat", "0"),
            "'--qat': Input should be greater than or equal to 1",
        ),
        (("-o", "x.pt2", "--int8", "--qat", "3"), "INT8 is written as ONNX"),
    ],
)
def test_a_wrong_use_is_one_message(call, place, arguments, message):
    before = sorted(place.iterdir())
    code, _, err = call("export", "spread/b-normed", *arguments)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split()), err
    assert sorted(place.iterdir()) == before


def test_a_run_whose_images_are_gone_is_told(call, place):
    file: Path = place / "runs" / "spread" / "resolved.yaml"
    text = file.read_text()
    try:
        file.write_text(text.replace("name: digits\n  root: null", "name: folder\n  root: gone"))
        code, _, err = call("export", "spread/b-normed", "-o", "x.onnx", "--int8", "--qat", "3")
    finally:
        file.write_text(text)
    assert code == 2
    assert "gone" in err
    assert "Traceback" not in err
