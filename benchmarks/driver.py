"""What a search costs beside its trainings: the driver, Optuna and Ray.

    python benchmarks/driver.py [--json] [--rounds 3] [--only empty long efficiency]

Everything goes through `planter.search`; only what a worker does for a sampled trial is replaced
(`trials.py`): nothing, or a fixed piece of work. Seconds are counted from the moment Ray is up (the
return of `ray.init`) to the moment the last trial is booked: written to the SQLite storage, its
points derived. So the start of the workers and their imports, torch among them, are inside; Ray's
own start is not, and stands beside it as `ray_starts_s`, with planter's import of `ray.tune`.

- empty: 12 trials that train nothing, on two workers, drawn by TPE from the shipped space
  `convnet_cuts`. Beside it, on a Ray started with as many cores, Ray Tune with `OptunaSearch` as
  they come (`tune`: a function that imports torch and reports two numbers), and with reused actors
  and without the default callbacks (`reused`): from `ray.init`'s return to that of `fit`. Each in
  a process of its own, in turn; a figure is the median over `--rounds`.
- long: a study that holds 1,999 finished trials and their points goes on, `workers: 0`: seconds a
  trial from one booking to the next, the mean over 20 trials (documents are not written after
  each). The rows before were written as the driver writes them; their parameters are 200 draws of
  the space, the continuous ones drawn anew for each row.
- efficiency: 20 trials of a fixed piece of one-thread work, 5 s alone on one core, on two workers:
  20 x its time alone / (2 x the search's time). `two processes` is the same for two bare processes
  that share nothing: what the machine allows.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import claim, print_claims, surroundings

from planter.machine.memory import keep_memory

EMPTY, LONG, CYCLES, BUSY, SECONDS, WORKERS = 12, 2000, 20, 20, 5.0, 2
PARTS = ("planter", "tune", "reused", "long", "efficiency")


def study(trials: int, workers: int) -> Any:
    from planter.study.schema import Study

    space = f"{Path(__file__).with_name('trials.py')}:space"
    return Study.model_validate(
        {
            "name": "driver",
            "data": {"name": "digits"},
            "objectives": {"macs_reference": 1e6},
            "sample": {"space": space, "trials": trials},
            "resources": {"workers": workers},
        }
    )


class Clock:
    """When Ray was up, and when each trial was booked, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.up: float | None = None
        self.booked: list[float] = []

    def observe(self, progress: Any) -> None:
        assert progress.kind != "failed", progress.event
        if progress.kind == "done":
            self.booked.append(time.perf_counter())

    @contextmanager
    def ray(self, started: Any) -> Iterator[None]:
        with started:
            self.up = time.perf_counter()
            yield


def searched(trials: int, workers: int, run: Path, steps: int = 0) -> Clock:
    """A search whose trials are `steps` of work."""
    from trials import EmptyContext

    from planter.driver import run as driver
    from planter.driver.backends import ray_session

    clock = Clock()
    start, make = ray_session._ray, driver.Context
    ray_session._ray = lambda *given: clock.ray(start(*given))  # type: ignore[assignment]
    driver.Context = partial(EmptyContext, steps=steps)  # type: ignore[misc, assignment]
    try:
        clock.began = time.perf_counter()
        driver.search(study(trials, workers), out=run, observe=clock.observe)
    finally:
        ray_session._ray, driver.Context = start, make
    assert len(clock.booked) >= min(trials, CYCLES)
    return clock


def planter(folder: Path) -> dict[str, float]:
    clock = searched(EMPTY, WORKERS, folder / "run")
    assert clock.up is not None
    return {
        "seconds": clock.booked[-1] - clock.up,
        "first_s": clock.booked[0] - clock.up,
        "ray_starts_s": clock.up - clock.began,
    }


def ray_tune(folder: Path, reused: bool) -> dict[str, float]:
    """Twelve empty trials without planter."""
    # A token of this process, as planter's own: Ray would write one to the home folder.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if reused:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    class Empty(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import torch  # noqa: F401

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            return {"accuracy": 0.5, "macs": 1000, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}  # a Tuner asks for one at the end

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

    def empty(config: dict[str, Any]) -> None:
        import torch  # noqa: F401

        tune.report({"accuracy": 0.5, "macs": 1000})

    widths = {name: tune.choice([8, 12, 16, 24, 32]) for name in ("early", "late", "fc1")}
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    up = time.perf_counter()
    tuner = tune.Tuner(
        Empty if reused else empty,
        param_space={**widths, "temperature": tune.uniform(1, 6)},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric=["accuracy", "macs"], mode=["max", "min"]),
            num_samples=EMPTY,
            reuse_actors=reused,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    results = tuner.fit()
    seconds = time.perf_counter() - up
    assert len(results) == EMPTY
    assert not results.errors
    ray.shutdown()
    return {"seconds": seconds}


