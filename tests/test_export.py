"""Exported files against the plain torch network they come from, loaded by other programs."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import fill_, split
from safetensors import safe_open
from test_contract import TRAINED, small
from torch import nn

from planter import export
from planter.arch import Architecture
from planter.backbones import with_data_options
from planter.export import ExportError, check, export_network, onnx_file, safetensors_file
from planter.export.code import plain_code
from planter.export.deployable import deployable, input_text
from planter.networks.assembly import build_network
from planter.networks.cut_points import image_of

pytestmark = pytest.mark.usefixtures("forked_checks")

FORMATS = ("onnx", "pt2", "safetensors")


def _made(architecture, pipeline="base"):
    """A network with norms that have learned, and images with labels for it."""
    network = fill_(build_network(architecture, pipeline)).eval()
    return network, split(9, image_of(architecture), architecture.options["classes"])


def _with(key, **pipelines):
    return replace(small(key), pipelines=pipelines)


CASES = {
    **{key: (small(key), "base") for key in TRAINED},
    "cut": (_with("vgg16", cut2={}), "cut2"),
    # Behind a larger stride the map must be brought to the size of the linear layer.
    "long stride": (_with("convnet", far={"before": "cut2", "stride": 8}), "far"),
    "branch of blocks": (_with("densenet", early={"after": "block1"}), "early"),
    "branch of fc": (_with("wrn", early={"after": "group1", "branch": "fc"}), "early"),
    "branch of conv": (_with("resnet", early={"after": "group1", "branch": "conv"}), "early"),
    "fsrcnn": (_with("convnet", seen={"head": "fsrcnn"}), "seen"),
    "vdsr": (_with("toy", seen={"head": "vdsr", "residual": False}), "seen"),
}
NETS = {
    f"torchvision:{name}": (
        with_data_options(Architecture(f"torchvision:{name}", {}), 7, (3, size, size)),
        "base",
    )
    for name, size in (
        ("mobilenet_v3_small", 64),
        ("efficientnet_b0", 64),
        ("shufflenet_v2_x0_5", 64),
        ("swin_t", 64),
        ("vit_b_32", 224),
    )
}


def _class_in(source, state):
    """The network of a generated class, which gets nothing but torch."""
    names = {"torch": torch, "nn": nn}
    exec(source, names)
    network = names["Network"]()
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.parametrize("case", CASES)
def test_generated_code_is_the_network_of_plain_layers(case):
    network, data = _made(*CASES[case])
    images = data.normalise(data.images)
    shipped, _ = deployable(network, data)
    source, state = plain_code(shipped, images[:2])
    assert "planter" not in source
    assert "torch.ops" not in source  # layers, which can be trained on
    assert set(state) == set(network.state_dict())
    with torch.no_grad():
        assert torch.equal(_class_in(source, state)(images), network(images))


class _Undecided(nn.Module):
    """What torch.fx cannot follow: the way depends on the image; and a norm without weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.shift = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        x = self.norm(self.conv(x)) + self.shift
        return (x[..., ::2] if x.shape[-1] > 4 else x).mean((2, 3))


def test_what_fx_cannot_follow_is_written_as_operations():
    network, data = _Undecided().eval(), split(9, classes=4)
    network.norm.running_mean.uniform_()
    images = data.normalise(data.images)
    source, state = plain_code(network, images[:2])
    assert "torch.ops.aten" in source
    assert {"conv.weight", "shift", "norm.running_mean"} <= set(state)
    with torch.no_grad():
        assert torch.allclose(_class_in(source, state)(images), network(images), atol=1e-6)
    with pytest.raises(
        ValueError, match=r"--fold-norms and --qat need a network that torch.fx can"
    ):
        deployable(network, data, fold_norms=True)


def _scaled_by_hand(conv, norm):
    """gamma * (conv(x) - mean) / sqrt(var + eps) + beta, in double."""
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = conv.bias.double() if conv.bias is not None else 0
    weight = conv.weight.double() * gain[:, None, None, None]
    return weight.float(), ((bias - norm.running_mean) * gain + norm.bias).float()


