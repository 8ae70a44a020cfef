"""Plain modules of the kinds that are traced, written without planter in mind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = conv(width, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, width)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.block = Block(6, 5)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(F.relu(self.stem(x))).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.depth = conv(6, 6, groups=6)
        self.norm = nn.BatchNorm2d(6)
        self.wider = conv(6, 12, groups=6)  # two filters a channel
        self.point = conv(12, 7, 1)
        self.fc = nn.Linear(7, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.depth(self.stem(x))), inplace=True)
        return self.fc(F.adaptive_avg_pool2d(self.point(self.wider(x)), 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.squeeze = nn.Linear(8, 3)
        self.excite = nn.Linear(3, 8)
        self.gate = conv(8, 1, 1)  # one channel for all: it stays one
        self.out = conv(8, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = x * scale[:, :, None, None]
        x = x * torch.sigmoid(self.gate(x))
        return self.out(x).amax((2, 3))


class Dense(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.grow = nn.ModuleList([conv(4, 3), conv(7, 3)])
        self.fc = nn.Linear(10, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for layer in self.grow:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.fc(x.mean((2, 3)))


class TwoHeads(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.left = conv(6, 5, 1)
        self.right = conv(6, 4)
        self.fc = nn.Linear(18, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        left, right = self.left(x), self.right(x)
        # The left one twice: its largest and its mean.
        both = torch.cat([left.amax((2, 3)), right.mean((2, 3)), left.mean((2, 3))], 1)
        return self.fc(torch.cat([both, right.amax((2, 3))], 1))


class Flattened(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.one = conv(3, 5)
        self.two = conv(5, 4)
        self.fc1 = nn.Linear(4 * 4 * 4, 9)
        self.fc2 = nn.Linear(9, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.avg_pool2d(F.relu(self.two(x)), 2)
        return self.fc2(torch.tanh(self.fc1(x.view(x.shape[0], -1))))


class Gated(nn.Module):
    """One layer makes a map and its gate, side by side."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.both = conv(3, 10)
        self.slope = nn.PReLU(5)
        self.scale = nn.Parameter(torch.ones(5, 1, 1))
        self.after = conv(5, 6)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(F.glu(self.both(x), 1)) * self.scale
        return self.fc(self.after(x).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.reduce = conv(6, 12, 1)
        self.mixed = conv(12, 12, groups=3)
        self.expand = conv(12, 6, 1)
        self.norm = nn.GroupNorm(2, 6)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.expand(F.relu(self.mixed(F.relu(self.reduce(x)))))
        return self.fc(self.norm(x).mean((2, 3)))


class UpAndDown(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 4, 2, 1)
        self.up = nn.ConvTranspose2d(6, 5, 4, 2, 1)
        self.fc = nn.Linear(5, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        small = F.leaky_relu(self.down(x))
        x = F.interpolate(self.up(small), scale_factor=0.5, mode="bilinear")
        return self.fc(F.pad(x, (1, 1)).mean((2, 3)))


class Normalised(nn.Module):
    """Layer norm over channels, linear layers on the last axis, as ConvNeXt."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.expand = nn.Linear(8, 12)
        self.reduce = nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.scale * self.reduce(F.gelu(self.expand(y)))
        return self.fc((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Shuffled(nn.Module):
    """Channels of two halves take turns, and the second half alone goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.inner = conv(4, 8)
        self.back = conv(8, 4)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            left, right = x.chunk(2, 1)
            x = torch.cat([left, self.back(F.relu(self.inner(right)))], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(x.mean((2, 3)))


class Split(nn.Module):
    """Two halves of one layer's maps go ways of their own, and meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.both = conv(3, 10)
        self.left = conv(5, 4)
        self.right = conv(5, 3)
        self.fc = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).chunk(2, 1)
        return self.fc(torch.cat([self.left(left), self.right(right)], 1).mean((2, 3)))


class Counted(nn.Module):
    """Knows its number of channels by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).view(-1, 6, 256).mean(2))


class Sorted(nn.Module):
    """Sorts its channels, which then are none of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.after = conv(6, 7)
        self.fc = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(self.stem(x).sort(1).values).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.one = conv(6, 6)
        self.other = conv(6, 6)
        self.other.weight = self.one.weight
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x_ = self.stem(x)
        return self.fc((self.one(x) + self.other(x_) + x).mean((2, 3)))


def places_of(network: nn.Module, image: Sequence[int]) -> list[tuple[nn.Module, int]]:
    """The layers with weights, each with the number of places it is used at for one image."""
    found: list[tuple[nn.Module, int]] = []

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.ConvTranspose2d):
            found.append((module, inputs[0][0, 0].numel()))
        elif isinstance(module, nn.Conv2d):
            found.append((module, output[0, 0].numel()))
        elif isinstance(module, nn.Linear):
            found.append((module, output.numel() // module.out_features))

    hooks = [module.register_forward_hook(add) for module in network.modules()]
    with torch.no_grad():
        network(torch.ones(1, *image))
    for hook in hooks:
        hook.remove()
    return found


class Padded(nn.Module):
    """Zeros around maps, and channels of zeros behind the others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 5)
        self.after = nn.Conv2d(5, 6, 3)
        self.pool = nn.MaxPool2d(3, 1)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(F.pad(self.stem(x), (0, 2, 1, 1)))
        return self.fc(self.pool(F.pad(x, (1, 1, 1, 1), value=-torch.inf)).mean((2, 3)))


class Swapped(nn.Module):
    """A weight as the first factor of its product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 5)
        self.mix = nn.Parameter(torch.randn(7, 5))
        self.fc = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mixed = self.mix @ x.flatten(2)[0]
        return self.fc(torch.relu(mixed).mean(1)[None]).expand(len(x), -1)


class Noisy(nn.Module):
    """Does more in train mode, with a number that it knows by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.inner = conv(6, 5)
        self.back = conv(5, 6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            x = x + torch.zeros(6, 1, 1, device=x.device)
        return self.fc((x + self.back(self.inner(x))).mean((2, 3)))


class Mixer(nn.Module):
    """Channels are rows of the product that mixes places."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.places = nn.Linear(16, 16)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.places(self.stem(x).flatten(2)).mean(2))


class Summed(Sorted):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(self.stem(x).cumsum(1)).mean((2, 3)))


class Largest(Sorted):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(self.after(x + x.argmax(1, keepdim=True)).mean((2, 3)))


class Radix(Sorted):
    """The mean of the largest of three parts: what a channel does depends on its place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        part = x.view(n, 3, c // 3, h, w).amax(1).mean(1, keepdim=True)
        return self.fc(self.after(x * part).mean((2, 3)))


class Versioned(Residual):
    """Does not load a state of no version."""

    _version = 2

    def _load_from_state_dict(self, state: object, prefix: str, meta: dict, *rest: object) -> None:
        if meta.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {meta.get('version')}")
        super()._load_from_state_dict(state, prefix, meta, *rest)
