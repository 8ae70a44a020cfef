"""Parquet files with a column of encoded images and one of labels, as the Hub's image sets have."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from planter.data.encoded import Encoded

_IMAGES, _LABELS = ("image", "img"), ("label", "labels")


@dataclass(frozen=True, slots=True)
class Row:
    """An image in a row of a group of rows of a parquet file."""

    file: Path
    column: str
    group: int
    row: int
    name: str

    def __str__(self) -> str:
        told = f" ({self.name})" if self.name else ""
        return f"{self.file}, row {self.row} of group {self.group}{told}"

    @property
    def ending(self) -> str:
        return PurePosixPath(self.name).suffix

    def read(self) -> bytes:
        found = self.file.stat()
        group = _group(self.file, found.st_mtime_ns, found.st_size, self.column, self.group)
        content = group[self.row].as_py()
        content = content["bytes"] if isinstance(content, dict) else content
        if content is None:
            raise OSError("no bytes of an image are in it")
        return bytes(content)


# A group is read whole: neighbours are asked for together when a set is decoded.
@functools.lru_cache(maxsize=4)
def _group(file: Path, mtime_ns: int, size: int, column: str, group: int) -> Any:
    return _pyarrow().ParquetFile(file).read_row_group(group, columns=[column]).column(0)


def rows_of(shards: list[Path]) -> tuple[list[Encoded], list[Any], tuple[str, ...] | None]:
    """The images of parquet files in their order, their labels and, where the files say them, the
    names of the classes.

    The images are in the column image or img, or the only one of bytes, alone or beside their
    "path"; the labels in label or labels, or in the only one that the files call a class. Raises
    ValueError for other files.
    """
    images: list[Encoded] = []
    labels: list[Any] = []
    names: tuple[str, ...] | None = None
    for shard in shards:
        try:
            opened = _pyarrow().ParquetFile(shard)
            schema = opened.schema_arrow
            classes = _classes(schema)
            column = _column(shard, schema, "images", _IMAGES, _of_bytes(schema))
            label = _column(shard, schema, "labels", _LABELS, list(classes))
            names = names or classes.get(label)
            paths = _is_struct(schema.field(column).type)
            for group in range(opened.num_row_groups):
                wanted = [label, *([f"{column}.path"] if paths else [])]
                table = opened.read_row_group(group, columns=wanted)
                given = table.column(label).to_pylist()
                told = [one["path"] for one in table.column(column).to_pylist()] if paths else []
                for row in range(len(given)):
                    name = told[row] if paths else None
                    images.append(Row(shard, column, group, row, name or ""))
                labels += given
        except OSError as error:
            raise ValueError(f"{shard} cannot be read as a parquet file: {error}") from error
        except ValueError as error:  # pyarrow's, too
            raise ValueError(f"{shard}: {error}") from error
    return images, labels, names


def _column(shard: Path, schema: Any, what: str, usual: tuple[str, ...], other: list[str]) -> str:
    there = [name for name in usual if name in schema.names]
    found = there or other
    if not there and len(other) != 1:
        raise ValueError(
            f"{what} are in a column called {' or '.join(usual)}; it has {', '.join(schema.names)}"
        )
    return found[0]


def _is_struct(kind: Any) -> bool:
    import pyarrow

    if not pyarrow.types.is_struct(kind):
        return False
    return "path" in [kind.field(i).name for i in range(kind.num_fields)]


def _of_bytes(schema: Any) -> list[str]:
    """The columns that may hold encoded images."""
    import pyarrow

    def holds(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    return [one.name for one in schema if holds(one.type)]


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """The columns that Hugging Face's `datasets` wrote as classes, with the classes' names."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {
        name: tuple(map(str, feature["names"]))
        for name, feature in told.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet files are read by pyarrow: pip install 'planter[parquet]'") from (
            error
        )
    return pyarrow.parquet
