"""A trial's own log, and a line for each of its epochs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Sends the package's log and Python's warnings to a trial's own file."""
    handler = _TrialLog(file, delay=True, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger("planter"), logging.getLogger("py.warnings")]
    levels = [logger.level for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        with suppress(OSError):  # of what is still unwritten
            handler.close()


def epochs_to(file: Path) -> Callable[[Epoch], None]:
    """Writes a line an epoch; lines of epochs that are trained again are replaced."""

    def note(epoch: Epoch) -> None:
        file.parent.mkdir(exist_ok=True)
        with file.open("ab+") as out:
            out.seek(0)
            before = b"".join(out.readlines()[: epoch.epoch - 1])
            out.truncate(len(before))
            out.write(json.dumps(epoch._asdict()).encode() + b"\n")

    return lambda epoch: when_there_is_space(lambda: note(epoch), file.parent)