def test_folded_norms_are_scaled_convolutions():
    network, data = _made(small("mobilenet"))
    shipped, folded = deployable(network, data, fold_norms=True)
    assert folded == 1 + 2 * 13
    assert not any(isinstance(m, nn.BatchNorm2d) for m in shipped.modules())
    weight, bias = _scaled_by_hand(network.sep3.depth_conv, network.sep3.depth_norm)
    found = shipped.get_submodule("sep3.depth_conv")
    assert torch.allclose(found.weight, weight, rtol=1e-6)
    assert torch.allclose(found.bias, bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "left"),
    [
        ("resnet", 0),
        # Norms before convolutions: the first of each block and the head's.
        ("wrn", 6 + 1),
        # All of them stand behind a sum of maps, a pooling or the stem, which others read too.
        ("densenet", 6 + 2 + 1),
        ("nets:residual", 0),
    ],
)
def test_folding_keeps_the_function_and_norms_without_a_convolution(case, left):
    network, data = _made(*CASES[case])
    before = {name: t.clone() for name, t in network.state_dict().items()}
    shipped, folded = deployable(network, data, fold_norms=True)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert folded == len(norms) - left
    images = data.normalise(data.images)
    with torch.no_grad():
        assert torch.allclose(shipped(images), network(images), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


class _Twice(nn.Module):
    """A convolution read by two, one that is used twice, and a norm of the batch's statistics."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.again, self.norm2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 1)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        x = self.conv(x)
        x = self.norm(x) + x
        x = self.norm2(self.again(self.again(x)))
        return self.free(self.last(x)).mean((2, 3))


def test_a_norm_whose_convolution_serves_others_stays():
    network, data = fill_(_Tracked()).eval(), split(9, classes=3)
    shipped, folded = deployable(network, data, fold_norms=True)
    images = data.normalise(data.images)
    assert folded == 0
    assert torch.equal(shipped(images), network(images))


class _Tracked(_Twice):
    """`fill_` fills running statistics, which one norm has not."""

    def modules(self):
        return (m for m in super().modules() if m is not self.free)


@pytest.mark.parametrize("whole", [True, False])
def test_the_input_is_normalised_inside(whole):
    network, data = _made(small("toy"))
    if not whole:  # floating-point pixels have no 0..255
        data = replace(data, images=data.images.float() / 100)
    shipped, _ = deployable(network, data, normalise=True)
    pixels = data.images.double() / (255 if whole else 1)
    by_hand = ((pixels - 0.5) / 0.25).float()
    with torch.no_grad():
        assert torch.allclose(shipped(data.images), network(by_hand), atol=1e-5)
    assert input_text(data, normalise=True) == (
        "raw uint8 images [batch, 3, 32, 32], 0..255"
        if whole
        else "raw float32 images [batch, 3, 32, 32], as the data set holds them"
    )
    assert [name.split(".")[0] for name in shipped.state_dict()][2:] == [
        name.split(".")[0] for name in network.state_dict()
    ]


def _logits_of_onnx(file, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images.numpy()})[0]


def test_onnx_gives_the_logits_for_any_batch(tmp_path):
    network, data = _made(small("resnet"))
    about = {"id": "s0001/base", "classes": list("abcdefg"), "macs": 12}
    done = export_network(network, tmp_path / "net.onnx", data, about=about, normalise=True)
    for count in (1, 2, 9):
        images = data.images[:count]
        with torch.no_grad():
            expected = network(data.normalise(images)).numpy()
        assert np.abs(_logits_of_onnx(tmp_path / "net.onnx", images) - expected).max() < 1e-5
    assert done.max_difference < 1e-5
    import onnx

    model = onnx.load(tmp_path / "net.onnx")
    told = {pair.key: pair.value for pair in model.metadata_props}
    assert told["id"] == "s0001/base"
    assert json.loads(told["classes"]) == list("abcdefg")
    assert json.loads(told["mean"]) == [0.5] * 3
    assert told["input"] == done.takes == "raw uint8 images [batch, 3, 32, 32], 0..255"
    assert [v.version for v in model.opset_import if not v.domain] == [onnx_file.OPSET]
    # Where the exporter leaves stack traces, it leaves paths of this machine.
    assert (
        str(Path(export.__file__).parents[1]).encode() not in (tmp_path / "net.onnx").read_bytes()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_pt2_gives_the_logits_for_any_batch(tmp_path):
    network, data = _made(small("convnet"))
    export_network(network, tmp_path / "net.pt2", data, about={"macs": 12})
    extra = {"planter.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    images = data.normalise(data.images)
    for count in (1, 2, 9):
        with torch.no_grad():
            assert torch.allclose(program.module()(images[:count]), network(images[:count]))
    assert json.loads(extra["planter.json"])["macs"] == "12"


def test_safetensors_come_with_plain_code(tmp_path):
    network, data = _made(*CASES["fsrcnn"])
    done = export_network(network, tmp_path / "my-net.safetensors", data)
    assert [path.name for path in done.files] == ["my-net.safetensors", "my-net.py"]
    with pytest.raises(ValueError, match=r"my-net\.safetensors is there"):  # either name is both
        export_network(network, tmp_path / "my-net.py", data)
    names = {"__file__": str(tmp_path / "my-net.py"), "__name__": "net"}
    exec((tmp_path / "my-net.py").read_text(), names)
    images = data.normalise(data.images)
    with torch.no_grad():
        assert torch.equal(names["load"]()(images), network(images))
    assert names["STD"] == [0.25] * 3
    assert names["CLASSES"] == list("0123456")
    with safe_open(tmp_path / "my-net.safetensors", "pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        assert file.metadata()["planter"] in names["__doc__"]


def _write_by(monkeypatch, kind, write):
    changed = replace(export.FORMATS[kind], write=write)
    monkeypatch.setitem(export.FORMATS, kind, changed)


def test_a_file_that_computes_something_else_is_not_left(tmp_path, monkeypatch):
    network, data = _made(small("toy"))

    def spoilt(network, example, file, told):
        with torch.no_grad():
            network.head.fc2.bias[0] += 1e-3
        onnx_file.write(network, example, file, told)

    _write_by(monkeypatch, "onnx", spoilt)
    with pytest.raises(ExportError, match=r"does not compute.*differ by up to 0.001"):
        export_network(network, tmp_path / "net.onnx", data)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_needs_planter_is_not_left(tmp_path, monkeypatch):
    network, data = _made(small("toy"))

    def needy(network, example, file, told):
        safetensors_file.write(network, example, file, told)
        code = file.with_suffix(".py")
        code.write_text(code.read_text() + "\nimport planter\n")

    _write_by(monkeypatch, "safetensors", needy)
    monkeypatch.setenv("PYTHONPATH", str(Path(export.__file__).parents[2]))
    with pytest.raises(ExportError, match=r"cannot be run without planter: .*planter"):
        export_network(network, tmp_path / "net.safetensors", data)
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_stays_when_a_new_one_fails(tmp_path, monkeypatch):
    network, data = _made(small("toy"))
    (tmp_path / "net.onnx").write_text("old")

    def failing(*_):
        raise RuntimeError("no such operation\nand more")

    _write_by(monkeypatch, "onnx", failing)
    with pytest.raises(ExportError, match="cannot be written as onnx: RuntimeError: no such oper"):
        export_network(network, tmp_path / "net.onnx", data, force=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_no_name_becomes_code(tmp_path):
    network, data = _made(small("toy"))
    place = tmp_path / "ran"
    for number, name in enumerate(
        (
            f's1/base"""\nopen({str(place)!r}, "w")\n"""',
            f's1/base\\"""\nopen({str(place)!r}, \'w\')\n"""',
            "C:\\users\\new",
            'ends in a quote"',
        )
    ):
        done = export_network(
            network, tmp_path / f"n{number}.safetensors", data, about={"id": name}
        )
        names = {"__file__": str(done.files[1]), "__name__": "net"}
        exec(done.files[1].read_text(encoding="utf-8"), names)
        assert names["__doc__"].startswith(f"{name} in plain PyTorch")
        assert not place.exists()


