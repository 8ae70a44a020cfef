"""How long calls take on this machine: several in turn, over and over, told by their quartiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import TypeVar

import torch
from torch import Tensor, nn

Name = TypeVar("Name", bound=Hashable)
_UNCOUNTED, _LEAST = 2, 4
"""Calls of each turn: those that only warm caches up, and those that are timed at least."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: quartiles of its `runs`."""

    lower_ms: float
    median_ms: float
    upper_ms: float
    runs: int


def time_calls(
    calls: Mapping[Name, Callable[[], object]],
    *,
    rounds: int = 5,
    seconds: float = 0.1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, Timing]:
    """Times calls by their names. They take turns, `rounds` of them, of about `seconds` each, so
    that whatever else the machine does, and every change of its pace, meets all of them alike."""
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name] += _turn(call, seconds, clock)
    return {name: _timing(of_call) for name, of_call in times.items()}


def forward(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """A call that passes `images` [batch, channels, height, width] through a network, in the mode
    it has, and on a GPU waits for the end."""

    def call() -> None:
        with torch.inference_mode():
            network(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)

    return call


def _turn(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> list[float]:
    """Milliseconds of each call of a turn."""
    for _ in range(_UNCOUNTED):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST or time.perf_counter() < end:
        began = clock()
        call()
        times.append(1000 * (clock() - began))
    return times


def _timing(times: list[float]) -> Timing:
    lower, median, upper = quantiles(times, n=4, method="inclusive")
    return Timing(lower, median, upper, len(times))
