"""What `auto` stands for: measured once per machine and kind of network, and kept.

In the user's cache folder, `fastest/KEY.json` for each kind: the machine, the kind, milliseconds of
a step each way. They may be deleted at any time; then the next training measures again.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from planter.data.cache.place import cache_folder
from planter.machine.disk import write_whole
from planter.networks.checkpoint import content_key
from planter.training.batches import Batch, eval_logits, layout_of, split_batch
from planter.training.recipe import Recipe
from planter.training.running.forward import PLAIN, Computed, Running, forward_of, try_out

log = logging.getLogger(__name__)
_GAIN = 0.95
"""Of the plain step's time, which another way has to stay below: the rest is noise."""
_HOPELESS = 2.0
"""Times as slow on a few images: not measured further. Without instructions for it, a step in
bfloat16 takes ten times as long."""
_FEW, _ROUNDS, _SECONDS = 8, 7, 3.0

Loss = Callable[[nn.Module, Batch], Tensor]


def chosen(model: nn.Module, loss: Loss, batch: Batch, recipe: Recipe, *, steps: int) -> Running:
    """What a recipe's `precision` and `compile` come to for a training of so many `steps`, with a
    batch of it to measure on where one of them is `auto`. The model stays as it is."""

    def step(part: Batch) -> None:
        loss(model, part).backward()  # type: ignore[no-untyped-call]

    if recipe.precision == "auto":
        running = Running(_precision(model, step, batch, "step"))
    else:
        running = Running(recipe.precision)
    if recipe.compile != "auto":
        return running._replace(compiled=recipe.compile)
    ways = {"plain": running, "compiled": running._replace(compiled=True)}
    record = _kept_or_measured(model, step, batch, ways, "step")
    plain, compiled = record["step_ms"]["plain"], record["step_ms"].get("compiled")
    if not _gains(compiled, plain):
        return running
    saved = steps * (plain - compiled) / 1000
    return running._replace(compiled=saved > record["first_s"]["compiled"])


def chosen_to_answer(model: nn.Module, images: Tensor) -> Computed:
    """The precision in which a network that does not train answers fastest."""

    def answer(part: Batch) -> None:
        eval_logits(model, part.images)

    return _precision(model, answer, Batch(images, images.new_empty(len(images)), None), "answer")


def _precision(model: nn.Module, run: Callable[[Batch], None], batch: Batch, what: str) -> Computed:
    half = _half(batch.images.device)
    if half is None:
        return "float32"
    ways: dict[str, Running] = {"float32": PLAIN, half: Running(half)}
    found = _kept_or_measured(model, run, batch, ways, what)["step_ms"]
    return half if _gains(found.get(half), found["float32"]) else "float32"


def _half(device: torch.device) -> Computed | None:
    """The precision that is worth a measurement on a device."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return "bfloat16" if torch.amp.is_autocast_available(device.type) else None


def _gains(half: float | None, plain: float) -> bool:
    return half is not None and half < _GAIN * plain


def _kept_or_measured(
    model: nn.Module,
    run: Callable[[Batch], None],
    batch: Batch,
    ways: Mapping[str, Running],
    what: str,
) -> dict[str, Any]:
    """Of each way, by its name: `step_ms`, and `first_s`, which its first pass took. The first way
    is the one that the others are compared with; one that fails or is hopeless is left out."""
    about = {
        "machine": _machine(batch.images.device),
        "kind": {"run": what, **_kind(model, batch)},
        "ways": {name: list(way) for name, way in ways.items()},
    }
    folder = cache_folder() / "fastest"
    file = folder / f"{content_key([about])}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # others that train this kind wait for the answer
            if (record := _read(file)) is None:
                record = _measured(model, run, batch, ways)
                write_whole(file, json.dumps(about | record, indent=1).encode())
                log.info("measured, and kept in %s: %s ms a step", file, record["step_ms"])
    except OSError as error:
        log.warning("%s: what is measured is not kept for the next training", error)
        record = _measured(model, run, batch, ways)
    return record


def _read(file: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        record["step_ms"], record["first_s"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged, and measured again", file)
        return None
    return record


def _measured(
    model: nn.Module, run: Callable[[Batch], None], batch: Batch, ways: Mapping[str, Running]
) -> dict[str, Any]:
    reference = next(iter(ways))
    few = split_batch(batch, max(1, len(batch.labels) // _FEW))[0]
    forwards = {name: forward_of(model, way) for name, way in ways.items()}
    first: dict[str, float] = {}

    def seconds(name: str, part: Batch) -> float:
        layout = layout_of(model, ways[name].fewest)
        model.to(memory_format=layout)
        part = part._replace(images=part.images.contiguous(memory_format=layout))
        began = time.perf_counter()
        try_out(model, forwards[name], lambda: run(part))
        if part.images.device.type == "cuda":
            torch.cuda.synchronize(part.images.device)
        return time.perf_counter() - began

    times: dict[str, list[float]] = {}
    for name, way in ways.items():
        try:
            first[name] = seconds(name, batch if way.compiled else few)
            quick = min(seconds(name, batch if way.compiled else few) for _ in range(2))
        except Exception as error:
            if name == reference:
                raise
            log.info("%s is not possible: %s", name, str(error).partition("\n")[0])
            continue
        times[name] = [quick]
        if quick > _HOPELESS * times[reference][0] and not way.compiled:
            del times[name]
    began = time.monotonic()
    rounds: dict[str, list[float]] = {name: [] for name in times}
    for _ in range(_ROUNDS):
        for name in rounds:
            rounds[name].append(seconds(name, batch))
        if time.monotonic() - began > _SECONDS and len(rounds[reference]) > 2:
            break
    model.to(memory_format=torch.contiguous_format)
    return {
        "step_ms": {name: 1000 * statistics.median(taken) for name, taken in rounds.items()},
        "first_s": first,
    }


def _machine(device: torch.device) -> dict[str, Any]:
    """What decides how fast a device computes."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return {"device": name, "torch": torch.__version__}
    # Equal names of processors stand for different ones in virtual machines.
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "device": device.type,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "can": {key: value for key, value in sorted(can.items()) if value},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _kind(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What decides which way is the fastest, coarsely: networks of one kind share the answer."""
    layers = [m for m in model.modules() if not list(m.children())]
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "layers": sorted({type(layer).__name__ for layer in layers}),
        "grouped": any(getattr(layer, "groups", 1) > 1 for layer in layers),
        "parameters": 4 ** round(math.log(max(parameters, 1), 4)),
        "image": list(batch.images.shape[1:]),
        "batch": 2 ** round(math.log2(len(batch.labels))),
    }
