"""Training forms that users add from outside, without a line of planter changed: a parametrization
and a block."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import flat, images
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typer.testing import CliRunner

import planter
from planter import Architecture, collapse_kernels_, expand_kernels_, form_of
from planter.cli import app
from planter.costs.macs import training_cost
from planter.driver.run_folder.read import read_points
from planter.kernels.blocks import Block, Conv, cannot_give_way, expanded_layers, replace_
from planter.kernels.filters import Factors
from planter.kernels.forms import FORMS, FormKind, TrainingForm, form_names, forms_of
from planter.kernels.forms.short_names import number_text, read_numbers, read_settings
from planter.study.schema import StudyError
from planter.training.recipe import Recipe, make_optimizer

STUDY = """
name: outside
data: {name: digits, subset: 120, validation: 0.25}
teacher: {builder: convnet, widths: 4}
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01}
plant:
  start: 3
  channels: 1
  rounds: 1
  layers: [conv1]
  recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01}
  final: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01}
  kernels: scaled
sample: {space: "SPACE:space", trials: 1}
resources: {workers: 0, max_failures: 0}
"""
SPACE = """
from planter import Architecture, Candidate, form_of

def space(trial):
    names = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    widths = dict.fromkeys(names, trial.suggest_int("w", 2, 4))
    return Candidate(Architecture("convnet", widths), kernels={"conv2": form_of("twice:0.5")})
