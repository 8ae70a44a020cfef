"""Jobs on Ray Tune workers: processes that import torch once and train one job after another."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from planter.driver.backends.parcel import pack
from planter.driver.backends.ray_cluster import join, room_for, watched
from planter.driver.backends.session_folder import places, remove_left_folders, session_folder
from planter.driver.backends.stacking import stacking
from planter.driver.tasks.context import Context
from planter.driver.trials.budget import seconds_for
from planter.driver.trials.jobs import Queue, SearchStoppedError

# Read by Ray when it is imported or started. Ray's own books, loggers and reports are switched
# off: the study's storage is the only truth, and the console is the user's.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_LOG_TO_DRIVER": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_LOGGER_LEVEL": "critical",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_STATE_REFRESH_PERIOD": "1000000000",
    "TUNE_WARN_THRESHOLD_S": "1000",
}
_TRAINING = "planter.driver.backends.ray_tune"
_LOGGERS = ("ray", "ray.tune", "ray.train", "ray.data")
_STORE_AT_LEAST = 150 * 2**20
_TRIES = 3

log = logging.getLogger(__name__)


def run_on_ray(context: Context, queue: Queue, workers: int, address: str | None = None) -> None:
    """Has Ray's workers do what a queue has, until it is complete: those of a Ray started for it
    alone, or of the cluster at `address`."""
    remove_left_folders(places())
    resources = context.study.resources
    asked = {"cpu": resources.cpu, **({"gpu": resources.gpu} if resources.gpu else {})}
    with (
        session_folder(places()) as folder,
        _ray(folder, context, workers, address),
        watched(address),
    ):
        from planter.driver.backends.ray_tune import run_tune

        # A Ray of our own counts a worker as one core, whatever its threads: Ray starts a
        # process a core, and each of them imports torch.
        shares = asked if address is not None else {**asked, "cpu": 1}
        room = room_for(asked, address) if address is not None else lambda: workers
        run_tune(
            pack(context),
            stacking(queue, context.study),
            workers,
            shares,
            folder,
            partial(seconds_for, resources),
            room,
            own=address is None,
        )


@contextlib.contextmanager
def _ray(folder: Path, context: Context, workers: int, address: str | None) -> Iterator[None]:
    """Ray, started for this search alone and bound to the loopback, or the cluster at `address`."""
    if os.getcwd().encode("utf-8", "ignore").decode() != os.getcwd():
        raise ValueError(
            "Ray cannot work in a folder whose name this locale cannot read: LC_ALL=C.UTF-8, or "
            "train in this process (--workers 0)"
        )
    with _left_as_found():
        _configure(context, workers, address)
        import ray

        _read_settings_again()
        # Before Ray's processes compete for the cores with it.
        importlib.import_module(_TRAINING)

        if ray.is_initialized():
            raise ValueError(
                "Ray already runs in this process: ray.shutdown() first, or train in this process "
                "(resources.workers: 0)"
            )
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        try:
            if address is None:
                _start(**_options(folder, context, workers), **quiet)
            else:
                join(address, **quiet)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, _interrupt)  # Ray has put its own there
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _left_as_found() -> Iterator[None]:
    """What Ray and we change in this process is afterwards as it was: the environment, the levels
    of loggers, the answer to SIGTERM."""
    environment = dict(os.environ)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main and before is not None:  # None: whoever put it there was no Python
            signal.signal(signal.SIGTERM, before)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        if "ray" in sys.modules:  # not where its import was interrupted
            _read_settings_again()


def _read_settings_again() -> None:
    """Ray reads its settings from the environment once a process: a caller who imported or used Ray
    before has had them read, and is not to find the token of this search afterwards."""
    compiled = importlib.import_module("ray._raylet")  # its types are not declared
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


def _configure(context: Context, workers: int, address: str | None) -> None:
    """Tells Ray through the environment what it reads there when it is imported or started."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["OMP_NUM_THREADS"] = str(context.study.resources.cpu)
    # Ray stages one trial at a time for a searcher it does not know.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)
    if address is None:
        # On Linux only this makes Ray take 127.0.0.1 for the address of its node.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Ray's processes import what trains when they start, not when they get their first job.
        os.environ.setdefault("RAY_preload_python_modules", _TRAINING)
    else:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # 20 s for a wrong token


def _options(folder: Path, context: Context, workers: int) -> dict[str, Any]:
    """How Ray is started for this search alone."""
    size = sum(array.nbytes for array in pack(context)["data"].values())
    return {
        "address": "local",
        "num_cpus": workers,
        "num_gpus": None if context.study.resources.gpu else 0,
        "include_dashboard": False,
        "object_store_memory": max(2 * size, _STORE_AT_LEAST),
        "_temp_dir": str(folder / "r"),
        "_node_ip_address": "127.0.0.1",
    }


def _start(**options: Any) -> None:
    """Starts Ray, once more where a busy machine does not let it come up within its 30 seconds.
    Raises SearchStoppedError where it never does."""
    import ray

    for tries_left in reversed(range(_TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            if type(error) is not Exception:  # Ray has no kind of its own for this one
                raise
            ray.shutdown()
            if not tries_left:
                raise SearchStoppedError(f"Ray could not be started: {error}") from error
            log.warning("Ray has not started (%s); it is tried again", error)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
