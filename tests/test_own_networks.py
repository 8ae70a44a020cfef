"""Plain networks of a user's: by place, by name in Python, of timm."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path

import plain_nets
import pytest
import torch
from torch import nn

import planter
from planter import Architecture, StagedNet
from planter.backbones import build_backbone, find_builder, full_widths, is_known, source_key
from planter.backbones.outside.own import NETWORKS
from planter.costs.macs import cost
from planter.driver.backends.parcel import pickled
from planter.driver.checking.check import prepare
from planter.networks import checkpoint
from planter.networks.assembly import build_network, check_architecture
from planter.networks.cut_points import cuts
from planter.study.file import study_of
from planter.study.schema import StudyError

FACTS = {"classes": 7, "image": [1, 8, 8]}
RECIPE = {"epochs": 1, "batch": 60, "optimizer": "adam", "lr": 0.01}
STUDY = {
    "name": "own",
    "data": {"name": "digits", "subset": 120, "validation": 0.25},
    "recipe": RECIPE,
    "resources": {"workers": 0},
}


def arch(key: str, **options: object) -> Architecture:
    return Architecture(key, {}, {**FACTS, **options})


def expected(key: str) -> nn.Module:
    name = key.partition(":")[2]
    return {
        "Residual": lambda: plain_nets.Residual(7, 1),
        "Staged": lambda: plain_nets.Staged(7, [1, 8, 8]),
        "small": lambda: plain_nets.small(7),
        "flat": lambda: plain_nets.flat(7, [1, 8, 8]),
    }[name]()


@pytest.mark.parametrize("name", ["Residual", "Staged", "small", "flat"])
def test_a_class_or_function_is_called_with_what_it_takes(name: str) -> None:
    key = f"plain_nets:{name}"
    check_architecture(arch(key))
    built = build_network(arch(key), seed=4)
    torch.manual_seed(4)
    direct = expected(key)
    assert type(built) is type(direct)
    assert str(built) == str(direct)
    states = zip(built.state_dict().items(), direct.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in states)


def test_options_of_a_study_are_handed_on_and_others_refused() -> None:
    assert build_backbone(arch("plain_nets:Residual", width=11)).conv1.out_channels == 11
    assert build_backbone(arch("plain_nets:anything", num_classes=5)).fc.out_features == 5
    with pytest.raises(ValueError, match=r"no option depth; options are .*in_chans.*width"):
        build_backbone(arch("plain_nets:Residual", depth=3))
    with pytest.raises(ValueError, match=r"anything cannot be built with options .*TypeError"):
        build_backbone(arch("plain_nets:anything", depth=3))


def test_widths_of_a_plain_network_are_found_and_set() -> None:
    narrow = build_backbone(Architecture("plain_nets:Residual", {"conv1": 3}, FACTS))
    # Joined by the sum: the first convolution's channels are those of the second.
    assert narrow.conv1.out_channels == narrow.conv2.in_channels == narrow.fc.in_features == 3
    for widths, words in (
        (8, "give each width by name; widths are conv1$"),
        ({"conv2": 3}, "has no width conv2; widths are conv1$"),
        ({"fc": 3}, "fc cannot change, because of the network's output"),
    ):
        with pytest.raises(ValueError, match=words):
            full_widths("plain_nets:Residual", widths, FACTS)
    with pytest.raises(ValueError, match="give the option image"):
        full_widths("plain_nets:Residual", {"conv1": 3})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Pair", r"gives tuple of \[2, 7\], \[2, 7\] for 2 1x8x8 images, expected logits \[2, 7\]"),
        ("Named", r"gives dict with logits"),
        ("Classes", r"gives int64 numbers for 2 1x8x8 images, expected logits \[2, 7\] of float"),
        ("of_ten", r"plain_nets:of_ten gives \[2, 10\]"),
        ("no_network", r"plain_nets:no_network returned list, expected a network"),
        ("nothing", r"has no 'nothing'"),
    ],
)
def test_what_gives_no_logits_is_told_with_what_it_gave(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_architecture(arch(f"plain_nets:{name}"), torch.rand(2, 1, 8, 8))


def test_a_network_that_loses_its_batch_is_refused() -> None:
    check_architecture(arch("plain_nets:Residual"), torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"gives \[7\] for one 1x8x8 image, expected .*\[1, 7\]"):
        check_architecture(arch("plain_nets:Squeezed"))


def test_parts_called_stages_and_head_are_not_taken_for_planters() -> None:
    key = "plain_nets:Staged"
    check_architecture(arch(key))
    with pytest.raises(ValueError, match="pipelines enter and leave between stages"):
        cuts(arch(key))
    net = build_network(arch(key))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(net(x), net.head(net.norm(net.stages(x).mean((2, 3)))))
    assert cost(arch(key)).macs == cost(net, (1, 8, 8)).macs == 8 * 8 * 4 * 9 + 4 * 7


def test_a_plain_network_is_saved_and_loaded_as_its_own_class(tmp_path: Path) -> None:
    net = build_network(arch("plain_nets:Staged"), seed=1).eval()
    checkpoint.save(tmp_path / "net", net, arch("plain_nets:Staged"), "base")
    with pytest.raises(ValueError, match="own_code=True"):
        checkpoint.load(tmp_path / "net")
    loaded = checkpoint.load(tmp_path / "net", own_code=True)
    assert type(loaded) is plain_nets.Staged
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(x), net(x))


def test_a_network_at_a_place_is_copied() -> None:
    built = build_backbone(
        Architecture("plain_nets:given", {}, {"classes": 10, "image": [1, 8, 8]})
    )
    assert built is not plain_nets.given
    for mine, theirs in zip(built.parameters(), plain_nets.given.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


def test_the_key_of_a_network_follows_its_weights() -> None:
    NETWORKS["mine"] = copy.deepcopy(plain_nets.given)
    before = source_key("mine")
    assert before == source_key("mine")
    with torch.no_grad():
        NETWORKS["mine"].fc.bias[0] += 1
    assert source_key("mine") != before


def made(classes: int) -> nn.Module:
    return plain_nets.Residual(classes, 1, width=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_networks_are_given_in_python(tmp_path: Path, workers: int) -> None:
    class Inner(plain_nets.Residual):
        """Stands in no module: only its code can travel."""

        def __init__(self, classes: int) -> None:
            super().__init__(classes, 1, width=2)

    networks = {"mine": Inner, "there": copy.deepcopy(plain_nets.given)}
    study = {
        **STUDY,
        "baselines": [{"builder": "mine"}, {"builder": "there"}],
        "resources": {"workers": workers},
    }
    found = planter.search(study, networks=networks, out=tmp_path / "run")
    assert [p["id"] for p in found["points"]] == ["b-mine/base", "b-there/base"]
    loaded = planter.load(tmp_path / "run" / "models" / "b-mine" / "base", own_code=True)
    assert type(loaded).__name__ == "Inner"
    NETWORKS.clear()
    with pytest.raises(StudyError, match=r"unknown builder 'mine'.*networks=\{'mine': \.\.\.\}"):
        planter.search(study, out=tmp_path / "run")


def test_names_and_kinds_of_given_networks_are_checked(tmp_path: Path) -> None:
    for name, net, words in (
        ("resnet", made, "'resnet' is the name of another builder"),
        ("my:net", made, "without ':'"),
        ("mine", 3, "'mine' is int, expected a torch.nn.Module"),
    ):
        with pytest.raises(ValueError, match=words):
            planter.search(STUDY, networks={name: net}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not {"resnet", "my:net", "mine"} & set(NETWORKS)


def test_what_cannot_travel_is_refused_before_any_training() -> None:
    lock = threading.Lock()
    NETWORKS["mine"] = lambda classes: plain_nets.Residual(classes, 1, 3 if lock else 4)
    study = {**STUDY, "baselines": [{"builder": "mine"}], "resources": {"workers": 1}}
    with pytest.raises(StudyError, match=r"'mine' of networks=, which cannot be sent.*lock"):
        prepare(study_of(study))
    prepare(study_of({**study, "resources": {"workers": 0}}))


def test_a_pickled_network_is_the_same_elsewhere() -> None:
    content = pickled(plain_nets.given)
    assert isinstance(content, bytes)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(pickle.loads(content).eval()(x), plain_nets.given.eval()(x))


def test_a_check_tells_all_that_is_wrong_with_a_plain_network() -> None:
    study = {**STUDY, "baselines": [{"builder": "plain_nets:Pair", "options": {"in_chans": 1}}]}
    with pytest.raises(StudyError, match=r"baselines\.0: got plain_nets:Pair: .* gives tuple of"):
        prepare(study_of(study))


def test_a_mapping_is_read_as_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = study_of({**STUDY, "teacher": {"model": "there"}}, ["recipe.epochs=3"])
    assert study.teacher.model == str(tmp_path / "there")
    assert study.recipe.epochs == 3
    assert STUDY["recipe"]["epochs"] == 1
    with pytest.raises(StudyError, match=r"recipe\.lr: got 'x'"):
        study_of({**STUDY, "recipe": {**RECIPE, "lr": "x"}})


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050"])
def test_a_model_of_timm_is_the_one_it_makes(name: str) -> None:
    import timm

    key = f"timm:{name}"
    options = {"classes": 7, "image": [1, 64, 64], "drop_rate": 0.25}
    assert is_known(key)
    check_architecture(Architecture(key, {}, options))
    built = build_network(Architecture(key, {}, options), seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.25)
    x = torch.rand(2, 1, 64, 64)
    assert torch.equal(built.eval()(x), theirs.eval()(x))
    assert not isinstance(built, StagedNet)


def test_unknown_models_of_timm_are_answered_with_close_ones() -> None:
    with pytest.raises(ValueError, match=r"timm has no model 'resnet_18'; it has .*resnet18"):
        find_builder("timm:resnet_18")
    with pytest.raises(ValueError, match=r"timm has no weights 'a9' of resnet18; .*a1_in1k"):
        find_builder("timm:resnet18.a9")


def test_options_of_timm_that_read_files_are_refused() -> None:
    options = {**FACTS, "checkpoint_path": "/tmp/net.pth"}
    with pytest.raises(ValueError, match="checkpoint_path reads files"):
        build_backbone(Architecture("timm:resnet18", {}, options))


def test_without_timm_the_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r'pip install "planter\[timm\]"'):
        find_builder("timm:resnet18")
