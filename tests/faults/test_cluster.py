"""Searches on a Ray cluster: machines lost, GPUs shared, wrong addresses, a head that ends.

The cluster's machines are processes of this one, on the loopback, behind a token.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kills import (
    DEADLINE_S,
    SETTINGS,
    TRIALS,
    descendants,
    differences,
    held,
    kill,
    log_of,
    points_of,
    start,
    unlike_their_models,
)
from test_driver import assert_complete, write_study

import planter
from planter.driver.backends import ray_session as cluster_module
from planter.driver.backends.ray_cluster import join, room_for
from planter.driver.checking.check import prepare
from planter.driver.trials.jobs import SearchStoppedError
from planter.study.file import read_study
from planter.study.schema import StudyError

# A head with one core, and a machine with two and, so it says, a GPU; a line of input takes the
# second away.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=2, num_gpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(other, allow_graceful=False)
"""
# A search whose workers train on the CPU whatever they were given: the GPU is not there.
ON_THE_CPU = """
import dataclasses
from planter.cli import main
from planter.driver import run
Context = run.Context
run.Context = lambda *fields: dataclasses.replace(Context(*fields), device="cpu")
main()
"""
BUILDER = """
import os, time
from pathlib import Path
from planter.backbones.convnet import convnet

def build(widths, *, classes=10, image=(1, 8, 8)):
    if Path("/proc/self/cmdline").read_bytes().startswith(b"ray::"):
        seen = Path(os.environ["SEEN"])
        (seen / f"{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
        end = time.monotonic() + 60
        while len(list(seen.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.05)  # until the other is at work, too
    return convnet(widths, classes=classes, image=image)

build.widths = {**dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5"], 8), "fc1": 8}
"""
SHARED = """
name: shared
data: {name: digits, subset: 240}
baselines:
  - {builder: 'sharednets:build', widths: 4}
  - {builder: 'sharednets:build', widths: 5}
recipe: {epochs: 1, batch: 50, optimizer: adam, lr: 0.01}
resources: {workers: 2, gpu: 0.5}
"""


