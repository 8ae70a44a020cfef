"""How a planted child is computed from what its frozen parent computes.

Before the planted layer a child computes what its parent computes. Behind it, where only
channelwise operations lie between the layer and its reader, the child's pre-activation at the
reader is the parent's plus what the planted channels contribute:

    child(reader) = parent(reader) + W_new * f(planted channels)

A child of another kind (a residual stream, several readers) computes all that follows its first
widened part.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from planter.edits.freeze import check_norms, freeze_inherited_, thaw_
from planter.planting.activations import overwrites, steps_of

_CHANNELWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Identity, nn.Flatten),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


class Contribution(nn.Module):
    """The planted channels of a child, trained beside the frozen parent: logits from the parent's
    input of the planted layer and its pre-activation at the reader."""

    def __init__(self, child: nn.Module, parent: nn.Module, first: int, reader: int) -> None:
        super().__init__()
        old, new = steps_of(parent), steps_of(child)
        self.wanted = (first, reader + 1)
        parts = [
            (new[at][0], _new_part(new[at][1], old[at][1], reader=at == reader))
            for at in range(first, reader + 1)
        ]
        parts = _pooled_first(parts)
        self._names = [name for name, _ in parts]
        self.planted = nn.Sequential(*(part for _, part in parts))
        # The parent's own, frozen: all candidates share it.
        self.rest = nn.Sequential(*(module for _, module in _pooled_first(old[reader + 1 :])))

    def train(self, mode: bool = True) -> Contribution:
        super().train(mode)
        self.rest.eval()  # the parent's: its statistics stay
        return self

    def forward(self, found: Mapping[int, Tensor]) -> Tensor:
        inputs, joint = (found[at] for at in self.wanted)
        logits: Tensor = self.rest(self.planted(inputs).add_(joint))
        return logits

    def write(self, child: nn.Module) -> None:
        """Puts what was trained into the child."""
        for name, part in zip(self._names, self.planted, strict=True):
            state = child.get_submodule(name).state_dict()
            for leaf, tensor in part.state_dict().items():
                if tensor.dim():
                    whole = state[leaf]
                    # New ones stand last, along the one axis in which the child is wider.
                    new = tuple(
                        slice(w - n, None) for w, n in zip(whole.shape, tensor.shape, strict=True)
                    )
                    whole[new] = tensor


class Suffix(nn.Module):
    """All of a child from its first widened part on, frozen but for what is new."""

    def __init__(self, child: nn.Module, parent: nn.Module, first: int) -> None:
        super().__init__()
        self.wanted = (first,)
        self._child = [freeze_inherited_(child, parent)]  # in a list: its prefix is not ours
        self.part = nn.Sequential(*(module for _, module in steps_of(child)[first:]))

    def forward(self, found: Mapping[int, Tensor]) -> Tensor:
        inputs = found[self.wanted[0]]
        # Other candidates read the same tensor.
        logits: Tensor = self.part(inputs.clone() if overwrites(self.part) else inputs)
        return logits

    def write(self, child: nn.Module) -> None:
        """Makes the child a plain network again."""
        thaw_(child)


def candidate_of(child: nn.Module, parent: nn.Module) -> Contribution | Suffix:
    """How a child is computed from its parent's activations. Raises ValueError where nothing is new
    or a batch norm keeps no statistics."""
    check_norms(child)
    old, new = steps_of(parent), steps_of(child)
    changed = [
        at
        for at, ((_, a), (_, b)) in enumerate(zip(old, new, strict=True))
        if [t.shape for t in a.state_dict().values()] != [t.shape for t in b.state_dict().values()]
    ]
    if not changed:
        raise ValueError("nothing was planted: the child is as wide as its parent")
    drawn = [at for at, (_, module) in enumerate(new) if draws(module)]
    first, reader = changed[0], changed[-1]
    if drawn:
        # What dropout leaves differs from step to step, also in the frozen part.
        return Suffix(child, parent, min(first, drawn[0]))
    between = [module for _, module in new[first + 1 : reader]]
    if (
        first < reader
        and _is_plain(new[first][1])
        and _is_plain(new[reader][1])
        and all(isinstance(m, (*_CHANNELWISE, _BatchNorm)) or _is_depthwise(m) for m in between)
    ):
        return Contribution(child, parent, first, reader)
    return Suffix(child, parent, first)


def _pooled_first(steps: Sequence[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The steps with a ReLU behind the max-pooling that follows it: the same values and gradients
    with fewer places to go through."""
    steps = list(steps)
    for at in range(len(steps) - 1):
        if isinstance(steps[at][1], nn.ReLU) and isinstance(steps[at + 1][1], nn.MaxPool2d):
            steps[at : at + 2] = steps[at + 1], steps[at]
    return steps


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
    )


def draws(module: nn.Module) -> bool:
    """Whether a step of a module depends on random numbers (dropout)."""
    return any(
        (isinstance(m, _DROPOUTS) and m.p > 0)
        or isinstance(m, nn.RReLU)
        or type(m).__name__ == "StochasticDepth"  # torchvision's, which is not imported for it
        for m in module.modules()
    )


def _new_part(module: nn.Module, old: nn.Module, *, reader: bool) -> nn.Module:
    """A widened module with its new channels alone; of a reader its new inputs, without bias."""
    part = copy.deepcopy(module)
    for name, tensor in module.state_dict().items():
        before = old.state_dict()[name]
        if reader and name == "bias":
            part.register_parameter("bias", None)
        elif tensor.shape != before.shape:
            new = tuple(
                slice(b if a != b else 0, None)
                for a, b in zip(tensor.shape, before.shape, strict=True)
            )
            _set(part, name, tensor[new].clone())
    if isinstance(part, nn.Conv2d):
        part.out_channels, part.in_channels = part.weight.shape[0], part.weight.shape[1]
        if _is_depthwise(module):
            part.groups = part.in_channels = part.out_channels
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, _BatchNorm) and part.running_mean is not None:
        part.num_features = len(part.running_mean)
        if part.num_batches_tracked is not None:
            part.num_batches_tracked.zero_()  # those of its own channels
    return part


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor)
    else:
        module._buffers[name] = tensor
