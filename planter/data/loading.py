"""A data set from its source to the parts of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from planter.data.account import Account
from planter.data.draw import ImpossibleDrawError, count_of, noisy, stratified
from planter.data.folders.read import read_folder
from planter.data.own import read_own
from planter.data.raw import Pair, Raw
from planter.data.sources import TORCHVISION, read_digits, read_torchvision
from planter.data.split import Data, InMemorySplit, Split, constant_channels, resized, statistics
from planter.machine.paths import user_path

NAMES = ("digits", *TORCHVISION, "folder")
_NAMED = 10


def load_data(
    name: str | Path = "digits",
    *,
    root: str | Path | None = None,
    download: bool = False,
    resize: int | None = None,
    subset: int | float | None = None,
    label_noise: float = 0.0,
    validation: int | float = 0.1,
    test: int | float | None = None,
    seed: int = 0,
) -> Data:
    """A data set, split as a study splits it; or the data of a run, given its folder.

    `name` is "digits" (scikit-learn, embedded), one of torchvision's (cifar10, cifar100, stl10,
    mnist, fashion_mnist, svhn; under `root`, fetched only with `download`), "folder" (class
    folders under `root`, or under `root/train`, `root/validation` and `root/test`),
    "my_pkg.data:make" (a function without arguments that returns `{"train": (images, labels),
    "validation": ..., "test": ..., "class_names": [...]}`, all but the first optional, or the same
    with torch data sets) or a run folder, whose settings are then used. docs/data.md has the rules.

    `test` sets a stratified part aside, the same for every seed, where the source has no test part.
    `subset` keeps a stratified part of the training data (a count, or a fraction below 1),
    `validation` sets a stratified part of what is kept aside for selection, unless the source has a
    validation part, `label_noise` replaces that fraction of the remaining training labels by
    another class. All three draw from `seed`, and leave each class an image to train on. digits has
    no test part of its own: a fifth, stratified, fixed, is set aside.

    Raises ValueError for an unknown name, files that are not there, images of several sizes
    without `resize`, a class without a training image, or a part that leaves a split empty.
    """
    resolved = user_path(name) / "resolved.yaml"
    if resolved.is_file():
        study = yaml.safe_load(resolved.read_text(encoding="utf-8"))
        # An older run may lack what came later.
        later = load_data.__kwdefaults__ or {}
        given = {**later, **study["data"], "seed": study["seed"]}
        return _loaded(_Settings(**given, of_run=True))
    return _loaded(
        _Settings(str(name), root, download, resize, subset, label_noise, validation, test, seed)
    )


@dataclass(frozen=True)
class _Settings:
    """The arguments of `load_data`. `of_run`: the data of a run, whose fingerprint tells what
    belongs to it, so that class folders that came later and are empty are left out."""

    name: str
    root: str | Path | None
    download: bool
    resize: int | None
    subset: int | float | None
    label_noise: float
    validation: int | float
    test: int | float | None
    seed: int
    of_run: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise <= 1:
            raise ValueError(
                f"label_noise is a share of the labels, 0 to 1, got {self.label_noise}"
            )


def _loaded(settings: _Settings) -> Data:
    raw = _read(settings)
    subset, validation = settings.subset, settings.validation
    if settings.test is not None:
        raw = _with_test(raw, settings.test)
    images, labels = raw.train
    generator = torch.Generator().manual_seed(settings.seed)
    kept = torch.arange(len(labels))
    if subset is not None:
        count = count_of("subset", subset, len(labels))
        kept = _draw("subset", subset, raw, kept, count, generator, least=1)[0]
    if raw.validation is None:
        count = count_of("validation", validation, len(kept))
        chosen, rest = _draw("validation", validation, raw, kept, count, generator, leave=1)
        held = images[chosen], labels[chosen]
    else:
        held, rest = raw.validation, kept
    train_labels = noisy(labels[rest], settings.label_noise, len(raw.class_names), generator)
    train_images = images[rest]
    mean, std = statistics(train_images)
    constant = constant_channels(train_images)
    data = Data(
        train=InMemorySplit(train_images, train_labels, mean, std),
        validation=InMemorySplit(*held, mean, std),
        test=InMemorySplit(*raw.test, mean, std) if raw.test is not None else None,
        class_names=raw.class_names,
    )
    told = f"{validation} of the training images"
    return replace(data, account=_account(data, raw, constant, raw.validation_from or told))


def _read(settings: _Settings) -> Raw:
    name, resize = settings.name, settings.resize
    if name == "folder":
        return read_folder(_need_root(settings), resize, leave_out_empty=settings.of_run)
    if name == "digits":
        raw = read_digits()
    elif name in TORCHVISION:
        raw = read_torchvision(name, _need_root(settings), settings.download)
    elif ":" in name:
        raw = read_own(name)
    else:
        raise ValueError(
            f"unknown data {name!r}; data are {', '.join(NAMES)}, or your own as 'my_pkg.data:make'"
        )
    if resize is None:
        return raw

    def sized(pair: Pair) -> Pair:
        return resized(pair[0], resize), pair[1]

    return replace(
        raw,
        train=sized(raw.train),
        validation=sized(raw.validation) if raw.validation is not None else None,
        test=sized(raw.test) if raw.test is not None else None,
    )


def _need_root(settings: _Settings) -> Path:
    if settings.root is None:
        raise ValueError(f"data {settings.name!r} needs a root: the folder that holds it")
    return user_path(settings.root)


def _with_test(raw: Raw, part: int | float) -> Raw:
    """The data with a part of the training images set aside for the test."""
    if raw.test is not None:
        raise ValueError(
            f"test {part}: the data have a test part of {len(raw.test[1])} images; leave test out"
        )
    images, labels = raw.train
    # The seed is fixed: which images are test must not change with a study's seed.
    generator = torch.Generator().manual_seed(0)
    count = count_of("test", part, len(labels))
    every = torch.arange(len(labels))
    chosen, rest = _draw("test", part, raw, every, count, generator, leave=1)
    return replace(
        raw,
        train=(images[rest], labels[rest]),
        test=(images[chosen], labels[chosen]),
        test_from=f"{part} of the images, the same for every seed",
    )


def _draw(
    what: str,
    part: int | float,
    raw: Raw,
    among: Tensor,
    count: int,
    generator: torch.Generator,
    **kept: int,
) -> tuple[Tensor, Tensor]:
    """A stratified draw that leaves each class an image to train on, or names those it cannot."""
    try:
        return stratified(raw.train[1], among, count, generator, **kept)
    except ImpossibleDrawError as error:
        named = ", ".join(raw.class_names[label] for label in error.classes[:_NAMED])
        more = ", ..." if len(error.classes) > _NAMED else ""
        classes = len(raw.class_names)
        bound = f"at least {classes}" if what == "subset" else f"at most {len(among) - classes}"
        raise ValueError(
            f"{what} {part}, {count} of {len(among)} images, leaves no training image for "
            f"{named}{more}; every class keeps one: {bound} images"
        ) from None


def _account(
    data: Data, raw: Raw, constant: Sequence[tuple[int, float]], validation_from: str
) -> Account:
    def counts(split: Split | None) -> tuple[int, ...]:
        if split is None:
            return (0,) * data.classes
        return tuple(split.labels.bincount(minlength=data.classes).tolist())

    warnings = list(raw.reading.warnings)
    for channel, value in constant:
        warnings.append(
            f"channel {channel} is {value:g} in every pixel of all training images: nothing can be "
            "learned from it"
        )
    validation = counts(data.validation)
    if bare := [n for n, count in zip(data.class_names, validation, strict=True) if not count]:
        warnings.append(
            f"no validation image of {', '.join(bare[:_NAMED])}{', ...' * (len(bare) > _NAMED)}: "
            "how well such images are told is not measured"
        )
    return Account(
        classes=data.class_names,
        train=counts(data.train),
        validation=validation,
        test=counts(data.test),
        image=data.image,
        pixels=str(data.train.dtype).removeprefix("torch."),
        validation_from=validation_from,
        test_from="none" if data.test is None else raw.test_from or "its own",
        skipped=raw.reading.skips(),
        ignored=tuple(raw.reading.ignored),
        notes=tuple(raw.reading.notes),
        warnings=tuple(warnings),
    )
