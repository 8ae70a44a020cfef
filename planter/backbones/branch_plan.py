"""Groups of blocks: how many of what width a backbone or one of its auxiliary branches has.

DKS (arXiv 1906.00675) copies the groups behind the tap, so that every classifier has as many
down-samplings before it. A plan names the groups and gives the width of each of their blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

Plan = dict[str, list[int]]


def groups_left(stages: nn.Sequential, after: str, groups: Iterable[str]) -> list[str]:
    """Those of `groups` that begin behind stage `after`; "group2" begins at the stage of its name
    or at "group2_1".

    Raises ValueError for an unknown stage and where no group is left.
    """
    names = list(stages._modules)
    if after not in names:
        raise ValueError(f"{after!r} is not a stage; stages are {', '.join(names)}")
    begins = {
        group: min(i for i, name in enumerate(names) if name in (group, f"{group}_1"))
        for group in groups
    }
    left = [group for group, begin in begins.items() if begin > names.index(after)]
    if not left:
        last = names[max(begins.values())]
        raise ValueError(
            f"no group of blocks begins after {after!r} that a branch could copy, the last one "
            f"begins at {last}; tap before it, or take kind 'rest', a copy of what follows"
        )
    return left


def released_plan(widths: Mapping[str, int], blocks: int) -> Plan:
    """The rule of DKS's released WRN for the groups left, in order, with their widths: `blocks` in
    the first, half of them in each later one; one group alone has `blocks` of twice its width.

    The branches of its ResNets and DenseNets were in a supplement that is lost; they follow the
    same rule here.
    """
    if len(widths) == 1:
        return {group: [2 * width] * blocks for group, width in widths.items()}
    counts = [blocks] + [max(1, blocks // 2)] * (len(widths) - 1)
    return {
        group: [width] * count for (group, width), count in zip(widths.items(), counts, strict=True)
    }


def short_plan(widths: Mapping[str, int]) -> Plan:
    """One block in each group left, two in the last, no doubling: a third party's branches of
    ResNet-18 and -50 (Self-KD-Lib), as DKS's own for ImageNet are lost."""
    *first, last = widths
    return {**{group: [widths[group]] for group in first}, last: [widths[last]] * 2}


def reduced(plan: Plan, kind: str) -> Plan:
    """The plan of "blocks" as it is; "narrow": half of each width; "shallow": one block a group.

    The two are controls of DKS's Table 3; what exactly they were is lost with the supplement.
    """
    if kind == "narrow":
        return {group: [max(1, w // 2) for w in widths] for group, widths in plan.items()}
    if kind == "shallow":
        return {group: widths[:1] for group, widths in plan.items()}
    return plan


def first_convolutions(blocks: Mapping[str, int]) -> list[str]:
    """The names of the inner widths of groups of so many blocks: `group1_1.conv1`, ..."""
    return [f"{group}_{i + 1}.conv1" for group, count in blocks.items() for i in range(count)]


def counted_blocks(groups: Sequence[str], each: int, given: Sequence[int] | None) -> dict[str, int]:
    """The blocks of each group: `each`, or those given in the groups' order. Raises ValueError for
    what is no such list."""
    counts = [each] * len(groups) if given is None else list(given)
    whole = all(type(count) is int and count > 0 for count in counts)
    if len(counts) != len(groups) or not whole:
        raise ValueError(
            f"blocks are {len(groups)} whole numbers >= 1, those of {', '.join(groups)}; "
            f"got {given!r}"
        )
    return dict(zip(groups, counts, strict=True))


def grouped_blocks(
    channels: int,
    plan: Plan,
    block: Callable[[int, int, int, int], nn.Module],
    inner: Mapping[str, int] | None = None,
) -> OrderedDict[str, nn.Module]:
    """The residual blocks of a plan by name (`group1_1`, ...), each `block(inputs, inner width,
    width, stride)`; `inner` holds inner widths that differ from the block's, by name
    (`group1_1.conv1`). Every group but the backbone's first begins with stride 2."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for group, widths in plan.items():
        for i, width in enumerate(widths):
            stage, stride = f"{group}_{i + 1}", 2 if i == 0 and group != "group1" else 1
            within = (inner or {}).get(f"{stage}.conv1", width)
            blocks[stage] = block(channels, within, width, stride)
            channels = width
    return blocks
