"""Links in class folders: none may read an image twice, or under two classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

INTO_ANOTHER = "a link into another class or part"


@dataclass
class Links:
    """Where the classes of a part really lie, and which folders were read for any of them."""

    classes: dict[Path, str]
    around: frozenset[Path]
    """All folders that hold a class folder, or the link to one."""
    others: frozenset[Path]
    """Where the other parts lie."""
    read: set[Path] = field(default_factory=set)

    def of_file(self, file: Path, name: str) -> str | None:
        """Why the file that a link in the class `name` leads to is not read; None where it is."""
        return INTO_ANOTHER if self._away(real_path(file), name) else None

    def of_folder(self, folder: Path, name: str) -> str | None:
        """Why a folder met in the class `name` is not read; None where it is."""
        real = real_path(folder)
        if reason := self._away(real, name):
            return reason
        if real in self.around:
            return "a link to a folder that holds the class"
        return "a link to a folder that was read already" if real in self.read else None

    def _away(self, real: Path, name: str) -> str | None:
        for place in (real, *real.parents):
            if (inside := self.classes.get(place)) is not None:
                return None if inside == name else f"a link into the class {inside}"
            if place in self.others:
                return "a link into another part"
        return None


def links_of(classes: Mapping[str, Path], others: Iterable[Path] = ()) -> Links:
    """The links of a part's class folders, of which nothing is read yet; `others` are folders of
    other parts."""
    real = {name: real_path(folder) for name, folder in classes.items()}
    beside = {real_path(folder.parent) for folder in classes.values()}
    inner = [*real.values(), *beside]
    around = frozenset(parent for path in inner for parent in path.parents) | beside
    places = {path: name for name, path in real.items()}
    return Links(places, around, frozenset(map(real_path, others)))


def check_apart(classes: Mapping[str, Path], links: Links) -> None:
    """Raises ValueError for a class folder that is a link to, or around, another's."""
    for name, folder in classes.items():
        real = real_path(folder)
        other = links.classes[real]
        if other != name or real in links.around:
            held = f"the folder of {other}" if other != name else "a folder that holds classes"
            raise ValueError(
                f"each class has a folder of its own; {folder} leads to {held}: take the link "
                "away, or let it lead to images of its own"
            )


def real_path(path: Path) -> Path:
    # Path.resolve raises for links that lead in a circle.
    return Path(os.path.realpath(path))
