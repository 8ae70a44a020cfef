"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016) for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from planter.backbones.branch_plan import (
    counted_blocks,
    first_convolutions,
    grouped_blocks,
    groups_left,
    reduced,
    released_plan,
)
from planter.backbones.staged import StagedNet, mean_head

_GROUPS = ("group1", "group2", "group3")


def widths(*, widen: int = 10, **_: object) -> dict[str, int]:
    """Channels of the stem and of the three groups of blocks."""
    if type(widen) is not int or widen < 1:
        raise ValueError(f"widen of a wrn is a whole number >= 1, got {widen!r}")
    return {"stem": 16, "group1": 16 * widen, "group2": 32 * widen, "group3": 64 * widen}


def blocks(*, depth: int = 28, blocks: Sequence[int] | None = None, **_: object) -> dict[str, int]:
    """The blocks of each group."""
    return counted_blocks(_GROUPS, _blocks(depth), blocks)


def inner(*, depth: int = 28, blocks: Sequence[int] | None = None, **_: object) -> list[str]:
    """The first convolution of each block."""
    return first_convolutions(counted_blocks(_GROUPS, _blocks(depth), blocks))


def wrn(
    widths: Mapping[str, int],
    *,
    classes: int = 10,
    image: Sequence[int] = (3, 32, 32),
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0.0,
    blocks: Sequence[int] | None = None,
) -> StagedNet:
    """WRN-`depth`-`widen`: a stem, three groups of (depth - 4) / 6 pre-activated blocks, each block
    a stage (`group1_1`, ...), and batch norm, ReLU, mean and one linear layer.

    36,536,884 parameters as WRN-28-10 with 100 classes. `widen` gives the widths that are not
    given by name; `dropout` stands between the two convolutions of a block; `blocks` are those of
    each group where they are not as many.
    """
    channels, height, width = image
    counts = counted_blocks(_GROUPS, _blocks(depth), blocks)
    if min(height, width) < 4:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for wrn: "
            "two strides of 2 need at least 4 x 4 pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Conv2d(channels, widths["stem"], 3, padding=1, bias=False)
    plan = {group: [widths[group]] * count for group, count in counts.items()}
    stages.update(grouped_blocks(widths["stem"], plan, partial(Block, dropout=dropout), widths))
    return StagedNet(nn.Sequential(stages), mean_head(widths["group3"], classes, norm=True))


def branch(
    stages: nn.Sequential,
    after: str,
    channels: int,
    widths: Mapping[str, int],
    *,
    kind: str,
    classes: int,
    depth: int,
    dropout: float,
    **_: object,
) -> nn.Sequential:
    """DKS's auxiliary classifier of the map behind stage `after`, as in its released code.

    20,145,060 parameters after group1 of WRN-28-10 with 100 classes, 107,464,420 after group2.
    """
    left = groups_left(stages, after, _GROUPS)
    plan = released_plan({group: widths[group] for group in left}, _blocks(depth))
    plan = reduced(plan, kind)
    head = mean_head(plan[left[-1]][-1], classes, norm=True)
    blocks = grouped_blocks(channels, plan, partial(Block, dropout=dropout))
    return nn.Sequential(OrderedDict(blocks, head=head))


def _blocks(depth: int) -> int:
    """How many blocks each group has."""
    if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6:
        raise ValueError(
            f"depth of a wrn is 6 n + 4 with n >= 1 (10, 16, 22, 28, ...), got {depth!r}"
        )
    return (depth - 4) // 6


class Block(nn.Module):
    """Two 3x3 convolutions, each behind batch norm and ReLU, `inner` channels between them, around
    them a shortcut: the identity, or a 1x1 convolution of the activated input where channels or
    size change."""

    def __init__(
        self, channels: int, inner: int, out_channels: int, stride: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            if channels != out_channels or stride != 1
            else None
        )
        self.relu = nn.ReLU()  # a module: planter.cost counts those for macs_all

    def start_as_identity_(self) -> None:
        """Makes the block hand on what it gets (a map of its own width) until it has learned."""
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.norm1(x))
        inner = self.dropout(self.relu(self.norm2(self.conv1(active))))
        around = x if self.shortcut is None else self.shortcut(active)
        total: Tensor = around + self.conv2(inner)
        return total
