"""Successive halving: ranks against their definition, and what a ladder of rungs lets on."""

import random

from hypothesis import given
from hypothesis import strategies as st

from planter.front.halving import Rungs, by_rank
from planter.front.pareto import pareto_rank

# Small integer grids make ties and duplicates common.
_point = st.tuples(st.integers(0, 4), st.integers(1, 5))
_trials = st.lists(st.lists(_point, min_size=1, max_size=3), min_size=1, max_size=9)


def _points(grid):
    return [(a / 5, 10.0**m) for a, m in grid]


def _dominates(a, b):
    return a[0] >= b[0] and a[1] <= b[1] and a != b


def _brute_ranks(points):
    """Fronts peeled off one by one, by comparing all pairs."""
    ranks = [None] * len(points)
    rank = 0
    while None in ranks:
        left = [i for i, r in enumerate(ranks) if r is None]
        front = [i for i in left if not any(_dominates(points[j], points[i]) for j in left)]
        for i in front:
            ranks[i] = rank
        rank += 1
    return ranks


def _lacks(points, every):
    """By comparing with each: how much accuracy the nearest of a trial's networks lacks."""
    return min(max(a for a, m in every if m <= macs) - accuracy for accuracy, macs in points)


@given(st.lists(_point, max_size=12))
def test_ranks_are_those_of_fronts_peeled_off(grid):
    points = _points(grid)
    assert list(pareto_rank(points)) == _brute_ranks(points)


@given(_trials)
def test_no_trial_comes_before_one_of_a_better_rank(grids):
    trials = {f"s{i}": _points(grid) for i, grid in enumerate(grids)}
    every = [point for points in trials.values() for point in points]
    ranks = iter(_brute_ranks(every))
    best = {name: min(next(ranks) for _ in points) for name, points in trials.items()}
    order = by_rank(trials, len(trials))
    assert sorted(order) == sorted(trials)
    assert [best[name] for name in order] == sorted(best.values())


@given(_trials, st.integers(1, 9))
def test_within_a_rank_the_trial_nearest_to_the_front_comes_first(grids, most):
    trials = {f"s{i}": _points(grid) for i, grid in enumerate(grids)}
    every = [point for points in trials.values() for point in points]
    ranks = iter(_brute_ranks(every))
    place = {
        name: (min(next(ranks) for _ in points), _lacks(points, every), name)
        for name, points in trials.items()
    }
    assert by_rank(trials, most) == sorted(trials, key=place.__getitem__)[:most]


def test_a_small_network_close_to_the_front_comes_before_a_large_one_far_from_it():
    trials = {
        "front": [(0.9, 1e6)],
        "small front": [(0.5, 1e4)],
        "large": [(0.7, 1.1e6)],
        "small": [(0.49, 1.1e4)],
    }
    assert by_rank(trials, 3) == ["front", "small front", "small"]


def test_a_trial_without_a_network_within_the_bounds_goes_nowhere():
    assert by_rank({"none": [], "one": [(0.2, 1e3)]}, 2) == ["one"]
    assert by_rank({"none": []}, 2) == []


def _by_accuracy(trials, most):
    return sorted(trials, key=lambda name: -trials[name][0][0])[:most]


def _ladder(**settings):
    return Rungs(**{"count": 2, "keep": 0.5, "wait": 4, "order": _by_accuracy, **settings})


def test_a_rung_waits_for_enough_to_compare_and_lets_the_better_half_on():
    rungs = _ladder()
    for name, accuracy in (("a", 0.3), ("b", 0.5), ("c", 0.4)):
        rungs.record(name, 0, [(accuracy, 1e4)])
        assert rungs.ready() == []
    rungs.record("d", 0, [(0.2, 1e4)])
    assert rungs.ready() == ["b", "c"]
    rungs.leave("b")
    assert rungs.ready() == ["c"]
    # b counts though it has left: of five it is one of the best two.
    rungs.record("e", 0, [(0.6, 1e4)])
    assert rungs.ready() == ["e"]


def test_the_higher_rung_comes_first():
    rungs = _ladder(wait=2)
    for name, accuracy in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4)):
        rungs.record(name, 0, [(accuracy, 1e4)])
    rungs.record("c", 1, [(0.5, 1e4)])
    rungs.record("x", 1, [(0.4, 1e4)])
    assert rungs.ready() == ["c", "d"]


def test_when_nobody_else_comes_even_a_thin_rung_lets_one_on_but_after_those_below_it():
    rungs = _ladder(wait=9)
    rungs.record("a", 0, [(0.3, 1e4)])
    rungs.record("b", 0, [(0.1, 1e4)])
    rungs.record("c", 1, [(0.5, 1e4)])
    assert rungs.ready() == []
    assert rungs.ready(last=True) == ["a"]  # on its way to c's rung: c waits for it
    rungs.leave("a")
    assert rungs.ready(last=True) == ["c"]
    rungs.leave("c")
    assert rungs.ready(last=True) == []
    assert rungs.waiting == ["b"]


def test_a_search_trains_about_the_share_that_halving_promises():
    """100 trials whose scores never change, one after another: on each rung half go on, and those
    let on too early are few."""
    generator = random.Random(0)
    scores = {f"s{i}": generator.random() for i in range(100)}
    rungs = _ladder(wait=8)
    starts = list(scores)
    reached = [0, 0, 0]
    at = {}
    while True:
        ready = rungs.ready() or ([] if starts else rungs.ready(last=True))
        if ready:
            name = ready[0]
            rungs.leave(name)
        elif starts:
            name = starts.pop(0)
            at[name] = -1
        else:
            break
        at[name] += 1
        reached[at[name]] += 1
        if at[name] < 2:
            rungs.record(name, at[name], [(scores[name], 1e4)])
    assert reached[0] == 100
    assert 50 <= reached[1] <= 58
    assert 25 <= reached[2] <= 33
    best = sorted(scores, key=scores.__getitem__)[-20:]
    assert sum(at[name] == 2 for name in best) == 20