"""


class Scale(Factors):
    """A kernel times a learned number, which starts at 1 and does not decay."""

    own_decay = 0.0

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(like.new_ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        return self.scale * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


@dataclass(frozen=True)
class Scaled(TrainingForm):
    keeps_function = True
    makes = ("weight",)

    def __str__(self) -> str:
        return "scaled"

    @classmethod
    def read(cls, numbers: str, settings: Sequence[str]) -> Scaled:
        return cls(**read_settings(settings, cls))

    def takes(self, model: nn.Module, layer: nn.Module, name: str) -> bool:
        return self.unsuited(model, layer) is None

    def unsuited(self, model: nn.Module, layer: nn.Module) -> str | None:
        return None if isinstance(layer, nn.Conv2d) else f"is no Conv2d: {self} is for those"

    def expand_(self, model: nn.Module, layer: nn.Module) -> None:
        parametrize.register_parametrization(layer, "weight", Scale(layer.weight))


class Sum(Block):
    """A convolution and a second one without bias, `share` times, summed."""

    def __init__(self, first: Conv, share: float) -> None:
        super().__init__()
        self.first = first
        self.share = share
        self.second = nn.Parameter(torch.randn_like(first.weight))

    @property
    def plain(self) -> Conv:
        return self.first

    def forward(self, x: Tensor) -> Tensor:
        first = self.first
        both = first.weight + self.share * self.second
        return first._conv_forward(x, both, first.bias)

    def fused(self) -> tuple[Tensor, Tensor | None]:
        return self.first.weight + self.share * self.second, self.first.bias


@dataclass(frozen=True)
class Twice(TrainingForm):
    share: float

    def __str__(self) -> str:
        return f"twice:{number_text(self.share)}"

    @classmethod
    def read(cls, numbers: str, settings: Sequence[str]) -> Twice:
        return cls(*read_numbers(numbers, r"(.+)", "twice:SHARE"), **read_settings(settings, cls))

    def takes(self, model: nn.Module, layer: nn.Module, name: str) -> bool:
        return self.unsuited(model, layer) is None

    def unsuited(self, model: nn.Module, layer: nn.Module) -> str | None:
        return cannot_give_way(model, layer, self)

    def expand_(self, model: nn.Module, layer: nn.Module) -> None:
        replace_(model, layer, Sum(layer, self.share).train(layer.training))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "scaled", FormKind(Scaled, "scaled", Scaled.read))
    monkeypatch.setitem(FORMS, "twice", FormKind(Twice, "twice:1", Twice.read))


def test_forms_from_outside_have_short_names_and_are_listed() -> None:
    forms = {"conv1": Scaled(), "head": Twice(0.25)}
    assert form_names(forms) == {"conv1": "scaled", "head": "twice:0.25"}
    assert forms_of(form_names(forms)) == forms
    with pytest.raises(ValueError, match=r"forms are plain, kflo:2x4, .*, scaled, twice:1$"):
        form_of("scaled:2")
    with pytest.raises(ValueError, match=r"cannot read .* 'twice:x': expected twice:SHARE"):
        form_of("twice:x")
    with pytest.raises(ValueError, match=r"Scaled has no setting 'by'; it has no settings"):
        form_of("scaled,by=2")
    listed = r"a training form is KernelFilter\(...\), .*, Scaled\(\) or Twice\(...\), got"
    with pytest.raises(ValueError, match=listed):
        expand_kernels_(flat(flat.widths), Scaled)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is no Conv2d: scaled is for those"):
        expand_kernels_(flat(flat.widths), Scaled(), planter.is_conv_or_linear)


@pytest.mark.parametrize("name", ["scaled", "twice:0.5"])
def test_a_form_from_outside_is_expanded_trained_and_collapsed(name: str) -> None:
    network = flat(flat.widths, image=(3, 8, 8)).double()
    x, names = images(4, (3, 8, 8)), list(network.state_dict())
    kinds, before = [type(module) for module in network.modules()], network(x)
    expand_kernels_(network, form_of(name), seed=1)
    assert expanded_layers(network)
    assert torch.equal(network(x), before) == (name == "scaled")  # as `keeps_function` says
    optimizer = make_optimizer(network, Recipe(optimizer="sgd", lr=0.01, weight_decay=0.1))
    scales = {
        one
        for group in optimizer.param_groups
        for one in group["param_names"]
        if group["weight_decay"] == 0
    }
    assert scales == {key for key in network.state_dict() if key.endswith(".scale")}
    for _ in range(2):
        network(x).square().sum().backward()
        optimizer.step()
    after = network(x)
    collapse_kernels_(network)
    assert list(network.state_dict()) == names
    assert [type(module) for module in network.modules()] == kinds
    assert torch.equal(network(x), after)
    assert not torch.equal(after, before)


@given(share=st.floats(-4, 4), seed=st.integers(0, 9))
def test_a_fused_block_from_outside_is_its_formula(share: float, seed: int) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3)).double()
    first = network[0].weight.detach().clone()
    expand_kernels_(network, Twice(share), seed=seed)
    torch.manual_seed(seed)
    second = torch.randn_like(first)
    assert torch.equal(collapse_kernels_(network)[0].weight.detach(), first + share * second)


def test_a_form_from_outside_has_a_cost() -> None:
    widths = dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "fc1"], 4)
    toy = Architecture("toy", widths, {"image": [3, 32, 32], "classes": 10})
    found = training_cost(toy, form_of("scaled"), batch=2)
    assert found.params == found.params_plain + 4  # a number for each convolution
    assert found.macs_step == found.macs_step_plain
    call = ["cost", "toy", "--training", "--json", "--batch", "2", "--kernels", "scaled"]
    call += ["--widths", ",".join(f"{name}=4" for name in widths)]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["training"] == {"kernels": "scaled", **found.to_dict()}


def test_forms_from_outside_are_searched_with(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(SPACE)
    study = tmp_path / "outside.yaml"
    study.write_text(STUDY.replace("SPACE", str(tmp_path / "space.py")))
    refused = r"twice:1 starts as another function .*; kflo, do-conv and scaled do not"
    with pytest.raises(StudyError, match=refused):
        planter.search(study, out=tmp_path / "no", overrides=["plant.kernels=twice:1"])
    run = tmp_path / "run"
    found = planter.search(study, out=run)
    forms = {point.trial: point.kernels for point in read_points(run)}
    assert forms.pop("teacher") == "plain"
    assert forms.pop("s0000") == {"conv2": "twice:0.5"}
    assert forms.pop("p01-conv1") == "plain"  # of a plant, what is old does not train
    assert len(forms) == 2  # before the rounds and after them
    assert set(forms.values()) == {"scaled"}
    assert not found["failed"]
    for point in found["points"]:
        if point["model"] is not None:
            assert not expanded_layers(planter.load(run / point["model"]))
