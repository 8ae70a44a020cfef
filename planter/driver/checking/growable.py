"""Which layers are planted in: whether one can be by the study's own step, what step could be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from planter.arch import Architecture
from planter.backbones import convolutions, free_widths, inner_widths, told_widths
from planter.driver.trials.networks import check_network
from planter.edits.freeze import check_norms
from planter.edits.grouping import is_grouped
from planter.networks.assembly import build, build_network, build_without_data
from planter.networks.cut_points import image_of
from planter.planting.plants import channels_to_plant, plant
from planter.planting.starts import check_learns
from planter.study.findings import Findings
from planter.study.schema import Plant
from planter.study.space import Candidate

_MULTIPLES = (2, 4, 8, 16, 32)


class Hindrance(NamedTuple):
    """Why a step cannot be planted; whether the wider network could be built at all, and whether
    the reason already says what to do."""

    told: str
    built: bool
    has_remedy: bool = False


def named_layers(layers: Sequence[str], start: Architecture, found: Findings) -> list[str]:
    """Those that are widths of the initial network, inner ones too; others are told."""
    free = found.attempt("plant", start.builder, partial(free_widths, start))
    if free is None:
        return []
    for layer in layers:
        if layer not in free:
            found.add("plant.layers", layer, f"widths of {start.builder}: {told_widths(start)}")
    return [layer for layer in layers if layer in free]


def layers_to_plant(settings: Plant, start: Architecture, found: Findings) -> list[str]:
    """The widths of the initial network that may grow: those named, or every convolution but inner
    ones. What cannot be planted in is told."""
    place, layers = "plant.layers", settings.layers
    if layers == []:
        found.add(place, "none", f"some of {told_widths(start)}; or null, every convolution")
        return []
    if layers is None:
        inner = inner_widths(start)
        layers = [name for name in convolutions(start.widths) if name not in inner]
    if len(set(layers)) < len(layers):
        found.add(place, ", ".join(layers), "each of them once")
        return []
    if not layers:
        found.add("plant", f"{start.builder} without widths to grow", "a builder that names widths")
    parent = build_network(start)
    refused: dict[str, Hindrance] = {}
    for layer in named_layers(layers, start, found):
        check = partial(hindrance, settings, start, parent, layer, check_network)
        if (reason := found.attempt(place, layer, check)) is not None:
            refused[layer] = reason
    others = len(refused) < len(layers)
    advice = "leave it out of plant.layers" if others else "another builder: no layer can grow"
    for layer, reason in refused.items():
        found.tell(place, layer, reason.told + ("" if reason.has_remedy else f"; {advice}"))
    return list(layers)


def hindrance(
    settings: Plant,
    start: Architecture,
    parent: nn.Module,
    layer: str,
    check: Callable[[Architecture], None],
) -> Hindrance | None:
    """Why the initial network cannot be planted in a layer as `settings` say, with the multiple of
    channels by which it could where one is found; None where it can. `check` raises ValueError for
    an architecture that cannot be built."""
    found = _refused(settings, settings.multiple, start, parent, layer, check)
    if found is None or found.has_remedy:
        return found
    # A block of the user's own may ask for multiples without a norm or convolution in groups.
    may_help = is_grouped(parent) or not found.built
    for multiple in (m for m in _MULTIPLES if m > settings.multiple and may_help):
        other = _refused(settings, multiple, start, parent, layer, check)
        if other is None:
            told = f"{found.told}; with plant.multiple: {multiple} it can be planted"
            return Hindrance(told, built=True, has_remedy=True)
        if other.built and not found.built:  # then divisibility is not all that is in the way
            told = f"{found.told}; with plant.multiple: {multiple}, {other.told}"
            found = Hindrance(told, built=True)
    return found


def check_plants(candidate: Candidate, start: Architecture) -> None:
    """Raises ValueError where a plant of a candidate, whose network is `start`, would change the
    function of a network whose channels stand in groups. Other networks are built and tried when
    their trial begins: here that would take too long."""
    if not candidate.plants or not is_grouped(build_without_data(start)):
        return
    network = build(start, 0, candidate.norms) if start.pipelines else build_network(start)
    for layer, channels in candidate.plants:
        start, network = plant(start, network, layer, channels, seed=0)


def _refused(
    settings: Plant,
    multiple: int,
    start: Architecture,
    parent: nn.Module,
    layer: str,
    check: Callable[[Architecture], None],
) -> Hindrance | None:
    """Why steps in a multiple cannot be planted."""
    # Two steps where channels stand in groups: the second may be divided otherwise.
    for _ in range(2 if is_grouped(parent) else 1):
        width = start.width(layer)
        channels = channels_to_plant(width, settings.channels, multiple)
        step = f"{width} -> {width + channels} channels"
        try:
            check(start.widen(layer, channels))
        except ValueError as error:
            return Hindrance(f"{step}: {error}", built=False)
        try:
            wider, child = plant(start, parent, layer, channels, seed=0)
            check_norms(child)
        except ValueError as error:
            return Hindrance(f"{step}: {error}", built=True)
        if settings.filters == "zero":
            try:
                zeros = plant(
                    start, parent, layer, channels, seed=0, filters="zero", outgoing="random"
                )
                check_learns(zeros[1], parent, image_of(start))
            except ValueError as error:
                return Hindrance(str(error), built=True, has_remedy=True)
        start, parent = wider, child
    return None
