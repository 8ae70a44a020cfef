"""Plain modules written without planter in mind: classes, functions and networks by place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A small residual network that asks for its classes by a name of its own."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.conv2(x))
        return self.fc(x.mean((2, 3)))


class Staged(nn.Module):
    """Has `stages` and a `head`, and does more than these: a norm between them."""

    def __init__(self, n_classes: int, image: list[int]) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(image[0], 4, 3, padding=1), nn.ReLU())
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(x).mean((2, 3))))


def small(classes: int, *, units: int = 5) -> nn.Module:
    """A function that sees its images as four numbers, whatever their size."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, units), nn.ReLU(),
        nn.Linear(units, classes),
    )  # fmt: skip


def flat(classes: int, image: list[int]) -> nn.Module:
    channels, height, width = image
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))


def anything(**options: int) -> nn.Module:
    return Residual(**options)


def of_ten() -> nn.Module:
    """Cannot be told the number of classes."""
    return Residual(in_chans=1)


class Pair(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return logits, logits


class Named(Residual):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x)}


class Squeezed(Residual):
    """Loses the batch where it is of one image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Classes(Residual):
    """Gives the class instead of logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1, keepdim=True).expand(-1, self.fc.out_features)


def no_network(classes: int) -> list[int]:
    return [classes]


given = Residual(num_classes=10, in_chans=1, width=3)
