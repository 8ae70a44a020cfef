"""Saved networks: what comes back, what a failure leaves, what is refused."""

import builtins
import io
import json
import pickle
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from planter.arch import Architecture
from planter.backbones import StagedNet
from planter.networks import assembly
from planter.networks.checkpoint import (
    content_key,
    load,
    read_spec,
    read_training,
    save,
    write_training,
)

_CUT = {"cut2": {"before": "conv3", "stride": 2, "kernel": 2}}
_CONVNET = Architecture(
    "convnet",
    {"conv1": 3, "conv2": 4, "conv3": 5, "conv4": 6, "conv5": 7, "fc1": 9},
    {"classes": 4, "image": [1, 8, 8]},
    _CUT,
)
_TOY = Architecture(
    "toy",
    {"conv1": 3, "conv2": 4, "conv3": 5, "conv4": 6, "fc1": 9},
    {"classes": 3, "image": [3, 8, 8]},
)
_VGG = Architecture(
    "vgg16",
    {f"conv{i}": 3 + i for i in range(1, 14)},
    {"classes": 5, "image": [3, 32, 32]},
    {"cut4": {"before": "conv5", "stride": 4, "kernel": 6}},
)


def _network(architecture, pipeline, seed=0):
    """A network whose parameters and buffers all differ from those of a fresh one."""
    torch.manual_seed(seed)
    network = assembly.build_network(architecture, pipeline, seed=seed + 77)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
        else:
            tensor.fill_(12)
    return network.eval()


def _save(folder, accuracy=0.5, seed=0):
    network = _network(_CONVNET, "cut2", seed)
    save(folder, network, _CONVNET, "cut2", {"accuracy": accuracy})
    return network


@pytest.mark.parametrize(("pipelines", "name"), [({}, "base"), (_CUT, "base"), (_CUT, "cut2")])
def test_a_network_as_it_was_built_is_saved_as_well(tmp_path, pipelines, name):
    architecture = replace(_CONVNET, pipelines=pipelines)
    network = assembly.build(architecture, seed=3).eval()
    save(tmp_path / "net", network, architecture, name)
    images = torch.randn(5, 1, 8, 8)
    logits = network(images, [name])[name] if pipelines else network(images)
    assert torch.equal(load(tmp_path / "net")(images), logits)


def _equal_states(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one.values()) and all(
        torch.equal(a, b) and a.dtype == b.dtype
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def _everything_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("architecture", "pipeline"),
    [(_CONVNET, "base"), (_CONVNET, "cut2"), (_TOY, "base"), (_VGG, "base"), (_VGG, "cut4")],
    ids=["convnet", "convnet-cut2", "toy", "vgg16", "vgg16-cut4"],
)
def test_a_loaded_network_is_the_saved_one_bit_for_bit(tmp_path, architecture, pipeline):
    network = _network(architecture, pipeline)
    images = torch.rand(3, *architecture.options["image"])
    save(tmp_path / "net", network, architecture, pipeline, {})
    loaded = load(tmp_path / "net")
    assert not loaded.training
    assert _equal_states(loaded, network)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


def test_the_weights_file_holds_the_networks_own_tensors(tmp_path):
    network = _network(_VGG, "base")
    save(tmp_path / "net", network, _VGG, "base", {})
    on_disk = load_file(tmp_path / "net" / "weights.safetensors")
    state = network.state_dict()
    assert set(on_disk) == set(state)
    assert all(torch.equal(on_disk[name], state[name]) for name in state)


def test_the_spec_keeps_architecture_pipeline_and_info(tmp_path):
    _save(tmp_path / "net", accuracy=0.75)
    spec = json.loads((tmp_path / "net" / "arch.json").read_text())
    assert spec == read_spec(tmp_path / "net")
    assert spec["pipeline"] == "cut2"
    assert spec["accuracy"] == 0.75
    assert spec["architecture"] == {
        "builder": "convnet",
        "widths": {"conv1": 3, "conv2": 4, "conv3": 5, "conv4": 6, "conv5": 7, "fc1": 9},
        "options": {"classes": 4, "image": [1, 8, 8]},
        "pipelines": _CUT,
    }


def test_saving_leaves_the_network_as_it_was(tmp_path):
    network = _network(_CONVNET, "base").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save(tmp_path / "net", network, _CONVNET, "base", {})
    assert network.training
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_a_tensor_laid_out_otherwise_is_saved_with_its_values(tmp_path):
    network = _network(_CONVNET, "base").to(memory_format=torch.channels_last)
    save(tmp_path / "net", network, _CONVNET, "base", {})
    assert _equal_states(load(tmp_path / "net"), network)


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(tmp_path):
    folder = tmp_path / "models" / "s0001" / "cut2"
    _save(folder, accuracy=0.1, seed=1)
    (folder / "stray.txt").write_text("of the old folder")
    network = _save(folder, accuracy=0.2, seed=2)
    assert read_spec(folder)["accuracy"] == 0.2
    assert _equal_states(load(folder), network)
    assert _everything_under(folder.parent) == [
        "cut2",
        "cut2/arch.json",
        "cut2/weights.safetensors",
    ]