class Cluster:
    """A cluster in a process of its own, and the environment of what may join it."""

    def __init__(self, folder: Path) -> None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Without this Ray listens on all addresses of a machine.
        loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = {**os.environ, **token, **loopback, "OMP_NUM_THREADS": "1"}
        self.environment["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
        self.environment["SEEN"] = str(folder / "seen")
        with (folder / "cluster.txt").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CLUSTER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("127.0.0.1:"), (folder / "cluster.txt").read_text()

    def lose_a_machine(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        kill(self.process.pid, *descendants(self.process.pid))
        self.process.communicate()

    def search(self, folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
        address = ("--ray-address", self.address)
        return start(
            folder, "sample.sampler=random", *overrides, options=address, env=self.environment
        )

    def at_work(self, folder: Path) -> dict[int, set[str]]:
        """The processes of the cluster that train, and the trials that each trains."""
        pids = descendants(self.process.pid)
        return {pid: set(found) for pid in pids if (found := held(pid, folder / "run"))}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "seen").mkdir()
    (folder / "sharednets.py").write_text(BUILDER)
    started = Cluster(folder)
    yield started
    started.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    overrides = [*SETTINGS, "sample.sampler=random", "resources.workers=0", "recipe.epochs=40"]
    planter.search(write_study(folder), out=folder / "run", overrides=overrides)
    return points_of(folder / "run")


def assert_sound(folder: Path, undisturbed: dict[str, dict[str, Any]]) -> None:
    assert_complete(folder / "run", TRIALS)
    every = ("teacher", "baseline", "plant", "sample")
    assert differences(folder / "run", undisturbed, every) == []
    assert unlike_their_models(folder / "run") == []


def wait_until(what: Callable[[], bool], folder: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < end, log_of(folder)
        assert process.poll() is None, log_of(folder)
        time.sleep(0.02)


@pytest.mark.cluster
def test_two_workers_share_a_gpu_that_the_drivers_machine_does_not_have(cluster, tmp_path):
    file = tmp_path / "shared.yaml"
    file.write_text(SHARED)
    command = [
        sys.executable,
        "-c",
        ON_THE_CPU,
        "search",
        str(file),
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [*command, "--ray-address", cluster.address],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    seen = {f.name: f.read_text() for f in Path(cluster.environment["SEEN"]).iterdir()}
    assert list(seen.values()) == ["0", "0"], "two processes, both with the machine's only GPU"


@pytest.mark.cluster
def test_who_has_not_the_token_is_not_let_in(cluster, tmp_path):
    write_study(tmp_path)
    environment = {k: v for k, v in cluster.environment.items() if not k.startswith("RAY_AUTH")}
    process = start(
        tmp_path,
        options=("--ray-address", cluster.address),
        env={**environment, "HOME": str(tmp_path)},
    )
    assert process.wait(DEADLINE_S) == 2, log_of(tmp_path)
    assert "cannot join the Ray cluster at" in log_of(tmp_path)
    assert "RAY_AUTH_TOKEN" in log_of(tmp_path)


@pytest.mark.cluster
def test_what_no_machine_has_room_for_is_refused(cluster, tmp_path):
    write_study(tmp_path)
    process = cluster.search(tmp_path, "resources.cpu=7")
    assert process.wait(DEADLINE_S) == 2, log_of(tmp_path)
    assert "no machine with resources of a worker (cpu 7)" in log_of(tmp_path)


@pytest.mark.cluster
def test_a_search_that_loses_a_machine_trains_its_trials_again(cluster, tmp_path, undisturbed):
    write_study(tmp_path)
    process = cluster.search(tmp_path, "recipe.epochs=40", "resources.workers=3")
    try:
        # Three at work on one core and two: two of them will be lost. Who comes first waits for the
        # others, however short its training is. All need the teacher.
        waiting: set[int] = set()

        def three_are_at_work() -> bool:
            for pid, trials in cluster.at_work(tmp_path).items():
                if pid not in waiting and "teacher" not in trials:
                    os.kill(pid, signal.SIGSTOP)
                    waiting.add(pid)
            return len(waiting) >= 3

        wait_until(three_are_at_work, tmp_path, process)
        cluster.lose_a_machine()
        for pid in waiting & set(descendants(cluster.process.pid)):
            os.kill(pid, signal.SIGCONT)
        assert process.wait(DEADLINE_S) == 0, log_of(tmp_path)
    finally:
        kill(process.pid)
    again = log_of(tmp_path).count("its worker process died; it is tried again")
    assert again >= 2
    assert_sound(tmp_path, undisturbed)


@pytest.mark.cluster
def test_a_search_whose_clusters_head_ends_says_how_to_go_on_and_goes_on(
    cluster, tmp_path, undisturbed
):
    write_study(tmp_path)
    process = cluster.search(tmp_path, "recipe.epochs=40")
    try:
        wait_until(lambda: " done:" in log_of(tmp_path), tmp_path, process)
        cluster.end()
        assert process.wait(DEADLINE_S) == 4, log_of(tmp_path)
    finally:
        kill(process.pid)
    assert f"the Ray cluster at {cluster.address} is gone" in log_of(tmp_path)
    assert "the same command goes on" in log_of(tmp_path)
    alone = start(tmp_path, "sample.sampler=random", "recipe.epochs=40")
    assert alone.wait(DEADLINE_S) == 0, log_of(tmp_path)
    assert_sound(tmp_path, undisturbed)


@pytest.mark.parametrize(
    "address", ["nonsense", ":6379", "host:", "host:port", "host:0", "h:65536"]
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match="expected host:port"):
        join(address)


def test_an_address_where_nobody_listens_is_refused_before_ray_waits(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    study = write_study(tmp_path)
    with pytest.raises(ValueError, match=rf"no Ray cluster at {address}: .*refused"):
        planter.search(
            study, out=tmp_path / "run", overrides=["resources.workers=1"], ray_address=address
        )


@pytest.mark.parametrize(
    ("asked", "room"),
    [
        ({"cpu": 1}, 5),
        ({"cpu": 2}, 2),
        ({"cpu": 3}, 1),
        ({"cpu": 1, "gpu": 1}, 2),
        ({"cpu": 1, "gpu": 0.5}, 3),  # the cores end before the four halves
        ({"cpu": 1, "gpu": 0.6}, 2),  # a share is one of a single GPU
        ({"cpu": 2, "gpu": 0.25}, 1),
    ],
)
def test_the_room_of_a_cluster_is_counted_machine_by_machine(monkeypatch, asked, room):
    import ray

    nodes = [
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 2.0, "memory": 1e9}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    count = room_for(asked, "host:6379")
    assert count() == room
    nodes[0]["Alive"] = nodes[1]["Alive"] = False
    assert count() == 0


def test_gpus_are_looked_for_here_only_where_training_is_here(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    study = read_study(write_study(tmp_path), ["resources.gpu=0.5"])
    with pytest.raises(StudyError, match=r"resources\.gpu"):
        prepare(study)
    assert prepare(study, elsewhere=True).networks


@pytest.mark.parametrize(("failures", "starts"), [(2, True), (3, False)])
def test_a_ray_that_a_busy_machine_does_not_let_start_is_started_again(
    tmp_path, monkeypatch, failures, starts
):
    import ray

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def init(**options):
        calls.append(options)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    if starts:
        cluster_module._start(address="local")
    else:
        with pytest.raises(SearchStoppedError, match="could not be started: The current node"):
            cluster_module._start(address="local")
    assert calls == 3 * [{"address": "local"}]
