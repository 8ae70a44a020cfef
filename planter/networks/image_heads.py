"""Image heads of multi-pipeline training (Hu, arXiv 2112.13727): an image in, an image out."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from planter.backbones import import_object

# (channels, kernel) of each convolution but the last, whose channels are the image's; its kernel.
HEADS: dict[str, tuple[tuple[tuple[int, int], ...], int]] = {
    "fsrcnn": (((64, 5), (12, 1), *[(12, 3)] * 4, (64, 1)), 9),  # Table 1
    "vdsr": (((128, 3),) * 6, 3),  # Table 4
}


def image_head(kind: str, channels: int = 3, *, residual: bool = True) -> nn.Module:
    """A convolutional network from images `[batch, channels, height, width]` to images of the same
    shape: "fsrcnn" (27,263 parameters with three channels), "vdsr" (744,963) or the user's own as
    "my_pkg.heads:build", a function `build(channels) -> nn.Module`, whose result is used as it is.

    With `residual` the image is added to what the convolutions give and the last of them starts at
    zero, so that the head starts as the identity: the classifier behind it then begins with the
    images it also sees without the head. The paper has the sum in Table 4 alone and names no
    initial weights. Raises ValueError for an unknown kind.
    """
    if ":" in kind:
        function = import_object(kind)
        try:
            with torch.device("cpu"):  # it may compute with tensors
                own = function(channels)
        except Exception as error:  # the user's code: whatever it raises is told
            raise ValueError(f"{kind} failed: {type(error).__name__}: {error}") from error
        if not isinstance(own, nn.Module):
            raise ValueError(f"{kind} must return an nn.Module, got {type(own).__name__}")
        return own
    if kind not in HEADS:
        raise ValueError(
            f"unknown image head {kind!r}; kinds are {', '.join(HEADS)}, or your own as "
            "'my_pkg.heads:build'"
        )
    hidden, last_kernel = HEADS[kind]
    return ImageHead(channels, hidden, last_kernel, residual=residual)


class ImageHead(nn.Module):
    """Convolutions with bias, padded to keep the size, ReLU between them; with `residual` their
    output is added to the image."""

    def __init__(
        self,
        channels: int,
        hidden: tuple[tuple[int, int], ...],
        last_kernel: int,
        *,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.residual = residual
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = channels
        for i, (outputs, kernel) in enumerate(hidden, start=1):
            layers[f"conv{i}"] = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
            # FSRCNN's PReLU would add parameters; the paper names no activation.
            layers[f"relu{i}"] = nn.ReLU()
            inputs = outputs
        last = nn.Conv2d(inputs, channels, last_kernel, padding=last_kernel // 2)
        if residual:
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        layers[f"conv{len(hidden) + 1}"] = last
        self.layers = nn.Sequential(layers)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.layers(images)
        return images + made if self.residual else made
