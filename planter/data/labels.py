"""Labels of a user's own data: one gate from what arrives to class numbers and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RULE = "labels are whole numbers from 0 on without a gap, or names of classes, one an image"
_SHOWN = 6


def refuse_masked(given: Any) -> None:
    """Raises ValueError for a masked array that hides an entry, whose value numpy would give."""
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ValueError(
            "images and labels have no missing values; got a masked array that hides some: fill "
            "them, or leave their images out"
        )


def as_array(labels: Any) -> NDArray[Any]:
    """Labels `[n]` as numbers or strings. Raises ValueError for anything else."""
    if isinstance(labels, Tensor):
        labels = _plain(labels)
    elif isinstance(labels, list | tuple):
        for one in labels:
            refuse_masked(one)
        labels = [_plain(one) if isinstance(one, Tensor) else one for one in labels]
    refuse_masked(labels)
    try:
        array = np.asarray(labels)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{RULE}; got a {type(labels).__name__} that is no array") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
        one_hot = np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all()
        hint = "; labels.argmax(1) makes numbers of them" if one_hot else ""
        raise ValueError(f"{RULE}; got an array {list(array.shape)} of labels{hint}")
    if array.ndim != 1:
        raise ValueError(f"{RULE}; got an array {list(array.shape)} of labels")
    if array.dtype.kind == "O":
        return _objects(array)
    if array.dtype.kind == "U" and isinstance(labels, list | tuple):
        # numpy makes texts of numbers that stand among texts.
        return _objects(np.array(list(labels), dtype=object))
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind not in "biufU":
        raise ValueError(f"{RULE}; got labels of the type {array.dtype}")
    return array


def _plain(labels: Tensor) -> NDArray[Any]:
    here = labels.detach().cpu()
    return (here.double() if here.is_floating_point() else here).numpy()


def _objects(array: NDArray[Any]) -> NDArray[Any]:
    arrays = np.generic | np.ndarray
    values = [one.item() if isinstance(one, arrays) and one.size == 1 else one for one in array]
    values = [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in values]
    kinds = {str if isinstance(one, str) else type(one) for one in values}
    if kinds == {str}:
        return np.array(values, dtype=str)
    if kinds <= {int, bool, float} and (made := np.array(values)).dtype.kind in "biuf":
        return made
    told = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ValueError(f"{RULE}; got labels of the types {told}")


def class_names_of(given: Any) -> tuple[str, ...] | None:
    """The names a user gives, in the order of the labels; None where none are. Raises ValueError
    for anything but a sequence of different names."""
    rule = "class_names is a list of different names, one a class in the order of the labels"
    if given is None:
        return None
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        kind = "one text" if isinstance(given, str | bytes) else f"a {type(given).__name__}"
        raise ValueError(f"{rule}; got {kind}, {_short(given)}")
    names = tuple(
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in given
    )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{rule}; got {', '.join(map(repr, twice))} more than once: name each class otherwise"
        )
    if "" in names:
        raise ValueError(f"{rule}; the name of class {names.index('')} is empty")
    return names or None


def numbered(
    parts: Mapping[str, NDArray[Any]], names: tuple[str, ...] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The labels of each part as int64 `[n]`, and the names of the classes.

    `parts` has a "train". Names are those given, the strings that the training labels are, sorted,
    or the numbers. Raises ValueError for labels that are no classes, and for a class without a
    training image.
    """
    texts = {part for part, labels in parts.items() if labels.dtype.kind == "U"}
    if texts and len(texts) < len(parts):
        raise ValueError(
            f"{RULE}; got names in {', '.join(sorted(texts))} and numbers in "
            f"{', '.join(sorted(set(parts) - texts))}"
        )
    if texts:
        names = names or tuple(str(name) for name in np.unique(parts["train"]))
        numbers = {part: _looked_up(part, labels, names) for part, labels in parts.items()}
    else:
        numbers = {part: _whole(part, labels) for part, labels in parts.items()}
        names = names or _numbers_as_names(numbers)
    trained = set(np.unique(numbers["train"]).tolist())
    for part, labels in numbers.items():
        if beyond := [label for label in np.unique(labels).tolist() if label >= len(names)]:
            raise ValueError(
                f"{len(names)} class names for labels up to {max(beyond)} in {part}; name every "
                "class, or number the labels from 0"
            )
    if len(names) < 2:
        only = parts["train"][0]
        raise ValueError(f"a study needs two or more classes; every label is {only}")
    if bare := [f"{name} (label {i})" for i, name in enumerate(names) if i not in trained]:
        more = ", ..." if len(bare) > _SHOWN else ""
        raise ValueError(
            f"every class needs an image to train on, and these have none: "
            f"{', '.join(bare[:_SHOWN])}{more}; add images or take the name out"
        )
    return {part: torch.from_numpy(labels) for part, labels in numbers.items()}, names


def _looked_up(part: str, labels: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.int64]:
    number = {name: i for i, name in enumerate(names)}
    if unknown := [str(name) for name in np.unique(labels) if name not in number]:
        raise ValueError(
            f"{part} has labels that are no class: {', '.join(unknown[:_SHOWN])}; classes are "
            f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        )
    return np.array([number[name] for name in labels.tolist()], dtype=np.int64)


def _whole(part: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.dtype.kind == "f":
        wrong = labels[~np.isfinite(labels) | (labels != np.floor(labels))]
        if len(wrong):
            raise ValueError(f"{RULE}; got {wrong[0]} in {part}; round them or give names")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"{RULE}; got the label {labels.min():.0f} in {part}; number them from 0")
    if len(labels) and labels.max() > 2**62:
        raise ValueError(f"{RULE}; got {labels.max()} in {part}; number them from 0")
    return labels.astype(np.int64)


def _numbers_as_names(numbers: Mapping[str, NDArray[np.int64]]) -> tuple[str, ...]:
    """Names for numbers that count from 0 without a gap."""
    found = np.unique(numbers["train"])
    everywhere = np.unique(np.concatenate(list(numbers.values())))
    if extra := sorted(set(everywhere.tolist()) - set(found.tolist())):
        part = next(p for p, labels in numbers.items() if np.isin(labels, extra).any())
        raise ValueError(
            f"every class needs an image to train on; {part} has the label {extra[0]}, which no "
            "training image has"
        )
    if len(found) == int(found[-1]) + 1:
        return tuple(map(str, found.tolist()))
    if len(found) == 1:
        raise ValueError(f"a study needs two or more classes; every label is {found[0]}")
    shown = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
    if int(found[-1]) - int(found[0]) + 1 == len(found):
        how = f"subtract {found[0]}, or give names"
    else:
        how = "numpy.unique(labels, return_inverse=True)[1] numbers them; or give names"
    raise ValueError(f"{RULE}; got the labels {shown}: {how}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
