"""What a study begins with: its teacher, and parents of its children, as saved networks, and the
weights that its networks are given."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from planter.arch import Architecture
from planter.backbones import is_known
from planter.data import Data
from planter.driver.trials.starts import key_of_weights, started
from planter.front.points import read_front
from planter.networks import checkpoint
from planter.study.findings import Findings
from planter.study.networks import Baseline, Teacher
from planter.study.schema import Study
from planter.study.section import Network


def saved_network(folder: str) -> tuple[Architecture, dict[str, Any]]:
    """The architecture and the whole spec of a saved network. Raises ValueError where it has
    none."""
    try:
        spec = checkpoint.read_spec(folder)
        return Architecture.from_dict(spec["architecture"]), {"pipeline": spec["pipeline"], **spec}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{checkpoint.ARCHITECTURE} is no architecture of planter's "
            f"({type(error).__name__}: {error}); a folder such as runs/NAME/models/TRIAL/PIPELINE"
        ) from error


def given_teacher(
    study: Study, data: Data, fingerprint: str, found: Findings
) -> Architecture | None:
    """The architecture of the teacher whose folder a study names; None where it cannot guide."""
    settings = study.teacher
    assert settings is not None
    assert settings.model is not None
    if settings != Teacher(model=settings.model, processes=settings.processes):
        found.add("teacher", "model beside other keys", "model alone, or no model")
        return None
    model = settings.model
    saved = found.attempt("teacher.model", model, lambda: saved_network(model))
    if saved is None:
        return None
    architecture, spec = saved
    if spec["pipeline"] != "base":
        found.add("teacher.model", f"pipeline {spec['pipeline']!r}", "a pipeline 'base'")
        return None
    return _fitting("teacher.model", architecture, spec, study, data, fingerprint, found)


def starts_of(study: Study, data: Data, fingerprint: str, found: Findings) -> list[str]:
    """The folders of all networks that `evolve.start` names, those of a run's front one by one."""
    place, starts = "evolve.start", []
    for given in [] if study.evolve is None else study.evolve.starts():
        folder = Path(given)
        if (folder / "pareto.json").is_file():
            front = found.attempt(place, given, partial(read_front, folder))
            rows = [] if front is None else front["points"]
            kept = [str(folder / r["model"]) for r in rows if r["on_front"] and r["model"]]
            if front is not None and not kept:
                found.add(place, given, "a run whose front has saved networks")
            starts += kept
        else:
            starts.append(given)
    sound = []
    for start in starts:
        saved = found.attempt(place, start, partial(saved_network, start))
        if saved is None:
            continue
        if _fitting(place, *saved, study, data, fingerprint, found) is not None:
            sound.append(start)
    return sound


def _fitting(
    place: str,
    architecture: Architecture,
    spec: dict[str, Any],
    study: Study,
    data: Data,
    fingerprint: str,
    found: Findings,
) -> Architecture | None:
    """The architecture, where it may be built; what else does not fit the data is found."""
    sections = (study.teacher, study.plant, *study.baselines)
    named = {section.builder for section in sections if section is not None}
    if not is_known(architecture.builder) and architecture.builder not in named:
        found.add(
            place,
            f"a network built by calling {architecture.builder!r}",
            "one of planter's builders, or that builder named in teacher, plant or baselines: "
            "a folder alone does not get code run",
        )
        return None
    facts = {"classes": data.classes, "image": list(data.image)}
    for name, fact in facts.items():
        if architecture.options.get(name) != fact:
            found.add(
                place,
                f"a network with {name} {architecture.options.get(name)}",
                f"one with {name} {fact}, as the data has",
            )
    pixels = str(data.train.dtype).removeprefix("torch.")
    if spec.get("pixels", pixels) != pixels:  # older files do not say
        found.add(
            place,
            f"a network of {spec['pixels']} pixels",
            f"one of {pixels} pixels, as the data has: uint8 pixels are divided by 255, others not",
        )
    told = "the teacher" if place == "teacher.model" else place
    names = spec.get("class_names")
    if names is not None and names != list(data.class_names):
        if sorted(names) == sorted(data.class_names):
            found.add(
                place,
                f"a network whose classes are {', '.join(names)}",
                f"the order of the data, {', '.join(data.class_names)}: its logits would guide to "
                "other classes",
            )
        elif len(names) == data.classes:
            found.warnings.append(
                f"{told} names its classes {', '.join(names[:4])}{', ...' * (len(names) > 4)},"
                f" the data {', '.join(data.class_names[:4])}{', ...' * (len(names) > 4)}"
            )
    if spec.get("data") != fingerprint:
        found.warnings.append(
            f"{told} was trained on another split or data set: images that select here may "
            "have trained it, and accuracies may be too high"
        )
    return architecture


def check_weights(
    place: str, section: Network, architecture: Architecture, found: Findings
) -> dict[str, str]:
    """What tells a section's weights from others, by its place, if it has any. What does not fit
    its network is found, and what is done to make it fit told."""
    if section.weights is None:
        return {}
    at = f"{place}.weights"
    begun = found.attempt(at, section.weights, lambda: started(section, architecture, 0))
    if begun is None:
        return {}
    found.warnings += [f"{at}: {told}" for told in begun.told]
    if begun.fresh and isinstance(section, Teacher | Baseline) and section.frozen:
        found.add(
            f"{place}.recipe",
            f"null beside a classifier that begins afresh ({', '.join(begun.fresh)})",
            "a recipe, to train it, or weights of as many classes as the data have",
        )
    if isinstance(section, Baseline) and section.frozen and section.kd is not None:
        found.add(f"{place}.kd", "kd beside recipe: null", "a recipe, to learn by, or no kd")
    key = key_of_weights(section, architecture.builder)
    return {} if key is None else {at: key}