def test_the_folder_does_not_show_before_it_is_complete(tmp_path, monkeypatch):
    folder = tmp_path / "net"
    seen = []
    write = Path.write_bytes

    def watched(self, content):
        seen.append(folder.exists())
        write(self, content)
        seen.append(folder.exists())

    monkeypatch.setattr(Path, "write_bytes", watched)
    _save(folder)
    assert seen == [False, False]
    assert folder.is_dir()


def _full(self, content):
    self.write_text("half of the weights")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("exists", [False, True])
def test_a_save_that_fails_leaves_what_was_there_and_no_debris(tmp_path, monkeypatch, exists):
    folder = tmp_path / "net"
    if exists:
        network = _save(folder, accuracy=0.1)
    before = _everything_under(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", _full)
        with pytest.raises(OSError, match="No space"):
            _save(folder, accuracy=0.9, seed=3)
    assert _everything_under(tmp_path) == before
    if exists:
        assert read_spec(folder)["accuracy"] == 0.1
        assert _equal_states(load(folder), network)


def test_info_that_json_cannot_hold_leaves_what_was_there(tmp_path):
    network = _save(tmp_path / "net", accuracy=0.1)
    before = _everything_under(tmp_path)
    with pytest.raises(TypeError):
        save(tmp_path / "net", network, _CONVNET, "cut2", {"accuracy": object()})
    assert _everything_under(tmp_path) == before
    assert read_spec(tmp_path / "net")["accuracy"] == 0.1


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "net"
    _save(folder, accuracy=0.1)
    before = _everything_under(tmp_path)
    rename = Path.rename

    def refusing(self, target):
        if self.suffix == ".new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refusing)
        with pytest.raises(OSError, match="Input/output"):
            _save(folder, accuracy=0.9)
    assert _everything_under(tmp_path) == before
    assert read_spec(folder)["accuracy"] == 0.1


@pytest.mark.parametrize("missing", ["arch.json", "weights.safetensors", None])
def test_a_folder_without_a_network_is_refused_by_name(tmp_path, missing):
    folder = tmp_path / "net"
    _save(folder)
    if missing is None:
        shutil.rmtree(folder)
    else:
        (folder / missing).unlink()
    with pytest.raises(ValueError, match=r"net holds no saved network.*arch\.json"):
        load(folder)


@pytest.mark.parametrize("number", [0, 2, None, "1"])
def test_another_format_is_refused(tmp_path, number):
    _save(tmp_path / "net")
    file = tmp_path / "net" / "arch.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": number}))
    with pytest.raises(ValueError, match="format"):
        load(tmp_path / "net")


def test_content_key_ignores_the_order_of_keys_and_sees_every_value():
    settings = {"a": 1, "b": {"c": [1, 2], "d": None}}
    shuffled = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    others = [
        {"a": 2, "b": {"c": [1, 2], "d": None}},
        {"a": 1, "b": {"c": [2, 1], "d": None}},
        {"a": 1, "b": {"c": [1, 2]}},
    ]
    assert content_key(settings) == content_key(shuffled)
    assert len({content_key(s) for s in [settings, *others]}) == 4


def _state():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "generator": torch.Generator().manual_seed(5).get_state(),
    }


def test_a_training_comes_back_bit_for_bit(tmp_path):
    state = _state()
    write_training(tmp_path / "deep" / "training.pt", {"epoch": 1})
    write_training(tmp_path / "deep" / "training.pt", state)
    read = read_training(tmp_path / "deep" / "training.pt")
    assert read.keys() == state.keys()
    assert read["epoch"] == 3
    assert torch.equal(read["generator"], state["generator"])
    assert all(torch.equal(read["model"][n], t) for n, t in state["model"].items())
    for number, slots in state["optimizer"]["state"].items():
        for name, tensor in slots.items():
            assert torch.equal(read["optimizer"]["state"][number][name], tensor)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["training.pt"]


def test_there_is_no_training_where_there_is_no_file(tmp_path):
    assert read_training(tmp_path / "training.pt") is None


def test_a_training_cut_short_anywhere_counts_as_none(tmp_path):
    file = tmp_path / "training.pt"
    write_training(file, _state())
    whole = file.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 30, len(whole) - 1]:
        file.write_bytes(whole[:size])
        assert read_training(file) is None, size


