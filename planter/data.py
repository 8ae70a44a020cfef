"""Images and labels in memory: where they come from, how they are split and normalised."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional

from planter.backbones import import_object
from planter.paths import user_path

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn": "SVHN",
}
NAMES = ("digits", *TORCHVISION, "folder")
_NAMED = 10
_IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Split:
    """Images with their labels, held raw and normalised batch by batch.

    `images` `[n, channels, height, width]` are uint8 (0..255) or float32; `labels` `[n]` are
    int64; `mean` and `std` `[channels, 1, 1]` are those of the training images, in 0..1 for uint8.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def normalise(self, images: Tensor) -> Tensor:
        """Network inputs from raw images `[batch, channels, height, width]`."""
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return (scaled - self.mean) / self.std

    def to(self, device: str | torch.device) -> Split:
        return Split(*(t.to(device) for t in (self.images, self.labels, self.mean, self.std)))


@dataclass(frozen=True)
class Data:
    """A data set ready for a study: train and validation come from its training data, test (None
    where there is none) is apart. Validation selects; test is for the report at the end."""

    train: Split
    validation: Split
    test: Split | None
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the training and validation images and labels."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            for tensor in (split.images, split.labels):
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def to(self, device: str | torch.device) -> Data:
        test = self.test.to(device) if self.test is not None else None
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=test
        )