class _Unwritable(nn.Module):
    def forward(self, images):
        logits = images.flatten(1)[:, :7]
        return logits if images.sum() > 0 else -logits


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_why_a_network_cannot_be_written_is_told(tmp_path, kind):
    data = _made(small("toy"))[1]
    with pytest.raises(ExportError) as told:
        export_network(_Unwritable(), tmp_path / f"net.{kind}", data)
    assert "step 1/3" not in str(told.value)
    assert "\x1b" not in str(told.value)
    assert re.search("data.dependent", str(told.value), re.IGNORECASE), told.value


class _Particular(nn.Module):
    def forward(self, images):
        try:
            return self.absent(images)
        except AttributeError:
            raise TypeError("this layer takes no such image") from None


@pytest.mark.parametrize("kind", ["pt2", "safetensors"])
def test_what_a_network_says_itself_is_told(tmp_path, monkeypatch, kind):
    network, data = _made(small("toy"))
    monkeypatch.setattr(export, "deployable", lambda *_, **__: (_Particular(), 0))
    with pytest.raises(ExportError, match="TypeError: this layer takes no such image"):
        export_network(network, tmp_path / f"net.{kind}", data)


def test_an_interruption_within_an_exporter_is_one(tmp_path, monkeypatch):
    network, data = _made(small("toy"))

    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("step 1/3") from error

    _write_by(monkeypatch, "onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_network(network, tmp_path / "net.onnx", data)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_long_ago_is_removed(tmp_path):
    network, data = _made(small("toy"))
    names = ("n.pt2.aaaaaaaa", "n.pt2.bbbbbbbb", "m")
    old, new, other = (tmp_path / f".{name}.new" for name in names)
    for folder in (old, new, other):
        folder.mkdir()
    for folder in (old, other):
        os.utime(folder, (0, 0))
    export_network(network, tmp_path / "n.pt2", data)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, new.name, "n.pt2"]


