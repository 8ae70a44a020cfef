"""What a backbone is: named stages and a head."""

from __future__ import annotations

from torch import Tensor, nn


class StagedNet(nn.Module):
    """`head(stages(images))` with named stages, so that pipelines can enter before any of them."""

    def __init__(self, stages: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.stages = stages
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, classes]` of images `[batch, channels, height, width]`."""
        logits: Tensor = self.head(self.stages(images))
        return logits
