"""Groups of coupled channels: all axes of all tensors that change when a width does.

No network is told apart by its layers. A width is made one larger, on torch's meta device, and
whatever changes its shape belongs to it; a shortcut that appears where two widths were equal says
that they grow together. Whether the axes found are all there are is tried out: a group is whole
exactly where its channels may stand in any order, so one permutation of all its axes must leave
the function as it is (docs/evolve.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.backbones import builds_without_data, free_widths, is_known, traced_groups
from planter.backbones.outside.chain import ChainNet
from planter.networks.assembly import build_network, code_called
from planter.networks.cut_points import backbone_without_data, image_of, staged
from planter.tracing.axes import Axis, Group
from planter.tracing.trace import trace, without_data

_SMALLEST = 3
"""Of the widths a group is tried out at: two channels may be alike by chance."""
_TOGETHER = 3
"""Widths, at most, that one shortcut or sum is looked for between."""


def groups(architecture: Architecture, pipeline: str = "base") -> list[Group]:
    """The groups of one pipeline's network, as it is saved, in the order of the architecture's
    widths; those that the network has no channels of are left out, and so are widths that cannot
    change alone nor with others. Raises ValueError for an architecture that cannot be built."""
    if (traced := traced_groups(architecture)) is not None:
        return _traced(architecture, pipeline, traced.groups)
    ways = {name: way for name, way in architecture.pipelines.items() if name == pipeline}
    plain = replace(architecture, widths=free_widths(architecture), pipelines=ways)
    small = _small(plain)
    if is_known(plain.builder) and not code_called(plain):
        found = _known_groups(small, pipeline)
    else:
        found = _groups(small, pipeline)
        if small != plain and not _holds(plain, pipeline, found):
            found = _groups(plain, pipeline)  # its layers depend on widths, as groups=gcd(width, 8)
    return [replace(group, size=plain.widths[group.widths[0]]) for group in found]


def _traced(architecture: Architecture, pipeline: str, whole: Sequence[Group]) -> list[Group]:
    """The groups of a pipeline of a network that was not written for planter: those of the network,
    or of another way through it the groups that are traced there, under the network's names."""
    if pipeline == "base":
        return list(whole)
    backbone = staged(backbone_without_data(replace(architecture, pipelines={})))
    layers = backbone.layers if isinstance(backbone, ChainNet) else {}
    names = {}
    for group in whole:
        for axis in group.axes:
            layer = max((one for one in layers if axis.tensor.startswith(f"{one}.")), default="")
            place = layers.get(layer, "") + axis.tensor.removeprefix(layer)
            names[place, axis.axis] = group.widths
    found = trace(build_network(architecture, pipeline), image_of(architecture)).groups
    known = []
    for group in found:
        widths = {names[a.tensor, a.axis] for a in group.axes if (a.tensor, a.axis) in names}
        if len(widths) == 1:  # else it is of the entry alone, or of several
            known.append(replace(group, widths=widths.pop()))
    return known


def with_widths(architecture: Architecture, widths: Mapping[str, int]) -> Architecture:
    """The architecture with these of its free widths, and no other, changed."""
    return replace(architecture, widths={**free_widths(architecture), **widths})


def _small(architecture: Architecture) -> Architecture:
    """The same network, narrow: widths that are equal, and those that are not, stay so, also where
    one of them is made one larger."""
    narrow = {
        width: _SMALLEST + 2 * i for i, width in enumerate(sorted({*architecture.widths.values()}))
    }
    small = replace(
        architecture, widths={name: narrow[width] for name, width in architecture.widths.items()}
    )
    try:
        _shapes(small, next(iter(small.pipelines), "base"))
    except (ValueError, RuntimeError):
        return architecture  # its builder takes multiples of something, for instance
    return small


def _holds(architecture: Architecture, pipeline: str, found: Iterable[Group]) -> bool:
    """Whether groups that were found of the narrow network are those of this one."""
    sized = [replace(group, size=architecture.widths[group.widths[0]]) for group in found]
    shapes = _shapes(architecture, pipeline)
    if any(
        shapes[axis.tensor][axis.axis] != axis.repeat * group.size
        for group in sized
        for axis in group.axes
    ):
        return False
    free = [group for group in sized if group.free]
    return _Permutations(architecture, pipeline).keep_the_function(free)


def _groups(architecture: Architecture, pipeline: str) -> tuple[Group, ...]:
    before = _shapes(architecture, pipeline)
    sets: list[tuple[str, ...]] = []
    bound: list[str] = []
    for name in architecture.widths:
        after = _grown(architecture, pipeline, [name])
        if after is not None and after.keys() == before.keys():
            sets.append((name,))
        elif after is not None:
            bound.append(name)
    while bound:
        first = bound[0]
        joint = _joint(architecture, pipeline, before, first)
        if joint is not None:
            sets = [one for one in sets if not set(one) & set(joint)] + [joint]
        bound = [name for name in bound if name != first and name not in (joint or ())]
    found: list[Group] = []
    for names in sorted(sets, key=lambda one: list(architecture.widths).index(one[0])):
        group = _group(architecture, pipeline, before, names)
        if group is not None and group.axes:
            found.append(group)
    return _tried(architecture, pipeline, before, found)


