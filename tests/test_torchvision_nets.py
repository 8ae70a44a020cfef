from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from nets import fill_, images
from torch import nn

from planter.arch import Architecture
from planter.backbones import (
    StagedNet,
    build_backbone,
    find_builder,
    full_widths,
    is_known,
    source_key,
    with_data_options,
)
from planter.costs.macs import cost
from planter.networks import checkpoint
from planter.networks.assembly import build_network

IMAGENET = {"classes": 1000, "image": (3, 224, 224)}
# Parameters and 10^9 multiply-adds as torchvision's documentation prints them.
PUBLISHED = {
    "resnet18": (11_689_512, 1.814),
    "resnet50": (25_557_032, 4.089),
    "resnet152": (60_192_808, 11.514),
    "resnext50_32x4d": (25_028_904, 4.23),
    "wide_resnet50_2": (68_883_240, 11.398),
    "vgg11": (132_863_336, 7.609),
    "mobilenet_v2": (3_504_872, 0.301),
    "regnet_y_400mf": (4_344_144, 0.402),
}


def on_meta(key: str, options: dict) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(Architecture(key, {}, options))


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_torchvision_publishes(name: str) -> None:
    parameters, giga = PUBLISHED[name]
    with torch.device("meta"):
        found = cost(Architecture(f"torchvision:{name}", {}, IMAGENET))
    assert found.params == parameters
    assert abs(found.macs / 1e9 - giga) <= 0.0005


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_outputs_are_those_of_the_model_with_the_same_weights(name: str, training: bool) -> None:
    from torchvision import models

    arch = Architecture(f"torchvision:{name}", {}, {"classes": 7, "image": (3, 32, 32)})
    own, theirs = build_backbone(arch), models.get_model(name, weights=None, num_classes=7)
    fill_(own).double().train(training)
    # The order of the modules is kept, and so the states match one by one.
    states = zip(theirs.state_dict(), own.state_dict().values(), strict=True)
    theirs.double().train(training).load_state_dict(dict(states))
    x = images(3, (3, 32, 32))
    assert torch.equal(own(x), theirs(x))


def test_a_residual_network_has_a_stage_for_each_block() -> None:
    net = on_meta("torchvision:resnet50", {})
    assert isinstance(net, StagedNet)
    blocks = [f"layer{i}_{j + 1}" for i, n in enumerate((3, 4, 6, 3), start=1) for j in range(n)]
    assert list(net.stages._modules) == ["stem", *blocks]
    assert list(net.stages.stem._modules) == ["conv1", "bn1", "relu", "maxpool"]
    assert list(net.head._modules) == ["avgpool", "flatten", "fc"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_classifiers_are_built_without_them(name: str) -> None:
    net = on_meta(f"torchvision:{name}", {"classes": 7}).train()
    assert net(torch.empty(2, 3, 299, 299, device="meta")).shape == (2, 7)
    assert not [part for part, _ in net.named_modules() if "aux" in part.lower()]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", r"no classification model 'resnet81'; it has .*resnet18"),
        ("resnet_18", r"'resnet_18'; it has .*resnet18"),
        ("qqqq", r"'qqqq'; it has resnet101, resnet152, resnet18, resnet34, resnet50, \.\.\."),
        ("fasterrcnn_resnet50_fpn", r"no classification model 'fasterrcnn_resnet50_fpn'"),
        ("", r"no classification model ''"),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(name: str, words: str) -> None:
    for ask in (find_builder, full_widths, source_key):
        with pytest.raises(ValueError, match=words):
            ask(f"torchvision:{name}")


@pytest.mark.parametrize("image", [(1, 32, 32), (4, 8, 9)])
def test_other_numbers_of_channels_than_three_are_refused(image: tuple[int, int, int]) -> None:
    shown = "x".join(map(str, image))
    with pytest.raises(ValueError, match=f"resnet18 takes images of 3 channels, got {shown}"):
        on_meta("torchvision:resnet18", {"image": image})


def test_a_transformer_takes_images_of_its_size_alone() -> None:
    net = on_meta("torchvision:vit_b_32", {"image": (3, 224, 224)}).eval()
    assert net(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"vit_b_32 takes images of 3x224x224, got 3x32x224"):
        on_meta("torchvision:vit_b_32", {"image": (3, 32, 224)})


def test_widths_have_torchvisions_names_and_are_not_looked_for_unless_given() -> None:
    small = {"image": [3, 32, 32]}
    with pytest.raises(ValueError, match=r"give each width by name; widths are conv1, layer1\.0\."):
        full_widths("torchvision:resnet18", 8, small)
    narrow = full_widths("torchvision:resnet18", {"layer1.0.conv1": 8}, small)
    assert (narrow["layer1.0.conv1"], narrow["conv1"], len(narrow)) == (8, 64, 12)
    net = build_backbone(Architecture("torchvision:resnet18", narrow, small))
    assert net.stages.layer1_1.conv2.weight.shape == (64, 8, 3, 3)
    for none in (None, {}):
        assert full_widths("torchvision:resnet18", none) == {}
    with pytest.raises(ValueError, match=r"has no option depth; options are classes, image"):
        build_backbone(Architecture("torchvision:resnet18", {}, {"depth": 3}))


def test_a_saved_network_is_loaded_without_the_users_leave(tmp_path: Path) -> None:
    arch = Architecture("torchvision:resnet18", {}, {})
    arch = with_data_options(arch, classes=5, image=(3, 32, 32))
    net = build_network(arch, seed=3)
    checkpoint.save(tmp_path / "net", fill_(net), arch, "base", {})
    assert checkpoint.read_spec(tmp_path / "net")["architecture"] == arch.to_dict()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(checkpoint.load(tmp_path / "net")(x), net.eval()(x))


def test_what_builds_without_the_users_code_is_known() -> None:
    assert is_known("wrn")
    assert is_known("torchvision:resnet18")
    for key in ("nets:residual", "torchvision.models:resnet18", "torchvision", "nowhere"):
        assert not is_known(key)


def test_the_source_changes_with_torchvisions_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_key("torchvision:resnet18")
    assert re.fullmatch("[0-9a-f]{16}", before)
    monkeypatch.setattr(
        "planter.backbones.outside.torchvision_nets.installed_version", lambda: "0.0"
    )
    assert source_key("torchvision:resnet18") != before
