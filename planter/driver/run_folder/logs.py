"""A trial's own log, and a line for each of its epochs."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from planter.machine.disk import when_there_is_space
from planter.training.loop import Epoch


class _TrialLog(logging.FileHandler):
    """A log whose disk may be full: what it cannot take for now, and is a warning, goes to stderr;
    the training goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file cannot be made
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
        elif logging.lastResort is not None and record.levelno >= logging.WARNING:
            logging.lastResort.handle(record)


_LOGGERS = [logging.getLogger("planter"), logging.getLogger("py.warnings")]
_writing: Counter[int] = Counter()
"""Open logs, by the thread whose trial they are of."""
_levels_before: list[int] = []


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Sends the package's log and Python's warnings to a trial's own file, but for what a thread
    says that has another trial's log open."""
    handler = _TrialLog(file, delay=True, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    me = threading.get_ident()
    handler.addFilter(lambda record: record.thread == me or record.thread not in _writing)
    if not _writing:
        _levels_before[:] = [logger.level for logger in _LOGGERS]
        logging.captureWarnings(True)
    _writing[me] += 1
    for logger in _LOGGERS:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in _LOGGERS:
            logger.removeHandler(handler)
        _writing[me] -= 1
        if not _writing[me]:
            del _writing[me]
        if not _writing:  # logs of several threads close in any order
            logging.captureWarnings(False)
            for logger, level in zip(_LOGGERS, _levels_before, strict=True):
                logger.setLevel(level)
        with suppress(OSError):  # of what is still unwritten
            handler.close()


MacsAfter = Callable[[int], int]
"""Multiply-adds of a training after so many of its epochs."""


def epochs_to(file: Path, macs_after: MacsAfter | None = None) -> Callable[[Epoch], None]:
    """Writes a line an epoch, with what the training has taken by then; lines of epochs that are
    trained again are replaced."""

    def note(epoch: Epoch) -> None:
        took = {} if macs_after is None else {"train_macs": macs_after(epoch.epoch)}
        _write_line(file, epoch.epoch, {**line_of(epoch), **took})

    return lambda epoch: when_there_is_space(lambda: note(epoch), file.parent)


def line_of(epoch: Epoch) -> dict[str, Any]:
    """What a line says of an epoch: of its validation where there was one."""
    told = {key: value for key, value in epoch._asdict().items() if value is not None}
    if (measure := told.pop("val_measure", None)) is not None:
        name, value = measure
        told[f"val_{name}"] = value
    return told


def lost_epoch_to(file: Path, macs_after: MacsAfter, lr_at: Callable[[int], float]) -> None:
    """Writes a line of the epoch behind the last one, which was trained in vain: its loss is no
    number."""
    done = len(file.read_bytes().splitlines()) if file.is_file() else 0
    line = {"epoch": done + 1, "loss": None, "lr": lr_at(done), "seconds": 0.0}
    line["train_macs"] = macs_after(done + 1)
    when_there_is_space(lambda: _write_line(file, done + 1, line), file.parent)


def taken_by(trial: Path) -> tuple[int, float]:
    """Multiply-adds and seconds of all epochs that the logs below a trial's folder know of."""
    macs, seconds = 0, 0.0
    for file in trial.rglob("metrics.jsonl"):
        most = 0
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last one, of a worker that was killed at it
                epoch = json.loads(line)
                most = max(most, epoch.get("train_macs", 0))
                seconds += epoch["seconds"]
        macs += most
    return macs, round(seconds, 3)


def _write_line(file: Path, number: int, line: Mapping[str, Any]) -> None:
    """Writes the line of that number, counted from 1, and nothing behind it."""
    file.parent.mkdir(exist_ok=True)
    with file.open("ab+") as out:
        out.seek(0)
        before = b"".join(out.readlines()[: number - 1])
        out.truncate(len(before))
        out.write(json.dumps(dict(line)).encode() + b"\n")
