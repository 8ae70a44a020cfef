"""Whether a stack is faster than its networks one after another: measured once, and kept.

In the user's cache folder, `stacked/KEY.json` for each kind of network and machine: milliseconds of
a step of all of them, each way. They may be deleted at any time; then the next training measures.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from planter.data.cache.place import cache_folder
from planter.machine.disk import write_whole
from planter.networks.checkpoint import content_key
from planter.training.batches import Batch
from planter.training.stacked.epoch import copied, gradients, kind_of
from planter.training.stacked.network import stack
from planter.training.stacked.passes import Pass

log = logging.getLogger(__name__)
_ROUNDS, _SECONDS = 7, 4.0
_GAIN = 0.95
"""Of the time apart, which a stack has to stay below: the rest is noise."""


def is_faster(passes: Sequence[Pass], batches: Sequence[Batch]) -> bool:
    """Whether steps of these networks take less time in a stack, on this machine."""
    times = _kept_or_measured(passes, batches)
    return times["stacked"] < _GAIN * times["apart"]


def step_times(passes: Sequence[Pass], batches: Sequence[Batch]) -> dict[str, float]:
    """Milliseconds of forward and backward passes of all the networks, "apart" and "stacked", by
    turns; medians. The networks stay as they are."""
    ways = {"apart": copied(passes), "stacked": copied(passes)}
    whole = stack([one.model for one in ways["stacked"]])
    taken: dict[str, list[float]] = {name: [] for name in ways}
    began = time.monotonic()
    for number in range(_ROUNDS + 1):
        for name, own in ways.items():
            start = time.perf_counter()
            gradients(own, whole if name == "stacked" else None, batches)
            if batches[0].images.device.type == "cuda":
                torch.cuda.synchronize(batches[0].images.device)
            if number:  # the first is slower
                taken[name].append(1000 * (time.perf_counter() - start))
        if number > 2 and time.monotonic() - began > _SECONDS:
            break
    return {name: statistics.median(found) for name, found in taken.items()}


def _kept_or_measured(passes: Sequence[Pass], batches: Sequence[Batch]) -> dict[str, float]:
    about = {
        "device": _name_of(batches[0].images.device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "networks": len(passes),
        "kind": repr(kind_of(passes[0])),
    }
    folder = cache_folder() / "stacked"
    file = folder / f"{content_key([about])}.json"
    if (known := _read(file)) is not None:
        return known
    found = step_times(passes, batches)
    log.info("%d networks, ms a step: %s", len(passes), found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({**about, "step_ms": found}, indent=1).encode())
    except OSError as error:
        log.warning("%s: what is measured is not kept for the next training", error)
    return found


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _read(file: Path) -> dict[str, float] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["step_ms"]
        return {"apart": float(found["apart"]), "stacked": float(found["stacked"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged, and measured again", file)
        return None
