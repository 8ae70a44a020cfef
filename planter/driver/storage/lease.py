"""Which run folder and which driver a study in a storage belongs to: folders lock themselves,
databases do not."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from planter.driver.storage.points import metrics_of, open_study
from planter.driver.trials.jobs import ANOTHER_NAME, SearchStoppedError
from planter.front.objectives import SEARCHED
from planter.study.schema import Problem, StudyError

_FOLDER, _DRIVER = "run_folder", "driver"


class Lease:
    """One driver's hold on a study, an attribute of the study of points, until `release`.

    The folder's lock turns a second driver away. Where it cannot (the folder was copied to another
    machine, or taken over), the driver that came last holds the study, and the one before stops.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        run: Path,
        run_id: str,
        objectives: Sequence[str] = SEARCHED,
    ) -> None:
        """Takes the study. Raises StudyError where it was begun in another run folder: there lie
        the networks that going on needs."""
        self._study = open_study(storage, name, metrics_of(objectives))
        here = {"folder": str(run), "host": socket.gethostname()}
        begun = self._study.user_attrs.get(_FOLDER)
        if begun is None:
            self._study.set_user_attr(_FOLDER, {"id": run_id, **here})
        elif begun["id"] != run_id:
            raise StudyError(
                str(run),
                [
                    Problem(
                        "storage",
                        f"a study {name!r} that is begun in {begun['folder']} on {begun['host']}",
                        f"that run folder, or a copy of all of it (.id too); or {ANOTHER_NAME}",
                    )
                ],
            )
        self._token = secrets.token_hex(8)
        self._study.set_user_attr(_DRIVER, {"token": self._token, "pid": os.getpid(), **here})

    def check(self) -> None:
        """Raises SearchStoppedError where another driver has taken over."""
        held = self._held()
        if held is None or held["token"] != self._token:
            by = (
                f"{held['folder']} on {held['host']}, process {held['pid']}"
                if held
                else "a search that has ended since"
            )
            raise SearchStoppedError(
                f"another driver took this study over ({by}); expected one driver a study"
            )

    def release(self) -> None:
        """Lets go, unless another has it or the storage is away."""
        with suppress(SearchStoppedError):
            held = self._held()
            if held is not None and held["token"] == self._token:
                self._study.set_user_attr(_DRIVER, None)

    def _held(self) -> dict[str, Any] | None:
        held: dict[str, Any] | None = self._study.user_attrs.get(_DRIVER)
        return held
