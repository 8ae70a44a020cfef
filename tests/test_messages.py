"""Optuna's warnings: once, and to what stderr is now."""

from __future__ import annotations

import optuna
import pytest

from planter.driver.storage.messages import tell_warnings_once


def test_a_warning_is_told_once_whatever_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    tell_warnings_once()
    tell_warnings_once()
    logger = optuna.logging.get_logger("optuna.samplers.mine")
    for trial in range(4):
        logger.warning("The parameter `at` in Trial#%d is sampled independently", trial)
        logger.info("Trial %d is drawn", trial)
    logger.warning("another thing")
    assert capsys.readouterr().err == (
        "optuna: The parameter `at` in Trial#0 is sampled independently\noptuna: another thing\n"
    )