def test_the_checking_process_cannot_import_planter():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(check.__file__).parent)!r}); import check\n"
        "check.forbid_planter()\n"
        "for name in ('planter', 'planter.arch'):\n"
        "    try: __import__(name)\n"
        "    except ImportError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["refused", "refused"], done.stderr


def _checked_in_process(tmp_path, logits, images=6):
    """What the checker says of a model with known logits: the first pixels of an image."""
    import onnx
    from onnx import TensorProto, helper

    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 4])
    ends = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in
            (("first", 0), ("last", 3), ("axis", 1))]  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        helper.make_node("Slice", ["flat", "first", "last", "axis"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 2, 2])
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "g", [given], [made], [shape, *ends])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    pixels = np.zeros((images, 1, 2, 2), np.float32)
    pixels[:, 0, 0, 0] = 1  # every image is of class 0
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "labels.npy", np.arange(images) % 2)
    np.save(tmp_path / "logits.npy", logits)
    (tmp_path / "job.json").write_text(json.dumps({"normalised": False, "tolerance": 1e-4}))
    return check.main(tmp_path / "net.onnx", tmp_path, onnx_file.load)


def test_the_checker_counts_differences_and_changed_classes(tmp_path):
    logits = np.tile(np.float32([1, 0, 0]), (6, 1))
    found = _checked_in_process(tmp_path, logits)
    assert found == {
        "difference": 0.0,
        "largest": 1.0,
        "finite": True,
        "accuracy": 0.5,
        "changed": 0,
    }
    logits[2] = [1, 1.5, 0]
    found = _checked_in_process(tmp_path, logits)
    assert (found["difference"], found["changed"]) == (1.5, 1)
    logits[2] = [1, 1.00001, 0]  # a tie but for rounding: either class may win
    assert _checked_in_process(tmp_path, logits)["changed"] == 0


def test_int8_states_the_accuracy_it_has(tmp_path):
    import onnx

    network, data = _made(small("cifar_quick"))
    done = export_network(network, tmp_path / "net.onnx", data, calibration=data)
    logits = _logits_of_onnx(tmp_path / "net.onnx", data.normalise(data.images))
    assert done.accuracy == (logits.argmax(1) == data.labels.numpy()).mean()
    with torch.no_grad():
        exact = network(data.normalise(data.images)).numpy()
    assert done.max_difference == pytest.approx(np.abs(logits - exact).max(), rel=1e-5)
    assert 0 < done.max_difference < 0.1 * np.abs(exact).max()
    model = onnx.load(tmp_path / "net.onnx")
    told = {pair.key: pair.value for pair in model.metadata_props}
    assert (told["int8"], told["calibration_images"]) == ("true", "9")
    assert float(told["accuracy"]) == pytest.approx(done.accuracy, abs=1e-6)
    assert "float_accuracy" in told
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    source = next(n for n in model.graph.node if first.input[1] in n.output)
    assert source.op_type == "DequantizeLinear"
    assert kept[source.input[0]].dtype == np.int8
    assert kept[source.input[1]].shape == (8,)  # a scale for each output channel


def test_what_cannot_be_is_told_before_anything_is_written(tmp_path, monkeypatch):
    network, data = _made(small("toy"))
    (tmp_path / "there.py").touch()
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, settings, message in (
        ("net.h5", {}, r"endings are .onnx, .pt2, .safetensors"),
        ("there.safetensors", {}, r"there.py is there; --force"),
        ("folder.onnx", {"force": True}, "is a folder"),
        ("net.pt2", {"calibration": data}, "INT8 is written as ONNX"),
        ("there.py/net.onnx", {}, "cannot write in"),
    ):
        with pytest.raises(ValueError, match=message):
            export_network(network, tmp_path / name, data, **settings)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"needs onnxscript.*pip install 'planter\[export\]'"):
        export_network(network, tmp_path / "net.onnx", data)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.long
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", [*CASES, *NETS])
def test_every_network_is_exported_in_every_format(case, kind, tmp_path):
    network, data = _made(*{**CASES, **NETS}[case])
    file = tmp_path / f"net.{kind}"
    done = export_network(network, file, data, normalise=True, fold_norms=case in CASES)
    assert done.max_difference < 1e-4 * max(
        1, float(network(data.normalise(data.images)).detach().abs().max())
    )
    assert file.is_file()
