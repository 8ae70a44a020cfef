"""`make soak KILLS=20 SEED=1`: kills drivers and workers of searches at random moments.

Drivers are killed with all they started, or alone, so that their workers go on for a while; workers
are killed one at a time, at trials and between them. Moments are drawn over the whole course of
a search. Each search is then continued to its end and must hold exactly the asked trials, every one
once and finished, with the points of a search that nobody disturbed: of the teacher, the baselines
and planting, and of sampled trials too where the sampler does not look at results; with early
stopping, of those that were trained to their end. A kill that
finds its search complete does not count. A line a kill, a summary in JSON at the end; exit code 1
where anything did not hold.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from kills import (
    DEADLINE_S,
    TRIALS,
    born,
    descendants,
    differences,
    held,
    kill,
    log_of,
    points_of,
    start,
    unlike_their_models,
    workers,
)
from test_driver import assert_complete, write_study

KILLS_A_TURN = 5
NOTICED_S = 120.0
DIED = "its worker process died"
TIMING_FREE = ("teacher", "baseline", "plant")
WAYS = {
    "random": ["sample.sampler=random"],
    "tpe": ["sample.sampler=tpe"],
    "stopped": ["sample.sampler=random", "sample.early_stopping={rungs: [0.25, 0.5], wait: 2}"],
}
"""How searches sample, in turn."""


@dataclass
class Soak:
    """What is drawn, what was found, and where it happens."""

    folder: Path
    generator: random.Random
    kills: int
    seconds: float = 0.0
    reference: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    searches: int = 0
    problems: list[str] = field(default_factory=list)
    orphans: dict[int, str | None] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def fresh(self) -> tuple[Path, str]:
        """A folder for another search, and the way it shall sample: each in turn."""
        self.searches += 1
        folder = self.folder / f"search{self.searches:02d}"
        folder.mkdir()
        write_study(folder)
        return folder, list(WAYS)[self.searches % len(WAYS)]

    def begin(self, folder: Path, way: str) -> subprocess.Popen[bytes]:
        self.process = start(folder, *WAYS[way])
        return self.process

    def undisturbed(self) -> None:
        """Measures how long a search takes, and keeps what it finds."""
        folder, _ = self.fresh()
        began = time.monotonic()
        assert self.begin(folder, "random").wait(DEADLINE_S) == 0, log_of(folder)
        self.seconds = time.monotonic() - began
        self.reference = points_of(folder / "run")
        self.judge(folder, "random")
        print(f"undisturbed: {self.seconds:.1f} s, {len(self.reference)} points", flush=True)

    def run(self) -> None:
        """Kills as many drivers and as many workers as asked, some of each in turn."""
        self.undisturbed()
        drivers = workers_left = self.kills
        while drivers or workers_left:
            if drivers:
                self.kill_drivers(now := min(drivers, KILLS_A_TURN))
                drivers -= now
            if workers_left:
                workers_left -= self.kill_workers(min(workers_left, KILLS_A_TURN))

    def judge(self, folder: Path, way: str) -> None:
        """Notes all that does not hold of a search that has ended."""
        methods = TIMING_FREE if way == "tpe" else (*TIMING_FREE, "sample")
        found = []
        try:
            stopped = assert_complete(folder / "run", TRIALS, may_stop=way == "stopped")
            expected = {k: v for k, v in self.reference.items() if v["trial"] not in stopped}
            found += differences(folder / "run", expected, methods)
            found += unlike_their_models(folder / "run")
        except Exception:  # a broken run may raise anything; it is one finding among others
            found.append(traceback.format_exc())
        alive = self._left_alive()
        found += [f"process {pid} of a killed driver still runs" for pid in alive]
        kill(*alive)
        self.orphans.clear()
        self.problems += [f"{folder.name}: {problem}" for problem in found]
        print(f"{folder.name} ({way}): {'; '.join(found) or 'sound'}", flush=True)

    def _left_alive(self) -> list[int]:
        """Processes of killed drivers that have not ended within two minutes of the search's end:
        Ray's agents notice late."""
        end = time.monotonic() + NOTICED_S
        while True:
            alive = [pid for pid, since in self.orphans.items() if since and born(pid) == since]
            if not alive or time.monotonic() > end:
                return alive
            time.sleep(0.5)

    def ended(self, folder: Path, way: str, process: subprocess.Popen[bytes]) -> None:
        """Waits for a search's end and judges it."""
        try:
            code = process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            kill(process.pid, *descendants(process.pid))
            code = process.wait()
        if code != 0:
            self.problems.append(f"{folder.name}: exit code {code}\n{log_of(folder)}")
        self.judge(folder, way)

    def stop(self) -> None:
        """Ends the search that runs, and what is left of killed drivers."""
        if self.process is not None and self.process.poll() is None:
            kill(self.process.pid, *descendants(self.process.pid))
            self.process.wait()
        kill(*(pid for pid, since in self.orphans.items() if since and born(pid) == since))

    def note(self, kind: str, after: float, names: list[str]) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        at_work = ", ".join(names) or "nothing"
        print(
            f"{kind} {self.counts[kind]}: {after:.1f} s after its start, at {at_work}", flush=True
        )

    def kill_drivers(self, kills: int) -> None:
        """Kills drivers, every other one alone, and continues each search until it is complete."""
        folder, way = self.fresh()
        process, delay = self._running(folder, way)
        for number in range(kills):
            while process.poll() is not None:
                self.ended(folder, way, process)
                folder, way = self.fresh()
                process, delay = self._running(folder, way)
            below = descendants(process.pid)
            names = {name for pid in below for name in held(pid, folder / "run")}
            alone = number % 2 == 0
            kill(process.pid, *([] if alone else below))
            process.wait()
            if alone:
                self.orphans |= {pid: born(pid) for pid in below}
            self.note("driver alone" if alone else "driver and all", delay, sorted(names))
            if number + 1 < kills:
                process, delay = self._running(folder, way)
        self.ended(folder, way, self.begin(folder, way))

    def _running(self, folder: Path, way: str) -> tuple[subprocess.Popen[bytes], float]:
        """A search, begun or continued, after a delay over the whole course of one; it may have
        ended, and then says how long one takes now."""
        fresh = not (folder / "run").exists()
        began, delay = time.monotonic(), self.generator.uniform(0, self.seconds)
        process = self.begin(folder, way)
        if _ends_within(process, delay) and fresh:
            self.seconds = time.monotonic() - began
        return process, delay

    def kill_workers(self, kills: int) -> int:
        """Kills workers of a search whose driver lives, no trial's twice: a trial hit twice is
        given up. How many it did: the search may end before."""
        folder, way = self.fresh()
        moments = sorted(self.generator.uniform(0, self.seconds) for _ in range(kills))
        began, done = time.monotonic(), 0
        process = self.begin(folder, way)
        for moment in moments:
            if _ends_within(process, began + moment - time.monotonic()):
                break
            done += self._kill_worker(folder, process, began)
        self.ended(folder, way, process)
        return done

    def _kill_worker(self, folder: Path, process: subprocess.Popen[bytes], began: float) -> int:
        """Kills one worker as soon as there is one to kill; how many that were."""
        while process.poll() is None:
            hit = _tried_again(folder)
            at_work = {pid: held(pid, folder / "run") for pid in workers(process.pid)}
            # One that holds no trial may have been handed any of those that are tried again.
            able = [pid for pid, n in at_work.items() if not hit & {*n} and (n or not hit)]
            if able:
                pid = self.generator.choice(sorted(able))
                kill(pid)
                self.note("worker", time.monotonic() - began, at_work[pid])
                _wait_for_news(folder, process, hit)
                return 1
            time.sleep(0.02)
        return 0

    def summary(self, seed: int, seconds: float) -> dict[str, Any]:
        packages = ("planter", "torch", "ray", "optuna")
        return {
            "ok": not self.problems,
            "kills": self.counts,
            "searches": self.searches,
            "trials_a_search": len({name.partition("/")[0] for name in self.reference}),
            "undisturbed_s": round(self.seconds, 1),
            "seconds": round(seconds, 1),
            "seed": seed,
            "machine": {"cpu": _processor(), "cores": os.cpu_count(), "os": platform.platform()},
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in packages},
            },
            "problems": self.problems,
        }


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        return False
    return True


def _tried_again(folder: Path) -> set[str]:
    """Trials whose worker has died, as the driver tells it."""
    lines = [line for line in log_of(folder).splitlines() if DIED in line]
    return {line.partition(" failed")[0].split()[-1] for line in lines}


def _wait_for_news(folder: Path, process: subprocess.Popen[bytes], known: set[str]) -> None:
    """Until the driver has noticed; it says nothing of a worker that had no job."""
    end = time.monotonic() + 15
    while time.monotonic() < end and process.poll() is None and _tried_again(folder) == known:
        time.sleep(0.05)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((n.partition(": ")[2] for n in lines if n.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of drivers, and again of workers")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planter-soak-") as folder:
        soak = Soak(Path(folder), random.Random(given.seed), given.kills)
        try:
            soak.run()
        except KeyboardInterrupt:
            soak.problems.append("interrupted before all kills were done")
            soak.stop()
        summary = soak.summary(given.seed, time.monotonic() - began)
    print(json.dumps(summary, indent=2))
    sys.exit(int(bool(summary["problems"])))


if __name__ == "__main__":
    main()
