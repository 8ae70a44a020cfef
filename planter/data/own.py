"""Data that a user's function makes: one gate, one sentence for each mistake."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from planter.data.account import Reading
from planter.data.arrays import Pixels, ambiguous, image_array, joined, one_type, pixels_of
from planter.data.cache.decoding import Decoding
from planter.data.encoded import Listed
from planter.data.folders.layout import PARTS
from planter.data.labels import as_array, class_names_of, numbered, refuse_masked
from planter.data.raw import Pair, Raw
from planter.data.shards.loaders import Files, batches_of, files_of

_Result = TypeVar("_Result")
_NAMES = "class_names"
_RULE = (
    "a mapping with 'train' and, if there are such, 'validation', 'test' and 'class_names': a part "
    "is (images [n, channels, height, width], labels [n]) or a torch data set of such pairs"
)
_READ_TWICE = 32
"""Items of a data set that are read again: one that flips a coin is missed once in 4 thousand
million times."""


def read_own(name: str, how: Decoding) -> Raw:
    """The data of a function such as my_pkg.data:make, pictures in it fitted as `how` says; files
    of an `ImageFolder` are not read. Raises ValueError, with the function's name and the rule, for
    anything that is none."""
    from planter.backbones import import_object  # not at the top: folders need no networks

    make: Callable[[], Any] = import_object(name)
    rule = f"{name} must return {_RULE}"
    if not callable(make):
        raise ValueError(f"{rule}; got {make!r}, which is no function")
    try:
        made = make()
    except Exception as error:  # the user's code: whatever it raises is told
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(made, Mapping):
        raise ValueError(f"{rule}; got {type(made).__name__}")
    if "train" not in (given := _parts(made, name)):
        raise ValueError(f"{rule}; got {type(made).__name__} without 'train'")
    listed = files_of({part: value for part, (_, value) in given.items()})
    return _read(made, given, name, how, listed)


def read_given(made: Mapping[Any, Any], name: str, how: Decoding) -> Raw:
    """The data of a mapping such as a function of the user's returns, all of it in memory; `name`
    begins the sentence of what is wrong. Raises ValueError as `read_own` does."""
    if "train" not in (given := _parts(made, name)):
        raise ValueError(f"{name}: expected {_RULE}; got {', '.join(map(repr, made)) or 'nothing'}")
    return _read(made, given, name, how, None)


def _read(
    made: Mapping[Any, Any],
    given: Mapping[str, tuple[str, Any]],
    name: str,
    how: Decoding,
    listed: Files | None,
) -> Raw:
    """Parts under their keys; `listed` are those whose files are not read here."""
    names = _told(name, "", lambda: class_names_of(made.get(_NAMES)))
    images: dict[str, Tensor | Listed] = {}
    labels: dict[str, NDArray[Any]] = {}
    warning = None
    if listed is not None:
        images |= listed.images
        labels, names = listed.labels, names or listed.names
    else:
        types: dict[str, Pixels] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for part, (key, value) in given.items():
            one = _told(name, f"{key}: ", partial(_pair, value, how))
            images[part], types[key], labels[part] = one
            shapes[part] = tuple(one[0].shape[1:])
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{name}: images of all parts have one shape; got {shapes}")
        _told(name, "", lambda: one_type(types))
        warning = ambiguous((len(images["train"]), *shapes["train"]))
    numbers, names = _told(name, "", lambda: numbered(labels, names))
    pairs: dict[str, Pair] = {part: (images[part], numbers[part]) for part in images}
    return Raw(
        pairs["train"],
        pairs.get("test"),
        names,
        validation=pairs.get("validation"),
        reading=Reading(warnings=[warning] if warning else []),
        validation_from=f"'{given['validation'][0]}'" if "validation" in given else None,
        test_from=f"'{given['test'][0]}'" if "test" in given else None,
    )


def _told(name: str, where: str, call: Callable[[], _Result]) -> _Result:
    try:
        return call()
    except ValueError as error:
        raise ValueError(f"{name}: {where}{error}") from error
    except Exception as error:  # what a user's objects raise when they are looked at
        raise ValueError(f"{name}: {where}{type(error).__name__}: {error}") from error


def _parts(made: Mapping[Any, Any], name: str) -> dict[str, tuple[str, Any]]:
    """The parts that are there, with the key each was given under."""
    found: dict[str, tuple[str, Any]] = {}
    for key, value in made.items():
        if key == _NAMES:
            continue
        part = PARTS.get(key) if isinstance(key, str) else None
        if part is None:
            raise ValueError(
                f"{name}: keys are train, validation, test and class_names; got {key!r}, which "
                "nothing would read"
            )
        if value is None:
            continue
        if part in found:
            raise ValueError(f"{name}: {found[part][0]!r} and {key!r} are one part; give one")
        found[part] = (key, value)
    return found


def _pair(part: Any, how: Decoding) -> tuple[Tensor, Pixels, NDArray[Any]]:
    """Images `[n, channels, height, width]`, uint8 or float32, the type they came in, and labels
    `[n]` of one part."""
    rule = "a part is (images, labels) or a data set of such pairs, with a length and items"
    if isinstance(part, tuple | list) and len(part) == 2 and not all(map(_is_item, part)):
        (images, pixels), labels = pixels_of(part[0], how), as_array(part[1])
    elif isinstance(part, Mapping | str | bytes):
        raise ValueError(f"{rule}; got a {type(part).__name__}")
    elif hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        images, pixels, labels = _items(part, how)
    elif (batches := batches_of(part)) is not None:
        images, pixels, labels = batches
    else:
        hint = ""
        if hasattr(part, "dataset"):
            hint = "; return the loader's dataset"
        elif hasattr(part, "__iter__"):
            hint = "; it can be gone through once only: return a list of its pairs"
        raise ValueError(f"{rule}; got a {type(part).__name__}{hint}")
    if len(images) != len(labels):
        raise ValueError(
            f"every image has one label; got images {list(images.shape)} and labels "
            f"{list(labels.shape)}"
        )
    if not len(labels):
        raise ValueError(
            f"a part holds an image or is left out; got images {list(images.shape)} and labels "
            f"{list(labels.shape)}"
        )
    return images, pixels, labels


def _is_item(value: Any) -> bool:
    """Whether it is one image with its label, as an item of a data set is."""
    return isinstance(value, tuple | list) and len(value) == 2 and np.ndim(_bare(value[1])) == 0


def _bare(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _items(data: Any, how: Decoding) -> tuple[Tensor, Pixels, NDArray[Any]]:
    """The images, the type of their pixels and the labels of a data set of pairs."""
    try:
        count = len(data)
    except Exception as error:  # the user's code
        raise ValueError(f"its length raised {type(error).__name__}: {error}") from error
    if not count:
        raise ValueError(
            f"a part holds an image or is left out; got an empty {type(data).__name__}"
        )
    labels: list[Any] = []
    digests: list[bytes] = []

    def each() -> Iterator[NDArray[Any]]:
        for i in range(count):
            image, label = _item(data, i, how)
            labels.append(label)
            digests.append(_digest(image))
            yield image[None]

    images, pixels = joined(each(), count)
    for i in np.linspace(0, count - 1, min(count, _READ_TWICE)).astype(int).tolist():
        again, label = _item(data, i, how)
        if _digest(again) != digests[i] or np.any(label != labels[i]):
            raise ValueError(
                f"an item is the same each time it is read; two reads of item {i} differ: take the "
                "random transform out, the recipe's augment does such things while it trains"
            )
    return images, pixels, as_array(labels)


def _digest(image: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def _item(data: Any, index: int, how: Decoding) -> tuple[NDArray[Any], Any]:
    try:
        item = data[index]
    except Exception as error:  # the user's code
        raise ValueError(f"item {index} raised {type(error).__name__}: {error}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, tuple | list | Mapping) else ""
        raise ValueError(
            f"an item is a pair (image, label); got a {type(item).__name__}{size} as item {index}"
        )
    refuse_masked(item[1])
    label = _bare(item[1])
    if isinstance(label, np.ndarray):
        label = label.item() if label.size == 1 else label
    # A copy: a data set may fill the same array again for its next item.
    return np.array(image_array(item[0], how)), label
