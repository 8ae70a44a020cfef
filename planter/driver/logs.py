"""A trial's own log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
    handler = _TrialLog(file, delay=True)
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
