"""Weights that networks of a study begin with, before anything is trained."""

from __future__ import annotations

from planter.arch import Architecture
from planter.driver.trials.starts import key_of_weights, started
from planter.study.findings import Findings
from planter.study.networks import Baseline, Teacher
from planter.study.section import Network


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
