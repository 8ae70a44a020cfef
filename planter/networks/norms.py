"""Batch norms of stages that several pipelines share: whose statistics, whose scale and shift."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NormMode = Literal["shared", "switch_stats", "switch_all"]
"""`shared`: one norm for all pipelines, whose running statistics follow each in turn (CNSN as it is
printed). `switch_stats`: running statistics are each pipeline's own. `switch_all`: scale and shift
as well (Yu et al., Slimmable Neural Networks, ICLR 2019, sec. 3.3)."""


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """The batch norms in a module by their place in it."""
    return {place: m for place, m in module.named_modules() if isinstance(m, _BatchNorm)}


def check_norm_mode(mode: str) -> None:
    """Raises ValueError unless `mode` is a NormMode."""
    if mode not in get_args(NormMode):
        raise ValueError(f"norms are {', '.join(get_args(NormMode))}, got {mode!r}")


def own_norm(norm: nn.Module, mode: NormMode) -> nn.Module:
    """The norm that another pipeline uses in the place of a shared one."""
    if mode == "shared":
        return norm
    # What a deep copy finds in its memo it does not copy: the parameters stay the shared ones.
    tied = {id(p): p for p in norm.parameters()} if mode == "switch_stats" else {}
    return copy.deepcopy(norm, tied)


@contextmanager
def switched(norms: Mapping[nn.Module, Sequence[nn.Module]]) -> Iterator[None]:
    """Within the block each norm takes its batch in as many equal parts as norms are given for it,
    and leaves each part to that norm."""
    found = {norm: norm.__dict__.get("forward") for norm in norms}  # somebody else's, if any
    for norm, own in norms.items():
        steps = [_forward(one, found.get(one)) for one in own]
        norm.__dict__["forward"] = partial(_by_parts, steps)
    try:
        yield
    finally:
        for norm, before in found.items():
            if before is None:
                del norm.__dict__["forward"]
            else:
                norm.__dict__["forward"] = before


def _forward(norm: nn.Module, before: Callable[[Tensor], Tensor] | None) -> Callable[..., Tensor]:
    # The class's: that of the norm itself will be `_by_parts`.
    return before or norm.__dict__.get("forward") or partial(type(norm).forward, norm)


def _by_parts(steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    parts = [step(part) for step, part in zip(steps, x.chunk(len(steps)), strict=True)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