def test_a_training_that_a_disk_error_hides_is_not_deleted(tmp_path, monkeypatch):
    file = tmp_path / "training.pt"
    write_training(file, {"epoch": 7})

    def failing(*args, **kwargs):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, suppress(OSError):
        patch.setattr(builtins, "open", failing)
        patch.setattr(io, "open", failing)  # pathlib's
        read_training(file)
    assert read_training(file) == {"epoch": 7}


def test_a_training_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "training.pt"
    write_training(file, {"epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", _full)
        with pytest.raises(OSError, match="No space"):
            write_training(file, {"epoch": 2})
    assert read_training(file) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


class _Code:
    def __init__(self, touched):
        self.touched = touched

    def __reduce__(self):
        return Path.touch, (self.touched,)


@pytest.mark.parametrize("write", [torch.save, "pickle"])
def test_code_in_a_training_file_is_not_executed(tmp_path, write):
    file, touched = tmp_path / "training.pt", tmp_path / "executed"
    if write == "pickle":
        file.write_bytes(pickle.dumps({"model": _Code(touched)}, protocol=2))
        pickle.loads(file.read_bytes())
    else:
        write({"model": _Code(touched)}, file)
        torch.load(file, weights_only=False)
    # The file is a real trap: a plain load falls into it.
    assert touched.exists()
    touched.unlink()
    assert read_training(file) is None
    assert not touched.exists()


def test_code_in_a_weights_file_is_not_executed(tmp_path):
    touched = tmp_path / "executed"
    _save(tmp_path / "net")
    torch.save({"w": _Code(touched)}, tmp_path / "net" / "weights.safetensors")
    with suppress(ValueError, SafetensorError):
        load(tmp_path / "net")
    assert not touched.exists()


@pytest.mark.parametrize("name", ["arch.json", "weights.safetensors"])
def test_a_network_cut_short_is_refused_by_name(tmp_path, name):
    _save(tmp_path / "net")
    file = tmp_path / "net" / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="net"):
        load(tmp_path / "net")


def _head(channels):
    return nn.Conv2d(channels, channels, 3, padding=1)


_FAMILY = Architecture(
    "nets:residual",
    {"stem": 4, "inner1": 3, "down": 6, "inner2": 5},
    {"classes": 4, "image": [3, 8, 8]},
    {
        "late": {"before": "block2"},
        "exit": {"after": "down", "branch": "conv"},
        "rest": {"after": "cut1", "branch": "rest"},
        "sharp": {"head": "fsrcnn", "residual": False},
        "mine": {"head": "test_checkpoint:_head"},
    },
)
_KNOWN = Architecture(
    "toy", _TOY.widths, _TOY.options, {"cut1": {}, "mine": _FAMILY.pipelines["mine"]}
)


@pytest.mark.parametrize("name", ["base", *_FAMILY.pipelines])
def test_any_pipeline_of_a_family_comes_back_bit_for_bit(tmp_path, name):
    whole = assembly.build(_FAMILY, 3).train()
    images = torch.rand(5, 3, 8, 8)
    whole(images)  # statistics of each pipeline's own
    network = whole.eval().detach(name)
    save(tmp_path / "net", network, _FAMILY, name, {})
    loaded = load(tmp_path / "net", own_code=True)
    assert list(loaded._modules) == list(network._modules)
    assert _equal_states(loaded, network)
    with torch.no_grad():
        assert torch.equal(loaded(images), whole(images)[name])


def test_a_head_of_the_users_own_is_not_called_without_asking(tmp_path, monkeypatch):
    save(tmp_path / "net", assembly.build_network(_KNOWN, "mine"), _KNOWN, "mine", {})
    monkeypatch.setitem(globals(), "_head", lambda channels: pytest.fail("was called"))
    with pytest.raises(ValueError, match=r"calling 'test_checkpoint:_head'.*own_code=True"):
        load(tmp_path / "net")


@pytest.mark.parametrize("name", ["base", "cut1"])
def test_another_pipeline_is_loaded_without_the_heads_code(tmp_path, monkeypatch, name):
    network = assembly.build_network(_KNOWN, name)
    save(tmp_path / "net", network, _KNOWN, name, {})
    monkeypatch.setitem(globals(), "_head", lambda channels: pytest.fail("was called"))
    assert _equal_states(load(tmp_path / "net"), network)


def test_a_stage_used_twice_is_saved(tmp_path):
    name = "test_checkpoint:_twice"
    architecture = Architecture(name, {}, {"classes": 4, "image": [3, 8, 8]})
    network = assembly.build_network(architecture)
    save(tmp_path / "net", network, architecture, "base", {})
    assert _equal_states(load(tmp_path / "net", own_code=True), network)


def _twice(widths, *, classes):
    stage = nn.Conv2d(3, 3, 3, padding=1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
    return StagedNet(nn.Sequential(stage, nn.ReLU(), stage), head)
