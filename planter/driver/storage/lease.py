"""Which run folder and which driver a study in a storage belongs to: folders lock themselves,
databases do not."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from optuna.storages import BaseStorage

from planter.driver.storage.points import metrics_of, open_study
from planter.driver.trials.jobs import ANOTHER_NAME, SearchStoppedError
from planter.front.objectives import SEARCHED
from planter.study.schema import Problem, StudyError

_FOLDER, _DRIVER, _STOP, _STANDING = "run_folder", "driver", "stop", "standing"
Stop = Literal["finish", "now"]
"""How a search is asked to stop: when the running trainings are finished, or at their next
checkpoints."""


def driver_of(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Who holds a study, by the attributes of its points: `pid`, `host`, `folder`, `token`."""
    held: dict[str, Any] | None = attributes.get(_DRIVER)
    return held


def standing_of(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the driver last wrote of its search. See `Lease.tell`."""
    told: dict[str, Any] | None = attributes.get(_STANDING)
    return told


def ask_to_stop(storage: BaseStorage, study: int, how: Stop) -> dict[str, Any] | None:
    """Asks whoever holds a study now, and no later driver, to stop. Who that is, None where nobody
    does."""
    held = driver_of(storage.get_study_user_attrs(study))
    if held is not None:
        storage.set_study_user_attr(study, _STOP, {"token": held["token"], "how": how})
    return held


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
        self.asked: Stop | None = None
        """How the search was asked to stop, as of the last check."""
        self._study.set_user_attr(_DRIVER, {"token": self._token, "pid": os.getpid(), **here})

    def check(self) -> None:
        """Raises SearchStoppedError where another driver has taken over."""
        attributes = self._study.user_attrs
        held = driver_of(attributes)
        if held is None or held["token"] != self._token:
            by = (
                f"{held['folder']} on {held['host']}, process {held['pid']}"
                if held
                else "a search that has ended since"
            )
            raise SearchStoppedError(
                f"another driver took this study over ({by}); expected one driver a study"
            )
        stop = attributes.get(_STOP)
        if stop is not None and stop["token"] == self._token:
            self.asked = stop["how"]

    def tell(self, standing: Mapping[str, Any]) -> None:
        """Writes where the search stands, for those who watch it."""
        self._study.set_user_attr(_STANDING, dict(standing))

    def release(self) -> None:
        """Lets go, unless another has it or the storage is away."""
        with suppress(SearchStoppedError):
            held = driver_of(self._study.user_attrs)
            if held is not None and held["token"] == self._token:
                self._study.set_user_attr(_DRIVER, None)
