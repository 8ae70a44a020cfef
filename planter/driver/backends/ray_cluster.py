"""A Ray cluster that runs already: to join it, what it has room for, and the end of its head."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_CONNECT_S = 5.0
_AWAY_S = 30.0
"""Less than the 60 s after which Ray ends a process whose head is gone without another word."""

log = logging.getLogger(__name__)


def join(address: str, **options: Any) -> None:
    """Makes this process a driver of the cluster at `address`. Raises ValueError where there is
    none, or it does not let us in."""
    import ray

    if address != "auto":
        try:
            _connect(address)
        except OSError as error:
            raise ValueError(
                f"no Ray cluster at {address}: {error}; expected host:port of a machine where "
                "`ray start --head --port PORT` runs"
            ) from error
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ValueError(
            f"cannot join the Ray cluster at {address}: {error}; expected a node of it on this "
            "machine, too (`ray start --address ...`), the same versions of Python and Ray, and, "
            "where it asks for a token, RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
        ) from error


def _connect(address: str) -> None:
    """Raises ValueError for what is no host:port, OSError where nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--ray-address {address!r}: expected host:port")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def room_for(asked: Mapping[str, float], address: str) -> Callable[[], int]:
    """A function that says how many workers that ask for so much (`cpu`, `gpu`) the machines of the
    cluster hold now. Raises ValueError where that is none."""
    import ray

    told = False

    def room() -> int:
        nonlocal told
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        found = sum(
            min(_fit(have.get(name.upper(), 0), each) for name, each in asked.items())
            for have in alive
        )
        if not found and not told:
            log.warning("no machine of the Ray cluster has room for a worker; waiting for one")
        told = not found
        return found

    if not room():
        wanted = ", ".join(f"{name} {each:g}" for name, each in asked.items())
        raise ValueError(
            f"the Ray cluster at {address} has no machine with resources of a worker ({wanted}): "
            "expected less in the study's resources, or a larger machine"
        )
    return room


def _fit(have: float, each: float) -> int:
    """How many shares of `each` fit; a fraction is one of a single GPU."""
    return int(have) * int(1 / each + 1e-9) if each < 1 else int(have // each)


@contextmanager
def watched(address: str | None) -> Iterator[None]:
    """Ends this process with exit code 4, and says how to go on, when the head of the cluster has
    not answered for half a minute: Ray's calls would not return, and nothing is lost by it."""
    if address is None or address == "auto":
        yield
        return
    done = threading.Event()
    threading.Thread(target=_watch, args=(address, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(address: str, done: threading.Event) -> None:
    answered = time.monotonic()
    while not done.wait(_CONNECT_S):
        try:
            _connect(address)
        except OSError as error:
            if time.monotonic() - answered > _AWAY_S:
                log.error(
                    "stopped: the Ray cluster at %s is gone (%s); with a cluster again, the same "
                    "command goes on",
                    address,
                    error,
                )
                os._exit(4)
        else:
            answered = time.monotonic()
