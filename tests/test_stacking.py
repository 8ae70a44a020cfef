"""Jobs of one shape done together: the same ids, books and points as one after another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import planter
from planter.driver import final
from planter.driver.backends.stacking import stacking
from planter.driver.run_folder.read import read_points
from planter.driver.trials.jobs import STACK, Job, Outcome, Queue, SearchStoppedError
from planter.study.schema import Resources, Study
from planter.training.stacked import choice, together

# The rate alone is drawn: networks of one shape.
SPACE = """
from planter import Architecture
from planter.study.space import Candidate

def space(trial):
    widths = {f"conv{i}": 4 for i in range(1, 6)} | {"fc1": 16}
    rate = trial.suggest_float("lr", 0.001, 0.01, log=True)
    return Candidate(Architecture("convnet", widths, {}, {}), recipe={"lr": rate})
"""
STUDY = """
name: small
data: {name: digits, subset: 160, validation: 0.25}
objectives: {macs_reference: 1000000}
recipe: {epochs: 2, batch: 30, optimizer: adam, lr: 0.01, weight_decay: 0.0}
sample: {space: "SPACE:space", trials: 3, sampler: random}
keep: all
resources: {workers: 0, stack: COUNT}
"""


@pytest.fixture(autouse=True)
def _stacks_are_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "step_times", lambda *given: {"apart": 2.0, "stacked": 1.0})


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks stood in each pass that was made of several."""
    found: list[int] = []
    real = together.stacked_epoch

    def noted(passes: Any, whole: Any) -> list[float]:
        found.append(len(passes))
        return real(passes, whole)

    monkeypatch.setattr(together, "stacked_epoch", noted)
    return found


def searched(folder: Path, count: int) -> Path:
    (folder / "space.py").write_text(SPACE)
    text = STUDY.replace("SPACE", str(folder / "space.py")).replace("COUNT", str(count))
    (folder / "small.yaml").write_text(text)
    planter.search(folder / "small.yaml", out=folder / "runs" / str(count))
    return folder / "runs" / str(count)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([w.flatten() for w in load_file(folder / "weights.safetensors").values()])


def test_a_search_in_stacks_is_the_search_within_rounding(tmp_path: Path, sizes: list[int]) -> None:
    apart = searched(tmp_path, 1)
    assert not sizes
    stacked = searched(tmp_path, 2)
    assert sizes == [2, 2]  # two trials for two epochs; the third is alone
    one, two = read_points(apart), read_points(stacked)
    known = [
        [(p.id, p.macs, p.train_macs, p.params, p.architecture) for p in points]
        for points in (one, two)
    ]
    assert known[0] == known[1]
    for point in one:
        places = [run / "models" / point.id for run in (apart, stacked)]
        a, b = map(weights, places)
        assert torch.allclose(a, b, atol=1e-4)
    logs = [(stacked / "trials" / p.trial / "log.txt").read_text() for p in two]
    assert all(
        p.trial in log and log.count(" starts") == 1 for p, log in zip(two, logs, strict=True)
    )
    lines = (stacked / "trials" / two[0].trial / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_seeds_of_a_final_training_are_stacked(tmp_path: Path, sizes: list[int]) -> None:
    run = searched(tmp_path, 1)
    copy = tmp_path / "runs" / "copy"
    shutil.copytree(run, copy)
    name = read_points(run)[0].id
    apart = final.train_points(run, [name], kinds=["stand-alone"], seeds=3)
    assert not sizes
    told: list[str] = []
    stacked = final.train_points(
        copy,
        [name],
        kinds=["stand-alone"],
        seeds=3,
        overrides=["resources.stack=3"],
        observe=told.append,
    )
    assert sizes == [3, 3]
    assert [line.split()[1] for line in told] == [f"{name}/stand-alone-{k}" for k in range(3)]
    ids = [
        [
            (row["id"], row["kind"], row["seed"], row["epochs"], row["model"])
            for row in found["rows"]
        ]
        for found in (apart, stacked)
    ]
    assert ids[0] == ids[1]
    for row in apart["rows"]:
        if row["kind"] == "stand-alone":
            a, b = weights(run / row["model"]), weights(copy / row["model"])
            assert torch.allclose(a, b, atol=1e-4)


class _Books(Queue):
    """A queue of given jobs that notes what is finished, as the driver's does."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.done: list[tuple[str, Outcome]] = []

    def next(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None

    def finish(self, job: Job, outcome: Outcome) -> None:
        self.done.append((job.id, outcome))
        if outcome.get("stop"):
            raise SearchStoppedError(outcome["error"])

    def complete(self) -> bool:
        return not self.jobs


def job(name: str, network: str, **more: Any) -> Job:
    return Job(name, "sample", {"network": network, "kernels": "plain", **more}, macs=5, epochs=2)


def test_jobs_of_one_shape_in_a_row_are_handed_out_together() -> None:
    study = Study(name="x", resources=Resources(stack=3))
    jobs = [job("a", "n"), job("b", "n"), job("c", "m"), *(job(c, "m") for c in "defg")]
    queue = stacking(_Books([*jobs, job("r", "m", rungs=[1, 2]), Job("t", "teacher")]), study)
    given = [queue.next() for _ in range(6)]
    assert [None if one is None else one.trials for one in given] == [
        ["a", "b"], ["c", "d", "e"], ["f", "g"], ["r"], ["t"], None,
    ]  # fmt: skip
    first = given[0]
    assert first is not None
    assert (first.kind, first.macs, first.parts()) == (STACK, 10, jobs[:2])
    plain = _Books([])
    assert stacking(plain, Study(name="x")) is plain


def test_a_dead_worker_is_told_of_each_job_which_then_is_alone() -> None:
    books = _Books([job("a", "n"), job("b", "n")])
    queue = stacking(books, Study(name="x", resources=Resources(stack=2)))
    stack = queue.next()
    assert stack is not None
    lost: Outcome = {"error": "its worker process died", "retry": True}
    queue.finish(stack, lost)
    assert books.done == [("a", lost), ("b", lost)]
    books.jobs += [job("a", "n"), job("b", "n")]
    again = [queue.next(), queue.next()]
    assert [one and one.trials for one in again] == [["a"], ["b"]]


def test_what_ends_a_search_is_booked_behind_what_was_trained() -> None:
    books = _Books([job("a", "n"), job("b", "n")])
    queue = stacking(books, Study(name="x", resources=Resources(stack=2)))
    stack = queue.next()
    assert stack is not None
    full: Outcome = {"error": "no space", "stop": True}
    with pytest.raises(SearchStoppedError, match="no space"):
        queue.finish(stack, {"trials": {"a": full, "b": {"points": []}}})
    assert [name for name, _ in books.done] == ["b", "a"]


def test_a_study_that_stacks_nothing_says_nothing_of_it() -> None:
    assert "stack" not in Resources().model_dump()
    assert Resources(stack=8).model_dump()["stack"] == 8
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Resources(stack=0)
