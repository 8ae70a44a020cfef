"""Members of a crew take all turns, in order, one at a time, and errors come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planter.planting.crew import crew


@settings(max_examples=25, deadline=None)
@given(
    members=st.integers(1, 6),
    threads=st.integers(1, 4),
    turns=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_every_member_takes_every_turn_in_order_and_never_two_at_once(
    members: int, threads: int, turns: int, seed: int
) -> None:
    taken: list[list[int]] = [[] for _ in range(members)]
    running = [0] * members
    most = [0] * members
    generator = torch.Generator().manual_seed(seed)
    pauses = (torch.rand(members, generator=generator) * 0.002).tolist()

    def member(at: int) -> Callable[[int], None]:
        def take(turn: int) -> None:
            running[at] += 1
            most[at] = max(most[at], running[at])
            time.sleep(pauses[at])
            taken[at].append(turn)
            running[at] -= 1

        return take

    with crew([member(at) for at in range(members)], threads) as hands:
        for turn in range(turns):
            hands.hand_out(turn)
        hands.finish()
        assert taken == [list(range(turns))] * members
        hands.hand_out(turns)
        hands.finish()
    assert taken == [list(range(turns + 1))] * members
    assert set(most) <= {1}


def test_members_work_at_the_same_time_with_torchs_cores_divided_among_them() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        together = threading.Barrier(2, timeout=10)
        counts = []

        def member(turn: int) -> None:
            together.wait()  # passes only while the other one is in its turn, too
            counts.append(torch.get_num_threads())

        with crew([member, member], 2) as hands:
            for turn in range(3):
                hands.hand_out(turn)
            hands.finish()
        assert counts == [2] * 6
        assert torch.get_num_threads() == 4
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [4]
    finally:
        torch.set_num_threads(before)


def test_what_a_member_raises_is_raised_where_turns_are_handed_out() -> None:
    seen: list[int] = []

    def fails(turn: int) -> None:
        if turn == 2:
            raise KeyError("turn 2")

    def work() -> None:
        with crew([seen.append, fails], 2) as hands:
            for turn in range(50):
                hands.hand_out(turn)
            hands.finish()

    with pytest.raises(KeyError, match="turn 2"):
        work()
    assert seen == list(range(len(seen)))
    assert len(seen) < 50


def test_leaving_a_crew_early_does_not_wait_for_turns_that_nobody_has_begun() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def member(turn: int) -> None:
        begun.append(turn)
        go_on.wait(10)

    def work() -> None:
        with crew([member], 1) as hands:
            for turn in range(3):
                hands.hand_out(turn)
            while not begun:
                time.sleep(0.001)
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert begun == [0]
