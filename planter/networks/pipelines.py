"""Several ways through one network: each a network that can be taken out and shipped.

A sub-model of CNSN enters behind a step-down convolution, an image head (Hu) before the first
stage, an auxiliary branch (DKS) leaves after a stage. What they share with the base is stored and,
in training, computed once.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from planter.backbones.outside.chain import ChainNet
from planter.kernels.blocks import expanded_layers
from planter.networks.cut_points import is_staged, stage_names
from planter.networks.norms import NormMode, batch_norms, check_norm_mode, own_norm, switched

_Group = tuple[str, ...]
"""Pipelines whose maps stand one after another in one batch."""
_HEAD, BRANCH = "head", "branch"
_RESERVED = (_HEAD, "step_down", "image_head", BRANCH)


@dataclass(frozen=True)
class Entry:
    """A module that turns the image into the input of stage `before`: a step-down convolution, or
    before the first stage an image head."""

    before: str
    module: nn.Module


@dataclass(frozen=True)
class Exit:
    """A classifier that reads what stage `after` hands on."""

    after: str
    module: nn.Module


class Pipelines(nn.Module):
    """A backbone, its entries and its exits; one call gives the logits of every pipeline.

    Weights of shared stages are shared. `norms` says what else is: by default the statistics of
    their batch norms are each entry's own, as several input distributions through one running
    mean fit none of them. Exits read the base's own maps and share nothing behind them.
    """

    entries_have_statistics: ClassVar[bool] = True
    """The mark by which training forms know this class, which they cannot import."""

    def __init__(
        self,
        backbone: nn.Module,
        ways: Mapping[str, Entry | Exit],
        norms: NormMode = "switch_stats",
    ) -> None:
        super().__init__()
        check_norm_mode(norms)
        self.backbone = backbone
        self.norm_mode = norms
        self.names = ["base", *ways]
        self._before: dict[str, str] = {}
        self._after: dict[str, str] = {}
        stages = stage_names(backbone) if ways or is_staged(backbone) else []
        if taken := sorted(set(stages) & set(_RESERVED)):
            raise ValueError(f"a stage cannot be called {taken[0]!r}; planter uses that name")
        for name, way in ways.items():
            _check_name(name)
            if isinstance(way, Entry):
                if way.before not in stages:
                    raise ValueError(
                        f"pipeline {name}: cannot enter before {way.before!r}; "
                        f"stages are {', '.join(stages)}"
                    )
                self._before[name] = way.before
            else:
                if way.after not in stages[:-1]:
                    raise ValueError(
                        f"pipeline {name}: cannot leave after {way.after!r}; "
                        f"stages with others behind them are {', '.join(stages[:-1])}"
                    )
                self._after[name] = way.after
        self.modules_of = nn.ModuleDict({name: way.module for name, way in ways.items()})
        self.norms = nn.ModuleDict()
        # Where in each part the norms stand that an entry shares, and the names of their kin in
        # `self.norms`. Places, not modules: a norm may be replaced, e.g. by its kind for many GPUs.
        self._shared: dict[str, dict[str, str]] = {}
        keys: dict[nn.Module, str] = {}
        for name, before in self._before.items():
            for place, part in self._behind(before):
                for inner, norm in batch_norms(part).items():
                    key = keys.setdefault(norm, f"{place}.{inner}".replace(".", "/"))
                    self._shared.setdefault(place, {})[inner] = key
                    if norms != "shared" and f"{name}/{key}" not in self.norms:
                        self.norms[f"{name}/{key}"] = own_norm(norm, norms)

    @property
    def entries(self) -> list[str]:
        """The pipelines that enter the backbone behind a module of their own."""
        return list(self._before)

    @property
    def shares_statistics(self) -> bool:
        """Whether running statistics follow the maps of several entries, and so fit none."""
        return bool(self._before) and self.norm_mode == "shared"

    @property
    def exits(self) -> list[str]:
        """The exits by depth, the one after the earliest stage first."""
        stages = stage_names(self.backbone) if self._after else []
        return sorted(self._after, key=lambda name: stages.index(self._after[name]))

    def forward(self, images: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Logits `[batch, classes]` by pipeline for images `[batch, channels, height, width]`; of
        the pipelines `names` alone, where given. Raises ValueError for a name that is not there.

        In training, pipelines whose maps have the same shape go through shared stages as one
        batch, the norms apart. In eval mode each goes alone, and so gives the very bits of the
        network that `detach` makes of it.
        """
        if names is not None and (isinstance(names, str) or not set(names) <= set(self.names)):
            raise ValueError(f"names {names!r}: expected some of {self.names}")
        wanted = [name for name in self.names if names is None or name in names]
        taps = {self._after[name] for name in wanted if name in self._after}
        logits: dict[str, Tensor] = {}
        running: dict[_Group, Tensor] = {("base",): images} if taps or "base" in wanted else {}
        for place, part in self._parts():
            for name in wanted:
                if self._before.get(name) == place:
                    running[(name,)] = self._own(name, images)
            if self.training:
                running = _merged(running)
            for group, x in running.items():
                with switched(self._norms_of(group, place, part)):
                    running[group] = part(x)
            if place in taps:
                # The base was there from the start: it is the first of its group.
                maps = next(x for group, x in running.items() if group[0] == "base")[: len(images)]
                for name in wanted:
                    if self._after.get(name) == place:
                        logits[name] = self._own(name, maps)
                taps.remove(place)
                if not taps and "base" not in wanted:
                    running = _without_base(running, len(images))
        for group, x in running.items():
            logits.update(zip(group, x.chunk(len(group)), strict=True))
        return {name: logits[name] for name in wanted}

    def detach(self, name: str, *, spent: bool = False) -> nn.Module:
        """An independent plain network that computes what pipeline `name` computes: a sequence of
        the backbone's own parts, without wrapper, hook or parametrization. Copies of them, unless
        the rest is `spent`: used no further.

        Raises ValueError for an unknown name and while kernels are expanded.
        """
        if name not in self.names:
            raise ValueError(f"no pipeline {name!r}; pipelines are {', '.join(self.names)}")
        if expanded := expanded_layers(self):
            raise ValueError(
                f"{expanded[0]} is expanded; collapse_kernels_(model) before detaching"
            )
        if name == "base" and not is_staged(self.backbone):
            return self.backbone if spent else copy.deepcopy(self.backbone)
        if name == "base" and isinstance(self.backbone, ChainNet):
            return self.backbone.whole if spent else copy.deepcopy(self.backbone.whole)
        if name == "base":
            parts = self._parts()
        elif name in self._after:
            parts = self._parts()
            last = [place for place, _ in parts].index(self._after[name])
            parts = [*parts[: last + 1], (BRANCH, self.modules_of[name])]
        else:
            parts = self._behind(self._before[name])
            kind = "step_down" if len(parts) < len(self._parts()) else "image_head"
            parts = [(kind, self.modules_of[name]), *parts]
        # A deep copy takes from its memo what it finds there: the pipeline's own norms.
        own = {
            id(norm): copy.deepcopy(norms[0])
            for place, part in parts
            for norm, norms in self._norms_of((name,), place, part).items()
        }
        alone = nn.Sequential(OrderedDict(parts))
        if own or not spent:
            alone = copy.deepcopy(alone, own)
        alone.training = self.training
        return alone

    def own_modules(self, name: str) -> list[nn.Module]:
        """What only pipeline `name` uses: its entry or branch, and its norms."""
        own = [norm for key, norm in self.norms.items() if key.partition("/")[0] == name]
        return own if name == "base" else [self.modules_of[name], *own]

    def _parts(self) -> list[tuple[str, nn.Module]]:
        """The stages and the head by name, in order: the modules themselves, no copies."""
        if not is_staged(self.backbone):
            return [(_HEAD, self.backbone)]
        stages, head = self.backbone.get_submodule("stages"), self.backbone.get_submodule("head")
        names = stage_names(self.backbone)
        return [*((name, stages.get_submodule(name)) for name in names), (_HEAD, head)]

    def _behind(self, before: str) -> list[tuple[str, nn.Module]]:
        parts = self._parts()
        return parts[[place for place, _ in parts].index(before) :]

    def _norms_of(
        self, group: _Group, place: str, part: nn.Module
    ) -> dict[nn.Module, list[nn.Module]]:
        """For each shared norm of a part, the one that each pipeline of a group has instead."""
        found = {}
        for inner, key in self._shared.get(place, {}).items():
            norm = part.get_submodule(inner)
            own = (f"{name}/{key}" for name in group)
            # A ModuleDict has no `get`.
            found[norm] = [self.norms[k] if k in self.norms else norm for k in own]  # noqa: SIM401
        return found

    def _own(self, name: str, x: Tensor) -> Tensor:
        """What the module of an entry or exit makes of an input that others read as well."""
        before = None if x.is_inference() else x._version
        made: Tensor = self.modules_of[name](x)
        if before is not None and x._version != before:
            raise ValueError(
                f"pipeline {name}: its module changes its input in place, which other pipelines "
                "read as well; build it with inplace=False"
            )
        return made


def _merged(running: dict[_Group, Tensor]) -> dict[_Group, Tensor]:
    """Groups whose maps have the same shape, made one."""
    alike: dict[torch.Size, list[_Group]] = {}
    for group, x in running.items():
        alike.setdefault(x.shape[1:], []).append(group)
    return {
        tuple(chain.from_iterable(groups)): torch.cat([running[group] for group in groups])
        if len(groups) > 1
        else running[groups[0]]
        for groups in alike.values()
    }


def _without_base(running: dict[_Group, Tensor], batch: int) -> dict[_Group, Tensor]:
    left = {}
    for group, x in running.items():
        if group[0] != "base":
            left[group] = x
        elif len(group) > 1:
            left[group[1:]] = x[batch:]
    return left


def _check_name(name: str) -> None:
    taken = name == "base" or hasattr(nn.ModuleDict(), name)
    if taken or not name or not all(c.isalnum() or c in "-_" for c in name):
        raise ValueError(
            f"pipeline name {name!r}: letters, digits, - and _, not 'base' and no word of torch's "
            "ModuleDict"
        )
