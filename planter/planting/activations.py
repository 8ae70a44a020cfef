"""What a frozen network computes between its steps, for batches or kept for all images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from planter.data import Split

MEMORY_BYTES = 2 * 2**30
_PASS_BATCH = 512


def steps_of(network: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The modules a network applies one after another, by name: its sequences, taken apart."""
    if type(network) is not nn.Sequential:
        return [(prefix, network)]
    found = []
    for name, part in network._modules.items():
        assert part is not None
        found += steps_of(part, f"{prefix}.{name}" if prefix else name)
    return found


def overwrites(step: nn.Module) -> bool:
    """Whether a step may leave its result in the place of its input."""
    return any(getattr(module, "inplace", False) for module in step.modules())


def activations(network: nn.Module, images: Tensor, wanted: Iterable[int]) -> dict[int, Tensor]:
    """The inputs of the steps `wanted` (one past the last is the output) for a batch of images."""
    wanted, found = set(wanted), {}
    steps, last = steps_of(network), max(wanted)
    x = images
    with torch.no_grad():
        for at in range(last + 1):
            if at in wanted:
                # Also a later step may write into it: in between may be nothing but a view.
                found[at] = x.clone() if any(overwrites(s) for _, s in steps[at:last]) else x
            if at < last:
                x = steps[at][1](x)
    return found


class Activations:
    """Inputs of the steps `wanted` of a frozen network, of which those that fit into `memory` bytes
    are computed once, for all images of a split; the others batch by batch.

    The deepest are kept first: they are the smallest, and take most to compute; last the images
    as the network takes them, step 0. `missing` are the steps that are not kept.
    """

    def __init__(
        self,
        network: nn.Module,
        split: Split,
        wanted: Iterable[int],
        memory: int = MEMORY_BYTES,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self._network = network
        self._layout = layout
        self.bytes = 0
        one = activations(network, split.normalise(split.batch(slice(1))), wanted)
        self._kept: dict[int, Tensor] = {}
        for at in sorted(one, reverse=True):
            size = len(split) * one[at].numel() * one[at].element_size()
            if self.bytes + size > memory:
                break
            self.bytes += size
            self._kept[at] = torch.empty(
                (len(split), *one[at].shape[1:]),
                dtype=one[at].dtype,
                device=one[at].device,
                memory_format=layout if one[at].dim() == 4 else torch.contiguous_format,
            )
        self.missing = set(one) - set(self._kept)
        if self._kept:
            self._fill(split)

    def computed(self, images: Tensor) -> dict[int, Tensor]:
        """The steps that are not kept, of a batch."""
        return activations(self._network, images, self.missing) if self.missing else {}

    def of(
        self, index: Tensor, wanted: Iterable[int], computed: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """The steps `wanted` of the images `index`, of which those not kept are `computed`."""
        return {
            at: computed[at] if at in computed else _gathered(self._kept[at], index)
            for at in wanted
        }

    def _fill(self, split: Split) -> None:
        for start in range(0, len(split), _PASS_BATCH):
            part = slice(start, start + _PASS_BATCH)
            images = split.normalise(split.batch(part))
            images = images.contiguous(memory_format=self._layout)
            for at, x in activations(self._network, images, self._kept).items():
                self._kept[at][part] = x


def _gathered(kept: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, gathered as they lie in memory: twice as fast as by `kept[index]`."""
    if kept.is_contiguous():
        return kept.index_select(0, index)
    return kept.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
