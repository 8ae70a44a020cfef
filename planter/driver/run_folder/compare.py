"""What two runs differ in: whether they can be compared, and whether one is a random control."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planter.driver.storage.reading import run_study
from planter.report import Comparison
from planter.study.schema import Study

_NO_DIFFERENCE = (
    "name", "resources", "budget", "keep", "tensorboard", "trackers", "storage", "table",
)  # fmt: skip
"""Keys of a study that decide nothing of what its networks are."""


def images_fingerprint(run: Path) -> str | None:
    """The fingerprint of a run's training and validation images; None where it is not written."""
    try:
        found = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError, AttributeError):
        return None
    return None if found is None else str(found)


def compared(run: Path, other: Path) -> Comparison:
    """How a second run stands to a first: its random control where it is the same study with
    random samplers alone. Raises ValueError for a folder that is no run."""
    studies = [run_study(folder) for folder in (run, other)]
    images = [images_fingerprint(folder) for folder in (run, other)]
    same_images = None not in images and images[0] == images[1]
    keys = [_flat(study) for study in studies]
    if same_images:  # wherever they lie
        for one in keys:
            one.pop("data.root", None)
    apart = [
        (key, *(str(one.get(key, "nothing")) for one in keys))
        for key in sorted(set(keys[0]) | set(keys[1]))
        if keys[0].get(key) != keys[1].get(key)
    ]
    if not same_images:
        shown = [one or "not written down" for one in images]
        apart.insert(0, ("images and labels, by fingerprint", *shown))
    samplers = samplers_of(studies[1])
    only = bool(apart) and {key for key, *_ in apart} <= set(samplers)
    control = only and set(samplers.values()) == {"random"}
    return Comparison(control=control, same_images=same_images, differences=apart)


def samplers_of(study: Study) -> dict[str, str]:
    """The samplers of a study by their keys."""
    sections = {"sample": study.sample, "evolve": study.evolve}
    return {f"{name}.sampler": one.sampler for name, one in sections.items() if one is not None}


def other_images(runs: Sequence[Path]) -> list[str]:
    """A sentence where runs have images of their own, so that accuracies cannot be compared."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if (images := images_fingerprint(run)) is not None:
            found.setdefault(images, []).append(run.name)
    if len(found) < 2:
        return []
    groups = "; ".join(f"{', '.join(names)} ({images})" for images, names in found.items())
    return [
        f"these runs have different images or labels, by fingerprint: {groups}; an accuracy of one "
        "says nothing about those of another"
    ]


def _flat(study: Study) -> dict[str, Any]:
    """What a study says, by dotted key."""
    flat: dict[str, Any] = {}

    def add(place: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{place}.{key}" if place else str(key), inner)
        else:
            flat[place] = value

    add("", {k: v for k, v in study.model_dump().items() if k not in _NO_DIFFERENCE})
    if study.sample is not None:
        flat["sample.space"] = _space(study.sample.space)
    return flat


def _space(place: str) -> str:
    """A space by its function and what its file holds now, wherever it lies; by its place where it
    is a shipped one or the file is gone."""
    file, colon, function = place.rpartition(":")
    try:
        held = Path(file).read_bytes() if colon else None
    except OSError:
        held = None
    if held is None:
        return place
    return f"{Path(file).name}:{function} ({hashlib.sha256(held).hexdigest()[:8]})"