@dataclass(frozen=True)
class _Raw:
    """A data set as its source gives it, before split and subset."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None
    class_names: tuple[str, ...]


def load_data(
    name: str | Path = "digits",
    *,
    root: str | Path | None = None,
    download: bool = False,
    resize: int | None = None,
    subset: int | float | None = None,
    label_noise: float = 0.0,
    validation: int | float = 0.1,
    seed: int = 0,
) -> Data:
    """A data set, split as a study splits it; or the data of a run, given its folder.

    `name` is "digits" (scikit-learn, embedded), one of torchvision's (cifar10, cifar100, stl10,
    mnist, fashion_mnist, svhn; under `root`, fetched only with `download`), "folder" (class
    folders under `root`, or under `root/train` and `root/test`), "my_pkg.data:make" (a function
    without arguments that returns `{"train": (images, labels), "test": (images, labels) | None}`
    or the same with torch data sets) or a run folder, whose settings are then used.

    `subset` keeps a stratified part of the training data (a count, or a fraction below 1),
    `validation` sets a stratified part of what is kept aside for selection, `label_noise` replaces
    that fraction of the remaining training labels by another class. All three draw from `seed`.
    digits has no test part of its own: a fifth, stratified, fixed, is set aside.

    Raises ValueError for an unknown name, files that are not there, images of several sizes
    without `resize`, or a part that leaves a split empty.
    """
    resolved = user_path(name) / "resolved.yaml"
    if resolved.is_file():
        study = yaml.safe_load(resolved.read_text(encoding="utf-8"))
        return load_data(**study["data"], seed=study["seed"])
    raw = _read(str(name), root, download, resize)
    images, labels = raw.train
    generator = torch.Generator().manual_seed(seed)
    kept = torch.arange(len(labels))
    if subset is not None:
        kept, _ = _stratified(labels, kept, _count("subset", subset, len(labels)), generator)
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise is a share of the labels, 0 to 1, got {label_noise}")
    count = _count("validation", validation, len(kept))
    chosen, rest = _stratified(labels, kept, count, generator)
    if not len(chosen) or not len(rest):
        raise ValueError(
            f"validation {validation} of {len(kept)} images leaves "
            f"{len(rest)} for training and {len(chosen)} for validation"
        )
    train_labels = _noisy(labels[rest], label_noise, len(raw.class_names), generator)
    train_images = images[rest]
    mean, std = _statistics(train_images)
    return Data(
        train=Split(train_images, train_labels, mean, std),
        validation=Split(images[chosen], labels[chosen], mean, std),
        test=Split(*raw.test, mean, std) if raw.test is not None else None,
        class_names=raw.class_names,
    )


def _read(name: str, root: str | Path | None, download: bool, resize: int | None) -> _Raw:
    if name == "digits":
        raw = _digits()
    elif name in TORCHVISION:
        raw = _torchvision(name, _need_root(name, root), download)
    elif name == "folder":
        return _folder(_need_root(name, root), resize)
    elif ":" in name:
        raw = _own(name)
    else:
        raise ValueError(
            f"unknown data {name!r}; data are {', '.join(NAMES)}, or your own as 'my_pkg.data:make'"
        )
    if resize is None:
        return raw
    test = (_resized(raw.test[0], resize), raw.test[1]) if raw.test is not None else None
    return _Raw((_resized(raw.train[0], resize), raw.train[1]), test, raw.class_names)


def _need_root(name: str, root: str | Path | None) -> Path:
    if root is None:
        raise ValueError(f"data {name!r} needs a root: the folder that holds it")
    return user_path(root)


def _digits() -> _Raw:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    # The seed is fixed: which images are test must not change with a study's seed.
    test, train = _stratified(
        labels, torch.arange(len(labels)), len(labels) // 5, torch.Generator().manual_seed(0)
    )
    names = tuple(str(name) for name in digits.target_names)
    return _Raw((images[train], labels[train]), (images[test], labels[test]), names)


def _torchvision(name: str, root: Path, download: bool) -> _Raw:
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
    return _Raw(train, test, tuple(str(n) for n in names))


def _arrays(part: Any) -> tuple[Tensor, Tensor]:
    """uint8 images `[n, channels, height, width]` and labels of a torchvision data set."""
    images = torch.as_tensor(part.data)
    labels = torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), labels.long()


def _folder(root: Path, resize: int | None) -> _Raw:
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    train_root = root / "train" if (root / "train").is_dir() else root
    names = sorted(
        path.name
        for path in train_root.iterdir()
        if path.is_dir() and not path.name.startswith(".")  # such as .ipynb_checkpoints
    )
    if len(names) < 2:
        raise ValueError(f"{train_root} must hold a folder for each of two or more classes")
    unreadable: list[str] = []
    train = _class_folders(train_root, names, resize, unreadable)
    test = None
    if train_root != root and (root / "test").is_dir():
        test = _class_folders(root / "test", names, resize, unreadable)
    if unreadable:
        more = [f"and {len(unreadable) - _NAMED} more"] if len(unreadable) > _NAMED else []
        raise ValueError("\n  ".join(["replace or remove:", *unreadable[:_NAMED], *more]))
    if test is not None and test[0].shape[1:] != train[0].shape[1:]:
        raise ValueError(f"images under {root} have several sizes; set resize to bring them to one")
    return _Raw(train, test, tuple(names))


def _class_folders(
    root: Path, names: Sequence[str], resize: int | None, unreadable: list[str]
) -> tuple[Tensor, Tensor]:
    """Images and labels; files that cannot be read are added to `unreadable`, with the reason."""
    from PIL import Image

    there = {path.name for path in root.iterdir() if path.is_dir()}
    if extra := {name for name in there if not name.startswith(".")} - set(names):
        raise ValueError(f"{root} has classes that train has not: {', '.join(sorted(extra))}")
    images, labels = [], []
    for label, name in enumerate(names):
        folder = root / name
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        for file in files:
            if file.suffix.lower() not in _IMAGE_ENDINGS:
                continue
            try:
                with Image.open(file) as image:
                    rgb = np.array(image.convert("RGB"))
            except (SyntaxError, ValueError, OSError, Image.DecompressionBombError) as error:
                unreadable.append(f"{file} cannot be read as an image: {error}")
                continue
            pixels = torch.from_numpy(rgb).permute(2, 0, 1)
            # Each image is resized as it is read: a folder's originals may not fit into memory.
            images.append(_resized(pixels[None], resize)[0] if resize else pixels)
            labels.append(label)
            if images[0].shape != images[-1].shape:
                raise ValueError(
                    f"{file} has {tuple(images[-1].shape[1:])} pixels, the first image of {root} "
                    f"{tuple(images[0].shape[1:])}; set resize to bring all to one size"
                )
    if not images and not unreadable:
        raise ValueError(f"{root} holds no images ({', '.join(sorted(_IMAGE_ENDINGS))})")
    return torch.stack(images) if images else torch.empty(0), torch.tensor(labels)


def _own(name: str) -> _Raw:
    make: Callable[[], Any] = import_object(name)
    rule = (
        f"{name} must return a mapping with 'train' and, if there is one, 'test': "
        "(images [n, channels, height, width], labels [n]) or a torch data set of such pairs"
    )
    if not callable(make):
        raise ValueError(f"{rule}; got {make!r}, which is no function")
    try:
        made = make()
    except Exception as error:  # the user's code: whatever it raises is told
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(made, dict) or made.get("train") is None:
        raise ValueError(f"{rule}; got {type(made).__name__}")
    parts = {key: _pair(made[key], rule) for key in ("train", "test") if made.get(key) is not None}
    classes = int(max(int(labels.max()) for _, labels in parts.values())) + 1
    names = made.get("class_names") or [str(i) for i in range(classes)]
    shapes = {key: tuple(images.shape[1:]) for key, (images, _) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{rule}; got images of shapes {shapes}")
    if len(names) < 2:
        raise ValueError(f"{rule}, of two or more classes; every label is 0")
    if len(names) < classes:
        raise ValueError(f"{name}: {len(names)} class names for labels up to {classes - 1}")
    return _Raw(parts["train"], parts.get("test"), tuple(str(n) for n in names))


def _pair(part: Any, rule: str) -> tuple[Tensor, Tensor]:
    if isinstance(part, tuple | list) and len(part) == 2:
        images, labels = torch.as_tensor(part[0]), torch.as_tensor(part[1])
    elif hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        try:
            pairs = [part[i] for i in range(len(part))]
            images = torch.stack([torch.as_tensor(image) for image, _ in pairs])
            labels = torch.tensor([int(label) for _, label in pairs])
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{rule}; {error}") from error
    else:
        raise ValueError(f"{rule}; got {type(part).__name__}")
    if images.dim() != 4 or labels.dim() != 1 or len(images) != len(labels) or not len(labels):
        raise ValueError(f"{rule}; got images {list(images.shape)} and labels {list(labels.shape)}")
    if images.dtype != torch.uint8:
        images = images.float()
        if not images.isfinite().all():
            raise ValueError(f"{rule}; some pixels are no finite numbers")
    labels = labels.long()
    if int(labels.min()) < 0:
        raise ValueError(f"{rule}; got the label {int(labels.min())}, labels count from 0")
    return images, labels


def _resized(images: Tensor, size: int) -> Tensor:
    """Images brought to `size` x `size` pixels (bilinear, antialiased), in their own type."""
    resized = functional.interpolate(
        images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    if images.dtype == torch.uint8:
        return resized.round().clamp(0, 255).to(torch.uint8)
    return resized


def _count(what: str, part: int | float, total: int) -> int:
    """A count given as a number of images or as a fraction below 1."""
    count = round(part * total) if part < 1 else int(part)
    if not 0 < count <= total or (isinstance(part, float) and part >= 1):
        raise ValueError(f"{what} {part} asks for {count} of {total} images")
    return count


def _stratified(
    labels: Tensor, among: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`count` of the indices `among`, each class in proportion, and the rest; both in order."""
    shuffled = among[torch.randperm(len(among), generator=generator)]
    by_class = [shuffled[labels[shuffled] == c] for c in torch.unique(labels[among])]
    shares = [count * len(members) / len(among) for members in by_class]
    takes = [math.floor(share) for share in shares]
    # The largest remainders get what rounding down left over.
    order = sorted(range(len(shares)), key=lambda i: takes[i] - shares[i])
    for i in order[: count - sum(takes)]:
        takes[i] += 1
    chosen = torch.cat([m[:take] for m, take in zip(by_class, takes, strict=True)])
    rest = torch.cat([m[take:] for m, take in zip(by_class, takes, strict=True)])
    return chosen.sort().values, rest.sort().values


def _noisy(labels: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Labels of which `share` are replaced by another class, drawn uniformly."""
    noisy = labels.clone()
    hit = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    shift = torch.randint(1, classes, (len(hit),), generator=generator)
    noisy[hit] = (labels[hit] + shift) % classes
    return noisy


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[channels, 1, 1]`; a constant channel gets deviation 1."""
    scale = 255 if images.dtype == torch.uint8 else 1
    # Chunks keep the float64 copy of a large data set from filling the memory.
    chunks = torch.split(images, 4096)
    pixels = images.numel() / images.shape[1]
    total = sum(chunk.double().sum((0, 2, 3)) for chunk in chunks)
    mean = torch.as_tensor(total) / pixels / scale
    centred = (
        (chunk.double() / scale - mean[:, None, None]).square().sum((0, 2, 3)) for chunk in chunks
    )
    std = torch.as_tensor(sum(centred)).div(pixels).sqrt()
    std = torch.where(std > 1e-8, std, 1.0)
    return mean.float()[:, None, None], std.float()[:, None, None]
