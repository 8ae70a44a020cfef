"""What a section's network begins with, and what images a teacher takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planter.arch import Architecture
from planter.backbones.outside.published import published
from planter.data import Data
from planter.driver.trials.networks import builder_of, network_of
from planter.networks.assembly import build_network
from planter.networks.weights import DEFAULT, Started, start_network, weights_key
from planter.study.schema import Study
from planter.study.section import Network, Normalise


def started(section: Network, architecture: Architecture, seed: int) -> Started:
    """A section's network as its training begins: with its weights, or fresh ones of `seed`. Raises
    ValueError as `start_network` does."""
    if section.weights is None:
        return Started(build_network(architecture, seed=seed))
    return start_network(architecture, section.weights, download=section.download, seed=seed)


def key_of_weights(section: Network, builder: str) -> str | None:
    """What tells a section's weights from others. Raises ValueError where they are not there."""
    if section.weights is None:
        return None
    return weights_key(builder, section.weights, download=section.download)


def teacher_of(study: Study, data: Data) -> tuple[Architecture, dict[str, Any]]:
    """The architecture of a study's teacher that has a builder, for images of the size it takes,
    and how it takes them, as in its `arch.json`: `mean` and `std`, and its architecture. Raises
    ValueError for a normalisation of another number of channels."""
    settings = study.teacher
    assert settings is not None
    normalise, size = settings.normalise, settings.resize
    if settings.weights == DEFAULT and (normalise is None or size is None):
        known = published(builder_of(study, settings))
        normalise = normalise or Normalise(mean=list(known.mean), std=list(known.std))
        size = size or known.size
    architecture = network_of(study, settings, data, settings.widths)
    channels, *sides = data.image
    image = [channels, *(sides if size is None else [size, size])]
    architecture = replace(architecture, options={**architecture.options, "image": image})
    spec: dict[str, Any] = {"architecture": architecture.to_dict()}
    if normalise is not None:
        if len(normalise.mean) != channels:
            raise ValueError(
                f"normalise of {len(normalise.mean)} channels, the images have {channels}; a mean "
                "and a std for each channel"
            )
        spec |= normalise.model_dump()
    return architecture, spec