def long(folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    fill(folder / "run", LONG - 1)
    filled = time.perf_counter() - began
    clock = searched(LONG - 1 + CYCLES + 1, 0, folder / "run")
    cycles = [b - a for a, b in zip(clock.booked, clock.booked[1:], strict=False)]
    return {
        "seconds": statistics.fmean(cycles),
        "median_s": statistics.median(cycles),
        "longest_s": max(cycles),
        "filling_s": filled,
    }


def fill(run: Path, count: int) -> None:
    """A study's database with so many finished trials."""
    import optuna
    from optuna.trial import TrialState
    from trials import outcome_of, space

    from planter.driver.storage.points import (
        METRICS,
        PointBook,
        database_url,
        open_storage,
        open_study,
    )
    from planter.driver.trials.jobs import points_of

    run.mkdir()
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [draws.ask() for _ in range(200)]
    for trial in drawn:
        space(trial)
    generator = random.Random(0)
    with closing(open_storage(database_url(run, None), alone=True)) as storage:
        book, rows = PointBook(storage, "driver"), []
        sampling = open_study(storage, "driver/sampling", METRICS)
        for number in range(count):
            trial = drawn[number % len(drawn)]
            params = {
                name: generator.uniform(kind.low, kind.high)
                if isinstance(kind, optuna.distributions.FloatDistribution)
                else trial.params[name]
                for name, kind in trial.distributions.items()
            }
            outcome = {**outcome_of(number, params), "seconds": 0.001}
            told = outcome["points"][0]
            rows.append(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE,
                    values=[told["accuracy"], told["macs"]],
                    params=params,
                    distributions=trial.distributions,
                    user_attrs={"result": json.dumps(outcome)},
                )
            )
            points = points_of(f"s{number:04d}", "sample", outcome)
            book.add(points, params, trial.distributions)
        storage.add_finished(sampling._study_id, rows)


def efficiency(folder: Path) -> dict[str, Any]:
    as_a_worker()
    timed(20)
    steps = round(SECONDS / min(timed(500) for _ in range(3)) * 500)
    alone = min(timed(steps) for _ in range(2))
    clock = searched(BUSY, WORKERS, folder / "run", steps)
    assert clock.up is not None
    with multiprocessing.get_context("spawn").Pool(WORKERS, initializer=as_a_worker) as pool:
        pool.map(timed, [20] * WORKERS, chunksize=1)
        beside = [s for _ in range(2) for s in pool.map(timed, [steps] * WORKERS, chunksize=1)]
    alone = min(alone, timed(steps))
    wall = clock.booked[-1] - clock.up
    return {
        "efficiency": BUSY * alone / (WORKERS * wall),
        "seconds": wall,
        "alone_s": alone,
        "two processes": alone / statistics.fmean(beside),
    }


def as_a_worker() -> None:
    """One thread, and memory kept as a worker keeps it: what is compared is the same work."""
    torch.set_num_threads(1)
    keep_memory()


def timed(steps: int) -> float:
    from trials import work

    began = time.perf_counter()
    work(steps)
    return time.perf_counter() - began


def measured(part: str) -> dict[str, Any]:
    """A part, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="planter-") as folder:
        file = Path(folder) / "measured.json"
        command = [sys.executable, __file__, "--part", part, "--to", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{part} failed\n{done.stdout}\n{done.stderr}")
        found: dict[str, Any] = json.loads(file.read_text())
    print(f"{part}: {found}", file=sys.stderr)
    return found


def run_part(part: str, to: Path) -> None:
    logging.getLogger("planter").setLevel(logging.ERROR)
    parts = {
        "planter": planter,
        "tune": partial(ray_tune, reused=False),
        "reused": partial(ray_tune, reused=True),
        "long": long,
        "efficiency": efficiency,
    }
    with tempfile.TemporaryDirectory(prefix="planter-") as folder:
        to.write_text(json.dumps(parts[part](Path(folder))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    only = ("empty", "long", "efficiency")
    parser.add_argument("--only", nargs="+", choices=only, default=only)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        run_part(given.part, given.to)
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(given.rounds if "empty" in given.only else 0):
        for part in ("planter", "reused", "tune"):
            found.setdefault(part, []).append(measured(part))
    for part in ("long", "efficiency"):
        if part in given.only:
            found[part] = [measured(part)]
    medians = {part: statistics.median(m["seconds"] for m in each) for part, each in found.items()}
    claims = []
    if "planter" in found:
        claims.append(claim("12 empty trials, s", medians["planter"], "<=", 4))
    if "long" in found:
        claims.append(claim("a trial at the 2,000th, s", medians["long"], "<=", 0.2))
    if "efficiency" in found:
        value = found["efficiency"][0]["efficiency"]
        claims.append(claim("parallel efficiency, 20 trials of 5 s", value, ">=", 0.95))
    if given.json:
        report = {"claims": claims, "medians_s": medians, "measured": found, **surroundings()}
        print(json.dumps(report, indent=2))
        return
    for part, seconds in medians.items():
        print(f"{part:12} {seconds:8.3f} s")
    print_claims(claims)


if __name__ == "__main__":
    main()
