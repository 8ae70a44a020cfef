"""Plain networks that run their parts in a row, and some that do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Plain(nn.Module):
    """Functions between its parts, and one pooling that is used twice."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 7, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(7, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.conv1(x))))
        x = self.pool(torch.relu(self.conv2(x)))
        x = F.relu(self.conv3(x))
        return self.fc(x.mean((2, 3)))


def sequence(classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.BatchNorm2d(5),
        nn.Conv2d(5, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip


class Nested(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 1)
        )
        self.block = Residual()
        self.classifier = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.features(x))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Skips(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.fc(self.conv3(self.conv2(x + self.norm(x))).mean((2, 3)))


class Twice(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.conv(x)).mean((2, 3)))


class Branches(Plain):
    """Its forward depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


class Headless(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.out = nn.Conv2d(6, num_classes, 14)

    def forward(self, x: Tensor) -> Tensor:
        return torch.squeeze(torch.squeeze(self.out(self.conv(x)), 3), 2)
