"""Opsets, numbers of images at once, and the formats of other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_export import CASES, _made

from planter.export import FORMATS, ExportError, check, export_network

pytestmark = pytest.mark.usefixtures("forked_checks")

OTHERS = ("xml", "pte", "tflite")


def _run(file: Path, images: np.ndarray) -> np.ndarray:
    """What each format's own program answers, without planter's code."""
    if file.suffix == ".onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(file).run(None, {"images": images})[0]
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(torch.from_numpy(images)).detach().numpy()
    if file.suffix == ".xml":
        import openvino

        core = openvino.Core()
        core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return core.compile_model(core.read_model(file), "CPU")({"images": images})["logits"]
    if file.suffix == ".pte":
        from executorch.extension.pybindings.portable_lib import _load_for_executorch

        return _load_for_executorch(str(file)).forward((torch.from_numpy(images),))[0].numpy()
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(file))
    network.allocate_tensors()
    network.set_tensor(network.get_input_details()[0]["index"], images)
    network.invoke()
    return network.get_tensor(network.get_output_details()[0]["index"])


def _expected(network, data, count):
    with torch.no_grad():
        return network(data.normalise(data.images[:count])).numpy()


@pytest.mark.parametrize("opset", [18, 21])
def test_onnx_is_written_with_the_opset_that_is_asked_for(tmp_path, opset):
    onnx = pytest.importorskip("onnx")
    network, data = _made(*CASES["toy"])
    export_network(network, tmp_path / "net.onnx", data, opset=opset)
    model = onnx.load(tmp_path / "net.onnx")
    assert [v.version for v in model.opset_import if not v.domain] == [opset]
    onnx.checker.check_model(model)
    for count in (1, 3):
        images = data.normalise(data.images[:count]).numpy()
        found = _run(tmp_path / "net.onnx", images)
        assert np.allclose(found, _expected(network, data, count), atol=1e-5)


def test_an_opset_that_torch_does_not_write_is_told(tmp_path, capfd):
    pytest.importorskip("onnxscript")
    network, data = _made(*CASES["toy"])
    with pytest.raises(ExportError, match="has no opset 13 for it; it wrote 18"):
        export_network(network, tmp_path / "net.onnx", data, opset=13)
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in capfd.readouterr().err


def test_an_opset_that_onnx_does_not_know_is_refused(tmp_path):
    newest = pytest.importorskip("onnx").defs.onnx_opset_version()
    network, data = _made(*CASES["toy"])
    with pytest.raises(ExportError, match=f"opset {newest + 1}: expected 1 to {newest}"):
        export_network(network, tmp_path / "net.onnx", data, opset=newest + 1)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["onnx", "pt2", "xml"])
def test_a_file_takes_the_images_that_it_says(tmp_path, kind, batch):
    for package in FORMATS[kind].needs:
        pytest.importorskip(package)
    network, data = _made(*CASES["toy"])  # of nine images
    file = tmp_path / f"net.{kind}"
    done = export_network(network, file, data, batch=batch, normalise=True)
    assert done.batch == batch
    assert done.takes == f"raw uint8 images [{batch}, 3, 32, 32], 0..255"
    found = _run(file, data.images[:batch].numpy())
    assert np.allclose(found, _expected(network, data, batch), atol=1e-5)
    with pytest.raises(Exception, match=r"(?i)dimension|shape|size"):
        _run(file, data.images[: batch + 1].numpy())


def test_int8_of_a_fixed_number_of_images_has_the_ranges_of_any(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network, data = _made(*CASES["toy"])
    for name, batch in (("any", None), ("four", 4)):
        export_network(network, tmp_path / f"{name}.onnx", data, batch=batch, calibration=data)
    scales = [
        {
            t.name: onnx.numpy_helper.to_array(t).tolist()
            for t in onnx.load(tmp_path / f"{name}.onnx").graph.initializer
            if t.name.endswith("_scale")
        }
        for name in ("any", "four")
    ]
    assert scales[0]
    assert scales[0]["images_scale"] == scales[1]["images_scale"]


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("case", ["toy", "cut"])
def test_another_programs_file_gives_the_logits(tmp_path, kind, case):
    for package in FORMATS[kind].needs:
        pytest.importorskip(package)
    network, data = _made(*CASES[case])
    file = tmp_path / f"net.{kind}"
    done = export_network(network, file, data, about={"id": "s0001/base"}, normalise=True)
    assert done.batch == (None if kind == "xml" else 1)
    for count in (1, 3) if kind == "xml" else (1,):
        found = _run(file, data.images[:count].numpy())
        assert np.allclose(found, _expected(network, data, count), atol=1e-5)
    content = b"".join(path.read_bytes() for path in done.files)
    assert b"s0001/base" in content
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in done.files}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_missing_package_is_told_with_its_extra(tmp_path, monkeypatch, kind):
    network, data = _made(*CASES["toy"])
    package, extra = FORMATS[kind].needs[0], FORMATS[kind].name or kind
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs {package}.*pip install 'planter\[{extra}\]'"):
        export_network(network, tmp_path / f"net.{kind}", data)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("net.safetensors", {"batch": 2}, r"--batch is an option of .onnx, .pt2, .xml"),
        ("net.pt2", {"opset": 18}, r"--opset is an option of .onnx; got .pt2"),
        ("net.pt2", {"batch": 0}, "--batch 0: expected a whole number above 0"),
    ],
)
def test_an_option_that_a_format_has_not_is_refused(tmp_path, name, settings, message):
    network, data = _made(*CASES["toy"])
    with pytest.raises(ValueError, match=message):
        export_network(network, tmp_path / name, data, **settings)


@given(count=st.integers(1, 230), size=st.none() | st.integers(1, 40))
def test_every_image_is_answered_once_in_batches_of_the_size(count, size):
    images = np.arange(count, dtype=np.float32)[:, None, None, None]
    sizes = []

    def run(some):
        sizes.append(len(some))
        return some[:, :, 0, 0] * 2

    job = {"normalised": False, "batch": size}
    found = check.logits_of(run, images, job)
    assert found[:, 0].tolist() == [2.0 * n for n in range(count)]
    if size is not None:
        assert set(sizes) == {size}
    elif count > 4:
        assert sizes[:2] == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.pte", "--batch", "dynamic"], "takes a fixed number of images.* for 1"),
        (["-o", "x.onnx", "--batch", "many"], "--batch many: expected dynamic or a whole number"),
        (["-o", "x.onnx", "--format", "onyx"], "--format onyx: expected onnx, .*openvino"),
        (["-o", "x.bin", "--format", "openvino"], r"expected a file that ends in .xml"),
    ],
)
def test_a_wrong_option_is_one_message(call, place, arguments, message):
    import re

    before = sorted(place.iterdir())
    code, _, err = call("export", "small/teacher", *arguments)
    assert code == 2
    assert re.search(message, re.sub(r"\s+", " ", err)), err
    assert sorted(place.iterdir()) == before


def test_the_command_passes_its_options_on(call, tmp_path):
    pytest.importorskip("onnxruntime")
    file = str(tmp_path / "net.onnx")
    options = ("--opset", "20", "--batch", "2", "--no-card", "--json")
    code, out, err = call("export", "small/teacher", "-o", file, *options)
    assert code == 0, err
    assert json.loads(out)["batch"] == 2
    import onnx

    model = onnx.load(file)
    assert [v.version for v in model.opset_import if not v.domain] == [20]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
