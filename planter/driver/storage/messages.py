"""What Optuna warns of: each thing once, where a live display does not get torn."""

from __future__ import annotations

import logging
import re
import sys

import optuna


class _Once(logging.Handler):
    """Writes to what stderr is at the moment, a live display's as well; of messages that differ in
    their numbers alone the first: a sampler that warns does so in every trial."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        kind = re.sub(r"\d+", "#", message)
        if kind not in self._said:
            self._said.add(kind)
            sys.stderr.write(f"optuna: {message}\n")


def tell_warnings_once() -> None:
    """Replaces Optuna's own handler, which holds on to the stderr it found at its import."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()
    logger = logging.getLogger("optuna")
    if not any(isinstance(handler, _Once) for handler in logger.handlers):
        logger.addHandler(_Once())