_known_groups = lru_cache(maxsize=256)(_groups)


def _joint(
    architecture: Architecture, pipeline: str, before: Mapping[str, torch.Size], name: str
) -> tuple[str, ...] | None:
    """The fewest widths, `name` among them, that grow together without a layer coming or going."""
    size = architecture.widths[name]
    others = [n for n, width in architecture.widths.items() if width == size and n != name]
    for more in range(1, _TOGETHER):
        for chosen in combinations(others, more):
            after = _grown(architecture, pipeline, [name, *chosen])
            if after is not None and after.keys() == before.keys():
                return tuple(n for n in architecture.widths if n in (name, *chosen))
    return None


def _group(
    architecture: Architecture,
    pipeline: str,
    before: Mapping[str, torch.Size],
    names: tuple[str, ...],
) -> Group | None:
    """None where channels of several widths stand one after another on an axis: which are whose
    shapes do not tell."""
    after = _grown(architecture, pipeline, names)
    assert after is not None
    size = architecture.widths[names[0]]
    axes = []
    for tensor, old in before.items():
        for axis, (was, now) in enumerate(zip(old, after[tensor], strict=True)):
            if was == now:
                continue
            if (now - was) * size != was:
                return None
            axes.append(Axis(tensor, axis, now - was))
    return Group(names, size, tuple(axes))


def _tried(
    architecture: Architecture,
    pipeline: str,
    before: Mapping[str, torch.Size],
    found: list[Group],
) -> tuple[Group, ...]:
    """The groups, those of one size joined where only together they may be permuted, and the
    others marked."""
    trial = _Permutations(architecture, pipeline)
    done: list[Group] = []
    while found:
        group, *found = found
        if trial.keep_the_function([group]):
            done.append(group)
            continue
        partner = next(
            (
                other
                for other in found
                if other.size == group.size and trial.keep_the_function([group, other])
            ),
            None,
        )
        if partner is None:
            done.append(replace(group, free=False))
            continue
        found.remove(partner)
        names = {*group.widths, *partner.widths}
        joined = tuple(name for name in architecture.widths if name in names)
        made = _group(architecture, pipeline, before, joined)
        done += [made] if made is not None else []
    return tuple(done)


class _Permutations:
    """Whether a network computes the same when channels change places."""

    def __init__(self, architecture: Architecture, pipeline: str) -> None:
        draw = torch.Generator().manual_seed(0)
        self._network = build_network(architecture, pipeline).double().eval()
        with torch.no_grad():
            for name, tensor in self._network.state_dict().items():
                if tensor.is_floating_point():
                    scale = 1.0 if tensor.dim() < 2 else max(tensor[0].numel(), 1) ** -0.5
                    drawn = scale * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
                    tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
        self._state = {n: tensor.clone() for n, tensor in self._network.state_dict().items()}
        image = image_of(architecture)
        self._images = torch.randn(2, *image, generator=draw, dtype=torch.float64)
        self._answers = self._answer()

    def keep_the_function(self, groups: Iterable[Group]) -> bool:
        state = dict(self._state)
        for group in groups:
            # Each channel takes the next one's place: no channel keeps its own.
            moved = torch.arange(group.size).roll(1)
            for axis in group.axes:
                state[axis.tensor] = state[axis.tensor].index_select(axis.axis, axis.indices(moved))
        self._network.load_state_dict(state)
        found = self._answer()
        return bool((found - self._answers).abs().max() <= 1e-9 * (1 + self._answers.abs().max()))

    def _answer(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self._network(self._images)
        return logits


def _grown(
    architecture: Architecture, pipeline: str, names: Iterable[str]
) -> dict[str, torch.Size] | None:
    """Shapes with one channel more in each of these widths; None where that cannot be built."""
    wider = {**architecture.widths, **{name: architecture.widths[name] + 1 for name in names}}
    try:
        return _shapes(replace(architecture, widths=wider), pipeline)
    except (ValueError, RuntimeError):
        return None


def _shapes(architecture: Architecture, pipeline: str) -> dict[str, torch.Size]:
    """The shape of each tensor of a network's state."""
    network = network_without_data(architecture, pipeline)
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def network_without_data(architecture: Architecture, pipeline: str) -> nn.Module:
    """A pipeline's network as it is saved, on torch's meta device: shapes without numbers."""
    if not builds_without_data(architecture):
        # A user's builder may compute with tensors, e.g. rates that rise from layer to layer.
        return without_data(build_network(architecture, pipeline))
    with torch.device("meta"):
        return build_network(architecture, pipeline)
