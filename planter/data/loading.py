"""A data set from its source to the parts of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planter.data.account import Account, Reading
from planter.data.cache.decoding import Decoding
from planter.data.cache.sets import decoded_set
from planter.data.draw import ImpossibleDrawError, count_of, noisy, stratified
from planter.data.encoded import Listed
from planter.data.fit import FITTED, Fit, check_fit, fitted, is_shaped, size_of
from planter.data.folders.npy import ARRAYS, HELD, read_arrays
from planter.data.folders.read import read_folder
from planter.data.own import read_own
from planter.data.raw import Pair, Raw
from planter.data.shards.read import SHARDS, read_shards
from planter.data.sources import TORCHVISION, read_digits, read_torchvision
from planter.data.split import Data, InMemorySplit, RowSplit, Split
from planter.data.statistics import constant_channels, constant_of, statistics, statistics_of
from planter.machine.paths import user_path

NAMES = ("digits", *TORCHVISION, "folder", *SHARDS, ARRAYS)
CACHE_GB = 20.0
OLD_FIT: Fit = "squash"
"""How images were fitted before there was a choice."""
_NAMED = 10


def load_data(
    name: str | Path = "digits",
    *,
    root: str | Path | None = None,
    download: bool = False,
    resize: int | Sequence[int] | None = None,
    fit: Fit = "crop",
    subset: int | float | None = None,
    label_noise: float = 0.0,
    validation: int | float = 0.1,
    test: int | float | None = None,
    workers: int | None = None,
    cache_gb: float = CACHE_GB,
    seed: int = 0,
) -> Data:
    """A data set, split as a study splits it; or the data of a run, given its folder.

    `name` is "digits" (scikit-learn, embedded), one of torchvision's (cifar10, cifar100, stl10,
    mnist, fashion_mnist, svhn; under `root`, fetched only with `download`), "folder" (class
    folders under `root`, or under `root/train`, `root/validation` and `root/test`), "webdataset" or
    "parquet" (shards under `root`), "arrays" (numpy's files under `root`: train-images.npy,
    train-labels.npy and so on),
    "my_pkg.data:make" (a function without arguments that returns `{"train": (images, labels),
    "validation": ..., "test": ..., "class_names": [...]}`, all but the first optional, or the same
    with torch data sets) or a run folder, whose settings are then used. docs/data.md has the rules.

    `resize` brings images to N x N pixels, or to [height, width]; those of other proportions as
    `fit` says: the middle cut out ("crop"), black beside them ("pad") or both sides scaled
    ("squash"). Images in files are decoded by `workers` threads, by default one for each core,
    once: their pixels are kept in the user's cache, of `cache_gb` (1e9 bytes) at most; larger sets
    are decoded as they are asked for.

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
        import yaml  # not at the top: only runs need it

        study = yaml.safe_load(resolved.read_text(encoding="utf-8"))
        # An older run may lack what came later.
        later = {**(load_data.__kwdefaults__ or {}), "fit": OLD_FIT}
        given = {**later, **study["data"], "seed": study["seed"]}
        if given["name"] == ARRAYS and (held := resolved.with_name(HELD)).is_dir():
            given["root"] = held  # wherever the run is now
        return _loaded(_Settings(**given, of_run=True))
    return _loaded(
        _Settings(
            name=str(name),
            root=root,
            download=download,
            resize=resize,
            fit=fit,
            subset=subset,
            label_noise=label_noise,
            validation=validation,
            test=test,
            workers=workers,
            cache_gb=cache_gb,
            seed=seed,
        )
    )


