"""Data sets that come by name: scikit-learn's digits and torchvision's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planter.data.draw import stratified
from planter.data.raw import Raw

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn": "SVHN",
}


def read_digits() -> Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    # The seed is fixed: which images are test must not change with a study's seed.
    test, train = stratified(
        labels, torch.arange(len(labels)), len(labels) // 5, torch.Generator().manual_seed(0)
    )
    names = tuple(str(name) for name in digits.target_names)
    return Raw((images[train], labels[train]), (images[test], labels[test]), names)


def read_torchvision(name: str, root: Path, download: bool) -> Raw:
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[name])
    by_split = name in ("stl10", "svhn")
    try:
        parts = [
            kind(str(root), download=download, **{"split": part} if by_split else {"train": first})
            for part, first in (("train", True), ("test", False))
        ]
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{name} is not in {root} ({error}); give the folder that holds it as root, "
            "or set download to true"
        ) from error
    train, test = (_arrays(part) for part in parts)
    names = getattr(parts[0], "classes", None) or [str(i) for i in range(int(train[1].max()) + 1)]
    return Raw(train, test, tuple(str(n) for n in names))


def _arrays(part: Any) -> tuple[Tensor, Tensor]:
    """uint8 images `[n, channels, height, width]` and labels of a torchvision data set."""
    images = torch.as_tensor(part.data)
    labels = torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), labels.long()
