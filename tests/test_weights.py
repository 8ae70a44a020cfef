"""Weights that networks of a study begin with: read, matched, loaded, and what a run knows."""

from __future__ import annotations

import json
from pathlib import Path

import plain_nets
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import planter
from planter import Architecture
from planter.backbones.outside.own import NETWORKS
from planter.backbones.outside.published import file_of, published
from planter.driver.checking.check import prepare
from planter.networks import checkpoint
from planter.networks.assembly import build_network
from planter.networks.weights import read_weights, start_network, weights_key
from planter.study.file import read_study, study_of
from planter.study.schema import Study, StudyError

FACTS = {"classes": 10, "image": [1, 8, 8]}
PLAIN = Architecture("plain_nets:Residual", {}, FACTS)
STUDY = {
    "name": "weights",
    "data": {"name": "digits", "subset": 120, "validation": 0.25},
    "recipe": {"epochs": 1, "batch": 60, "optimizer": "adam", "lr": 0.01},
    "resources": {"workers": 0},
}


def learned(classes: int = 10, seed: int = 5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = plain_nets.Residual(classes, 1)
        net.bn1.running_mean.normal_()
    return net.eval()


def same(a: nn.Module, b: nn.Module, *, but: str = "-") -> bool:
    theirs = b.state_dict()
    return all(
        torch.equal(tensor, theirs[name])
        for name, tensor in a.state_dict().items()
        if not name.startswith(but)
    )


def distance(a: nn.Module, b: nn.Module) -> float:
    """Largest between two parameters."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


def written(path: Path, state: object) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_every_kind_of_file_gives_the_network(tmp_path: Path, suffix: str, prefix: str) -> None:
    net = learned()
    state = {prefix + name: tensor for name, tensor in net.state_dict().items()}
    begun = start_network(PLAIN, written(tmp_path / f"net{suffix}", state))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(begun.network.eval()(x), net(x))
    parts = [part for part in prefix.split(".") if part]
    assert begun.told == [f"the prefix '{p}.' of the file's names was removed" for p in parts]


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_a_training_s_checkpoint_is_opened(tmp_path: Path, wrapper: str) -> None:
    net = learned()
    state = {"epoch": 3, wrapper: net.state_dict(), "optimizer": {"state": {}}}
    begun = start_network(PLAIN, written(tmp_path / "net.pth", state))
    assert same(begun.network, net)
    assert begun.told == [f"net.pth: the weights stand under {wrapper!r}"]


def test_a_part_called_model_keeps_its_name(tmp_path: Path) -> None:
    class Holds(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.model = plain_nets.Residual(classes, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    NETWORKS["holds"] = Holds
    net = Holds(10)
    path = written(tmp_path / "net.pth", net.state_dict())
    begun = start_network(Architecture("holds", {}, FACTS), path)
    assert same(begun.network, net)
    assert begun.told == []


def test_a_head_of_other_classes_begins_afresh_and_is_told(tmp_path: Path) -> None:
    net = learned(classes=4)
    path = written(tmp_path / "net.pth", net.state_dict())
    begun = start_network(PLAIN, path, seed=9)
    assert same(begun.network, net, but="fc.")
    assert torch.equal(begun.network.fc.weight, build_network(PLAIN, seed=9).fc.weight)
    assert begun.fresh == ["fc"]
    assert begun.told == ["the classifier fc has 10 classes, the file's 4: it begins afresh"]


def test_other_shapes_inside_are_refused_by_name(tmp_path: Path) -> None:
    net = plain_nets.Residual(10, 1, width=5)
    path = written(tmp_path / "net.pth", net.state_dict())
    with pytest.raises(ValueError, match=r"does not fit plain_nets:Residual: other shapes: conv1"):
        start_network(PLAIN, path)


def test_names_that_do_not_match_are_listed(tmp_path: Path) -> None:
    state = learned().state_dict()
    more = written(tmp_path / "more.pth", {**state, "decoder.weight": torch.zeros(3)})
    begun = start_network(PLAIN, more)
    assert begun.told == ["not in the network, and left out: decoder.weight"]
    del state["conv2.bias"]
    begun = start_network(PLAIN, written(tmp_path / "less.pth", state), seed=2)
    assert begun.told == ["not in the file, and begin afresh: conv2.bias"]
    assert torch.equal(begun.network.conv2.bias, build_network(PLAIN, seed=2).conv2.bias)
    for name in ("conv1.weight", "fc.weight", "fc.bias"):
        del state[name]
    with pytest.raises(ValueError, match=r"4 of its 10 tensors .*conv1\.weight, conv2\.bias, fc"):
        start_network(PLAIN, written(tmp_path / "few.pth", state))
    other = written(tmp_path / "other.pth", nn.Linear(3, 3).state_dict())
    with pytest.raises(ValueError, match=r"9 of its 10 tensors .*; the file has weight, bias"):
        start_network(PLAIN, other)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            lambda: learned(),
            r"holds more than tensors \(plain_nets.*torch.save\(network.state_dict",
        ),
        (lambda: {"epoch": 3}, r"holds dict with epoch, expected a state dict"),
        (lambda: 3, "holds int, expected a state dict"),
        (None, "is damaged, or holds no tensors"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "net.pth"
    if content is None:
        path.write_bytes(b"no weights")
    else:
        torch.save(content(), path)
    with pytest.raises(ValueError, match=words):
        read_weights(path)
    (tmp_path / "net.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        read_weights(tmp_path / "net.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvision_s_own_names_are_those_of_planter_s_network(tmp_path: Path, name: str) -> None:
    from torchvision import models

    theirs = models.get_model(name, num_classes=10).eval()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 0.1)
    path = written(tmp_path / "net.pth", theirs.state_dict())
    arch = Architecture(f"torchvision:{name}", {}, {"classes": 10, "image": [3, 32, 32]})
    begun = start_network(arch, path)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(begun.network.eval()(x), theirs(x))
    assert begun.told == []


def test_what_planter_saves_is_read_back(tmp_path: Path) -> None:
    arch = Architecture("toy", planter.BUILDERS["toy"].widths, {"classes": 10, "image": [1, 8, 8]})
    net = build_network(arch, seed=3)
    checkpoint.save(tmp_path / "net", net, arch, "base")
    begun = start_network(arch, str(tmp_path / "net" / "weights.safetensors"))
    assert same(begun.network, net)
    assert begun.told == []


def test_default_weights_are_those_in_torchs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arch = Architecture("torchvision:resnet18", {}, {"classes": 10, "image": [3, 32, 32]})
    with pytest.raises(
        ValueError, match=r"resnet18.IMAGENET1K_V1 are not on this .*download: true"
    ):
        start_network(arch, "DEFAULT")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    theirs = models.resnet18()
    written(folder / "resnet18-f37072fd.pth", theirs.state_dict())
    begun = start_network(arch, "DEFAULT")
    assert torch.equal(begun.network.stem.conv1.weight, theirs.conv1.weight)
    assert begun.told == [
        "the classifier head.fc has 10 classes, the file's 1000: it begins afresh"
    ]
    known = published("torchvision:resnet18")
    assert (known.size, list(known.mean)) == (224, [0.485, 0.456, 0.406])
    with pytest.raises(ValueError, match="convnet publishes no weights"):
        published("convnet")


def test_default_weights_of_timm_are_found_where_it_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    known = published("timm:resnet18.a1_in1k")
    cfg = timm.create_model("resnet18").pretrained_cfg
    assert (known.size, tuple(known.mean), tuple(known.std)) == (224, cfg["mean"], cfg["std"])
    with pytest.raises(ValueError, match=r"resnet18\.a1_in1k are not on this machine"):
        file_of(known, download=False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    theirs = timm.create_model("resnet18", num_classes=1000)
    written(folder / "resnet18_a1_0-d63eafa0.pth", theirs.state_dict())
    arch = Architecture("timm:resnet18.a1_in1k", {}, {"classes": 1000, "image": [3, 32, 32]})
    begun = start_network(arch, "DEFAULT")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(begun.network.eval()(x), theirs.eval()(x))


def test_the_key_is_of_the_content(tmp_path: Path) -> None:
    one = written(tmp_path / "one.safetensors", learned().state_dict())
    two = written(tmp_path / "two.safetensors", learned().state_dict())
    other = written(tmp_path / "other.safetensors", learned(seed=6).state_dict())
    keys = [weights_key("plain_nets:Residual", path) for path in (one, two, other)]
    assert keys[0] == keys[1] != keys[2]


def test_null_beside_weights_says_that_a_network_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: s\nteacher: {builder: toy, weights: net.pth, recipe: null}\n"
        "baselines: [{weights: DEFAULT}, {widths: 3}]\nrecipe: {epochs: 7}\n"
    )
    study = read_study(tmp_path / "s.yaml")
    assert study.teacher.weights == str(tmp_path / "net.pth")
    assert study.teacher.frozen
    assert [one.frozen for one in study.baselines] == [False, False]
    assert study.baselines[0].recipe.epochs == 7
    assert study.baselines[0].weights == "DEFAULT"
    assert study.baselines[1].recipe is None
    again = Study.model_validate(json.loads(study.model_dump_json()))
    assert again == study
    assert again.teacher.frozen
    with pytest.raises(ValueError, match="download: true is for weights: DEFAULT"):
        study_of({**STUDY, "baselines": [{"weights": "a.pth", "download": True}]})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, nn.Module, dict]:
    """A study whose baselines begin with the same file: frozen, trained, and from scratch."""
    folder = tmp_path_factory.mktemp("run")
    net = learned()
    path = written(folder / "net.pth", net.state_dict())
    plain = {"builder": "plain_nets:Residual"}
    study = {
        **STUDY,
        "teacher": {**plain, "weights": path, "recipe": None},
        "baselines": [
            {**plain, "name": "frozen", "weights": path, "recipe": None},
            {**plain, "name": "tuned", "weights": path, "recipe": {**STUDY["recipe"], "lr": 1e-9}},
            {**plain, "name": "scratch"},
        ],
    }
    return folder, study, net, planter.search(study, out=folder / "run")


def test_frozen_networks_are_scored_and_not_trained(run) -> None:
    folder, _, net, found = run
    points = {p["trial"]: p for p in found["points"]}
    for name in ("teacher", "b-frozen"):
        saved = planter.load(folder / "run" / "models" / name / "base", own_code=True)
        assert same(saved, net)
        assert points[name]["train_macs"] == 0
    assert points["b-scratch"]["train_macs"] > 0
    data = planter.load_data(**STUDY["data"], seed=0)
    assert points["b-frozen"]["accuracy"] == planter.evaluate(net, data.validation).accuracy
    assert found["cost"]["train_macs"] == 2 * points["b-scratch"]["train_macs"]


def test_networks_with_weights_are_trained_from_them(run) -> None:
    folder, _, net, _ = run
    models = folder / "run" / "models"
    tuned = planter.load(models / "b-tuned" / "base", own_code=True)
    assert 0 < distance(tuned, net) < 1e-6  # an epoch at a rate of 1e-9
    scratch = planter.load(models / "b-scratch" / "base", own_code=True)
    assert distance(scratch, net) > 1e-2


def test_a_run_is_not_continued_with_other_weights(run) -> None:
    folder, study, _, found = run
    again = planter.search(study, out=folder / "run")
    assert again["points"] == found["points"]
    keys = json.loads((folder / "run" / "environment.json").read_text())["weights"]
    assert list(keys) == ["teacher.weights", "baselines.0.weights", "baselines.1.weights"]
    before = (folder / "net.pth").read_bytes()
    try:
        written(folder / "net.pth", learned(seed=8).state_dict())
        with pytest.raises(StudyError, match=r"teacher\.weights: got weights of content"):
            planter.search(study, out=folder / "run")
    finally:
        (folder / "net.pth").write_bytes(before)


def test_a_teacher_trained_from_other_weights_is_another(tmp_path: Path) -> None:
    plain = {"builder": "plain_nets:Residual"}
    study = {**STUDY, "baselines": [plain]}
    for name, seed in (("one", 1), ("two", 2), ("again", 1)):
        path = written(tmp_path / f"{name}.safetensors", learned(seed=seed).state_dict())
        study["teacher"] = {**plain, "weights": path}
        planter.search(study, out=tmp_path / name)
    teachers = [p for p in (tmp_path / ".teachers").iterdir() if p.is_dir()]
    assert len(teachers) == 2


def test_a_check_tells_what_is_done_and_what_cannot_be(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pth", learned(classes=4).state_dict())
    plain = {"builder": "plain_nets:Residual", "weights": path}
    found = prepare(study_of({**STUDY, "baselines": [plain]}))
    told = "the classifier fc has 10 classes, the file's 4: it begins afresh"
    assert f"baselines.0.weights: {told}" in found.warnings
    frozen = {**plain, "recipe": None}
    with pytest.raises(StudyError, match=r"baselines\.0\.recipe: got null beside a classifier"):
        prepare(study_of({**STUDY, "baselines": [frozen]}))
    gone = {**plain, "weights": str(tmp_path / "gone.pth")}
    with pytest.raises(StudyError, match=r"baselines\.0\.weights: .*no file .*gone\.pth"):
        prepare(study_of({**STUDY, "baselines": [gone]}))


def test_the_start_of_planting_may_have_weights(tmp_path: Path) -> None:
    arch = Architecture("convnet", {f"conv{i}": 3 for i in range(1, 6)}, FACTS)
    net = build_network(arch, seed=3)
    path = written(tmp_path / "net.safetensors", net.state_dict())
    plant = {
        "builder": "convnet", "start": 3, "rounds": 0, "kd_weight": 0, "ce_weight": 1,
        "weights": path,
    }  # fmt: skip
    study = {**STUDY, "recipe": {**STUDY["recipe"], "lr": 1e-9}, "plant": plant}
    study["objectives"] = {"macs_reference": 1e6}
    planter.search(study, out=tmp_path / "run")
    (start,) = (tmp_path / "run" / "models").iterdir()
    saved = planter.load(start / "base")
    assert distance(saved, net) < 1e-6


def test_a_network_given_in_python_may_guide_as_it_is(tmp_path: Path) -> None:
    study = {
        **STUDY,
        "teacher": {"builder": "mine", "weights": "OWN", "recipe": None},
        "baselines": [{"builder": "plain_nets:small", "kd": {}}],
    }
    net = learned()
    found = planter.search(study, networks={"mine": net}, out=tmp_path / "run")
    teacher = planter.load(tmp_path / "run" / "models" / "teacher" / "base", own_code=True)
    assert same(teacher, net)
    assert {p["trial"]: p["train_macs"] for p in found["points"]}["teacher"] == 0
