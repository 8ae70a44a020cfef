"""Images of the shapes that the papers' tables have, of random pixels: ten classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def small() -> dict[str, Any]:
    return _made(32)


def large() -> dict[str, Any]:
    return _made(96)


def _made(side: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> tuple[Tensor, Tensor]:
        pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator)
        return pixels.to(torch.uint8), torch.arange(count) % 10

    return {"train": part(1000), "test": part(500)}