@dataclass(frozen=True)
class _Settings:
    """The arguments of `load_data`. `of_run`: the data of a run, whose fingerprint tells what
    belongs to it, so that class folders that came later and are empty are left out."""

    name: str
    root: str | Path | None
    download: bool
    resize: int | Sequence[int] | None
    fit: Fit
    subset: int | float | None
    label_noise: float
    validation: int | float
    test: int | float | None
    workers: int | None
    cache_gb: float
    seed: int
    of_run: bool = False

    @property
    def decoding(self) -> Decoding:
        return Decoding(size_of(self.resize), self.fit)

    def __post_init__(self) -> None:
        size_of(self.resize)
        check_fit(self.fit)
        if not self.cache_gb >= 0:
            raise ValueError(f"cache_gb is a size in 1e9 bytes, 0 or more; got {self.cache_gb}")
        if self.workers is not None and not self.workers >= 1:
            raise ValueError(f"workers is a number of threads, 1 or more; got {self.workers}")
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
    parts = {"train": (images[rest], train_labels), "validation": held}
    if raw.test is not None:
        parts["test"] = raw.test
    splits, constant = _splits(parts, raw, settings)
    data = Data(splits["train"], splits["validation"], splits.get("test"), raw.class_names)
    told = f"{validation} of the training images"
    return replace(data, account=_account(data, raw, constant, raw.validation_from or told))


def _read(settings: _Settings) -> Raw:
    name = settings.name
    if name == "folder":
        return read_folder(_need_root(settings), leave_out_empty=settings.of_run)
    if name == "digits":
        return read_digits()
    if name in TORCHVISION:
        return read_torchvision(name, _need_root(settings), settings.download)
    if name in SHARDS:
        return read_shards(name, _need_root(settings))
    if name == ARRAYS:
        return read_arrays(_need_root(settings), settings.decoding)
    if ":" in name:
        return read_own(name, settings.decoding)
    raise ValueError(
        f"unknown data {name!r}; data are {', '.join(NAMES)}, or your own as 'my_pkg.data:make'"
    )


def _splits(
    parts: Mapping[str, Pair], raw: Raw, settings: _Settings
) -> tuple[dict[str, Split], list[tuple[int, float]]]:
    """The parts, normalised by the mean and deviation of the training images, of which the
    channels of one value are told. Images that are in no part are not read."""
    how = settings.decoding
    listed = {
        part: images.rows for part, (images, _) in parts.items() if isinstance(images, Listed)
    }
    found: dict[str, Split] = {}
    if not listed:
        tensors = _sized({part: images for part, (images, _) in parts.items()}, how, raw.reading)
        mean, std = statistics(tensors["train"])
        for part, (_, labels) in parts.items():
            found[part] = InMemorySplit(tensors[part], labels, mean, std)
        return found, constant_channels(tensors["train"])
    every = parts["train"][0]
    assert isinstance(every, Listed)
    used = torch.unique(torch.cat(list(listed.values())))
    made = decoded_set(
        [every.images[row] for row in used.tolist()],
        how,
        cache_gb=settings.cache_gb,
        workers=settings.workers,
    )
    made.about.note(how, raw.reading)
    rows = {part: torch.searchsorted(used, wanted) for part, wanted in listed.items()}
    moments = made.about.moments[rows["train"].numpy()]
    pixels = made.pixels
    size = pixels.shape[-2:]
    mean, std = statistics_of(moments, math.prod(size))
    for part, (_, labels) in parts.items():
        if isinstance(pixels, Tensor):
            found[part] = InMemorySplit(pixels[rows[part]], labels, mean, std)
        else:
            found[part] = RowSplit(pixels, rows[part], labels, mean, std)
    return found, constant_of(moments)


def _sized(images: Mapping[str, Any], how: Decoding, reading: Reading) -> dict[str, Tensor]:
    """Tensors of images, brought to a size, if there is one."""
    if how.size is None:
        return dict(images)
    shape = images["train"].shape[-2:]
    if not is_shaped(shape, how.size):
        height, width = how.size
        reading.notes.append(
            f"images of {shape[0]} x {shape[1]} pixels are not of the proportions of {height} x "
            f"{width} and were {FITTED[how.fit]} (fit: {how.fit})"
        )
    return {part: fitted(one, how.size, how.fit) for part, one in images.items()}


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
