"""Awkward pipelines, and the same in plain torch: a twin runs no code of planter's pipelines."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping

import torch
from nets import fill_
from torch import Tensor, nn
from torch.nn import functional

from planter.backbones import StagedNet
from planter.networks.norms import NormMode
from planter.networks.pipelines import Entry, Exit, Pipelines

Ways = dict[str, Entry | Exit]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CLASSES = 5


def conv_norm(channels: int, width: int, momentum: float | None = 0.1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width, momentum=momentum),
        nn.ReLU(),
    )


class Around(nn.Module):
    """A residual block of two convolutions, with one norm in two places or with two norms."""

    def __init__(self, channels: int, *, norm_twice: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.other = self.norm if norm_twice else nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm(self.first(x)))
        return torch.relu(x + self.other(self.second(inner)))


def backbone(*, norm_twice: bool = True) -> StagedNet:
    """Maps of 8, 4, 4, 4, 2, 2 pixels. A cumulative norm, a norm used twice, a stage used twice,
    and in the head a norm of vectors."""
    twice = Around(4, norm_twice=norm_twice)
    stages = OrderedDict(
        one=conv_norm(3, 4),
        two=nn.Sequential(conv_norm(4, 4, momentum=None), nn.MaxPool2d(2)),
        three=twice,
        again=twice,
        mean=nn.AdaptiveAvgPool2d(2),
        four=conv_norm(4, 6),
    )
    head = OrderedDict(
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc1=nn.Linear(6, 7),
        norm=nn.BatchNorm1d(7, momentum=0.3),
        relu=nn.ReLU(),
        fc2=nn.Linear(7, CLASSES),
    )
    return StagedNet(nn.Sequential(stages), nn.Sequential(head))


def entry(kernel: int, channels: int = 4) -> nn.Sequential:
    conv = nn.Conv2d(3, channels, kernel, kernel, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def classifier(channels: int = 4) -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return nn.Sequential(conv_norm(channels, channels), *head)


def ways() -> Ways:
    """Not by depth. `middle` meets the base's map at `three`, `wide` enters there with a larger one
    and meets it behind `mean`; two exits stand at one stage, and behind all but `late` one."""
    return {
        "late": Entry("four", entry(4)),
        "x-mean": Exit("mean", classifier()),
        "middle": Entry("three", entry(2)),
        "wide": Entry("three", entry(1)),
        "x-one": Exit("one", classifier()),
        "sharp": Entry("one", entry(1, channels=3)),
        "x-one-too": Exit("one", classifier()),
    }


BY_DEPTH = ["base", "sharp", "middle", "wide", "late"]
EXITS = ["x-one", "x-one-too", "x-mean"]
NAMES = ["base", *ways()]


def awkward(
    norms: NormMode = "switch_stats", seed: int = 0, *, norm_twice: bool = True
) -> Pipelines:
    torch.manual_seed(seed)
    net = Pipelines(fill_(backbone(norm_twice=norm_twice), seed), ways(), norms)
    for module in net.modules_of.values():
        fill_(module, seed + 1)
    return net.double()


class Twin(nn.Module):
    """The pipelines of fresh `Pipelines`, each a chain of modules of its own whose parameters are
    those of the base's chain; one after another, one stage after another."""

    def __init__(self, net: Pipelines, norms: NormMode) -> None:
        super().__init__()
        parts, modules = copy.deepcopy((net.backbone, net.modules_of))
        self.places = [*parts.stages._modules, "head"]
        own = [*parts.stages._modules.values(), parts.head]
        self.taps = {name: way.after for name, way in ways().items() if isinstance(way, Exit)}
        self.starts = {name: way.before for name, way in ways().items() if isinstance(way, Entry)}
        self.starts["base"] = "one"
        self.modules_of = modules
        chains = {"base": nn.ModuleList(own)}
        for name in BY_DEPTH[1:]:
            chains[name] = copy.deepcopy(nn.ModuleList(own), _left_shared(parts, norms))
        self.chains = nn.ModuleDict(chains)

    def forward(self, images: Tensor, names: Collection[str] = NAMES) -> dict[str, Tensor]:
        taps = {self.taps[name]: self.places.index(self.taps[name]) for name in names
                if name in self.taps}  # fmt: skip
        last = len(self.places) if "base" in names else max(taps.values(), default=-1) + 1
        maps, logits = {}, {}
        for at, place in enumerate(self.places):
            for name in BY_DEPTH:
                if name in names or (name == "base" and at < last):
                    if self.starts[name] == place:
                        module = self.modules_of[name] if name != "base" else nn.Identity()
                        maps[name] = module(images)
                    if name in maps and (name != "base" or at < last):
                        maps[name] = self.chains[name][at](maps[name])
            for name in names:
                if self.taps.get(name) == place:
                    logits[name] = self.modules_of[name](maps["base"])
        return {**{name: x for name, x in maps.items() if name in names}, **logits}

    def alone(self, name: str) -> nn.Sequential:
        """The chain of one pipeline."""
        if name in self.taps:
            last = self.places.index(self.taps[name])
            return nn.Sequential(*self.chains["base"][: last + 1], self.modules_of[name])
        first = [self.modules_of[name]] if name != "base" else []
        return nn.Sequential(*first, *self.chains[name][self.places.index(self.starts[name]) :])


def _left_shared(parts: nn.Module, norms: NormMode) -> dict[int, Tensor]:
    """What a copy of a pipeline's chain keeps of the base's, as the memo of a deep copy."""
    in_norms = [m for m in parts.modules() if isinstance(m, NORMS)]
    shared = {id(p): p for p in parts.parameters()}
    if norms == "switch_all":
        for norm in in_norms:
            for p in norm.parameters():
                del shared[id(p)]
    if norms == "shared":
        shared |= {id(b): b for norm in in_norms for b in norm.buffers()}
    return shared


def loss_by_hand(
    logits: Mapping[str, Tensor],
    labels: Tensor,
    weights: Mapping[str, float],
    synergy_weight: float = 0.0,
) -> Tensor:
    """Weighted cross-entropies, and DKS's L_s both ways between base and exits."""
    total = torch.zeros((), dtype=torch.float64)
    for name, x in logits.items():
        total = total + weights.get(name, 1.0) * functional.cross_entropy(x, labels)
    classifiers = [logits[name] for name in ["base", *EXITS] if name in logits]
    for guide in classifiers:
        for pupil in classifiers:
            if guide is not pupil and synergy_weight:
                target = guide.detach().softmax(dim=1)
                soft = -(target * pupil.log_softmax(dim=1)).sum(dim=1).mean()
                total = total + synergy_weight * soft
    return total


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    """Entry by entry in order, whatever the names; float64, other orders of summation."""
    one, other = list(found.state_dict().values()), list(expected.state_dict().values())
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
