"""Timing of calls, with a clock of our own and with modules that sleep."""

from __future__ import annotations

import time
from itertools import cycle

import pytest
import torch
from torch import Tensor, nn

from planter.latency.timing import forward, time_calls


class Sleeper(nn.Module):
    """A network that takes a known time and no work."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.seen: list[tuple[bool, bool, tuple[int, ...]]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_inference_mode_enabled(), tuple(images.shape)))
        time.sleep(self.seconds)
        return images


class Clock:
    """Stands still but for calls that say how long they take."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float):
        turns = cycle(seconds)

        def call() -> None:
            self.now += next(turns)

        return call


def test_quartiles_are_those_of_the_counted_calls() -> None:
    clock = Clock()
    # Two calls of a turn are not counted; with no time for more, four are.
    calls = {
        "even": clock.taking(0.008),
        "uneven": clock.taking(9.0, 9.0, 0.001, 0.002, 0.003, 0.004),
    }
    found = time_calls(calls, rounds=3, seconds=0.0, clock=clock)
    assert list(found) == ["even", "uneven"]
    even, uneven = found["even"], found["uneven"]
    assert even.runs == uneven.runs == 12
    assert [even.lower_ms, even.median_ms, even.upper_ms] == pytest.approx([8, 8, 8])
    # Of 1, 2, 3 and 4, three times each, linearly between the sorted values.
    assert [uneven.lower_ms, uneven.median_ms, uneven.upper_ms] == pytest.approx([1.75, 2.5, 3.25])


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    time_calls(calls, rounds=2, seconds=0.0)
    assert "".join(order) == 2 * ("a" * 6 + "b" * 6)


def test_a_turn_lasts_as_long_as_it_is_given() -> None:
    began = time.perf_counter()
    found = time_calls({"nothing": lambda: None}, rounds=2, seconds=0.02)
    assert time.perf_counter() - began >= 0.04
    assert found["nothing"].runs > 8


def test_a_pass_is_timed_to_its_end_without_gradients() -> None:
    network = Sleeper(0.005).eval()
    images = torch.zeros(2, 1, 4, 4)
    found = time_calls({"network": forward(network, images)}, rounds=1, seconds=0.0)
    assert found["network"].lower_ms >= 5
    assert set(network.seen) == {(False, True, (2, 1, 4, 4))}
