"""A storage that may be away for a while: what failed is repeated until it is back, bounded."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InterfaceError, OperationalError

from planter.driver.storage.bulk_insert import add_rows
from planter.driver.trials.jobs import SearchStoppedError

_PATIENCE_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class StorageAwayError(ConnectionError):
    """The storage could not be reached, or said that it cannot work now."""


def tell_when_away(engine: Engine) -> None:
    """Makes a database raise StorageAwayError where it is away.

    Optuna would take the error for a deadlock and add a trial once more, though the first may
    have been written before the connection broke.
    """

    @event.listens_for(engine, "handle_error")
    def raise_away(context: ExceptionContext) -> None:
        away = isinstance(context.sqlalchemy_exception, OperationalError | InterfaceError)
        if (away or context.is_disconnect) and not context.is_pre_ping:
            raise StorageAwayError(str(context.original_exception).strip())


def _patient(method: Callable[..., Any]) -> Any:
    """The method of a patient storage that may be repeated as it is."""

    def repeated(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        call = getattr(self._storage, method.__name__)
        return self._patiently(lambda: call(*args, **kwargs))

    return repeated


def _writing(method: Callable[..., Any]) -> Any:
    """The same of a method that writes to a trial: what was read of its study is forgotten."""
    patient = _patient(method)

    def forgetting(self: RetryingStorage, trial_id: int, *args: Any, **kwargs: Any) -> Any:
        self._forget(trial_id)
        return patient(self, trial_id, *args, **kwargs)

    return forgetting


class RetryingStorage(BaseStorage):
    """A storage whose calls wait while it is away, ever longer, for ten minutes at most.

    Then, and at every call after that, SearchStoppedError is raised: a driver whose write may or
    may not have happened must begin from what is written. Expects to be the only one to add trials.

    `alone` says that nobody else writes to trials either: those of a study are then read once after
    each of the process's own writes to them, however often they are asked for.
    """

    def __init__(
        self, storage: BaseStorage, close: Callable[[], None], *, alone: bool = False
    ) -> None:
        self._storage = storage
        self._close = close
        self._stopped: str | None = None
        self._waits = True
        self._alone = alone
        self._read: dict[int, list[FrozenTrial]] = {}
        self._study_of: dict[int, int] = {}
        self._counts: dict[int, int] = {}

    create_new_study = _patient(BaseStorage.create_new_study)
    delete_study = _patient(BaseStorage.delete_study)
    set_study_user_attr = _patient(BaseStorage.set_study_user_attr)
    set_study_system_attr = _patient(BaseStorage.set_study_system_attr)
    get_study_id_from_name = _patient(BaseStorage.get_study_id_from_name)
    get_study_name_from_id = _patient(BaseStorage.get_study_name_from_id)
    get_study_directions = _patient(BaseStorage.get_study_directions)
    get_study_user_attrs = _patient(BaseStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(BaseStorage.get_study_system_attrs)
    get_all_studies = _patient(BaseStorage.get_all_studies)
    set_trial_param = _writing(BaseStorage.set_trial_param)
    set_trial_intermediate_value = _writing(BaseStorage.set_trial_intermediate_value)
    set_trial_user_attr = _writing(BaseStorage.set_trial_user_attr)
    set_trial_system_attr = _writing(BaseStorage.set_trial_system_attr)
    get_trial_id_from_study_id_trial_number = _patient(
        BaseStorage.get_trial_id_from_study_id_trial_number
    )
    get_trial = _patient(BaseStorage.get_trial)
    get_best_trial = _patient(BaseStorage.get_best_trial)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Adds a trial once, also where the answer to the first try was lost."""
        if (before := self._counts.pop(study_id, None)) is None:
            before = len(self.get_all_trials(study_id, deepcopy=False))
        self._read.pop(study_id, None)

        def again() -> int:
            rows = self._storage.get_all_trials(study_id, deepcopy=False)
            if len(rows) > before:
                return rows[before]._trial_id
            return self._storage.create_new_trial(study_id, template_trial)

        trial_id = self._patiently(
            lambda: self._storage.create_new_trial(study_id, template_trial), again
        )
        self._counts[study_id] = before + 1
        self._study_of[trial_id] = study_id
        return trial_id

    def add_finished(self, study_id: int, rows: Sequence[FrozenTrial]) -> None:
        """Adds finished trials once: where it is a database, all or none of them."""
        database = getattr(self._storage, "_backend", None)
        if not isinstance(database, RDBStorage):
            for row in rows:
                self.create_new_trial(study_id, row)
            return
        if (before := self._counts.pop(study_id, None)) is None:
            before = len(self.get_all_trials(study_id, deepcopy=False))
        self._read.pop(study_id, None)

        def again() -> None:
            if len(self._storage.get_all_trials(study_id, deepcopy=False)) == before:
                add_rows(database, study_id, rows)

        self._patiently(lambda: add_rows(database, study_id, rows), again)
        self._counts[study_id] = before + len(rows)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        rows = self._read.get(study_id)
        if rows is None:
            rows = self._patiently(lambda: self._storage.get_all_trials(study_id, deepcopy=False))
            if self._alone:
                self._read[study_id] = rows
                self._study_of.update((row._trial_id, study_id) for row in rows)
        chosen = [row for row in rows if states is None or row.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Closes a trial; a try whose answer was lost may have done so."""
        self._forget(trial_id)

        def again() -> bool:
            try:
                return self._storage.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                row = self._storage.get_trial(trial_id)
                if row.state != state or row.values != (None if values is None else list(values)):
                    raise
                return True

        return self._patiently(
            lambda: self._storage.set_trial_state_values(trial_id, state, values), again
        )

    def remove_session(self) -> None:
        self._storage.remove_session()

    def wait_no_longer(self) -> None:
        """Lets calls fail at once from now on: the search ends, whatever it still has to write."""
        self._waits = False

    def close(self) -> None:
        """Closes its connections."""
        self._close()

    def _forget(self, trial_id: int) -> None:
        study_id = self._study_of.get(trial_id)
        if study_id is None:
            self._read.clear()
        else:
            self._read.pop(study_id, None)

    def _patiently(
        self, call: Callable[[], Answer], again: Callable[[], Answer] | None = None
    ) -> Answer:
        if self._stopped is not None:
            raise SearchStoppedError(self._stopped)
        end, pause = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S
        while True:
            try:
                answer = call()
            except OSError as error:  # a journal's disk, or StorageAwayError
                reason = " ".join(str(error).split())
            except Exception:
                self._stopped = None
                raise
            else:
                self._stopped = None
                return answer
            # Stands, too, where Ctrl-C ends the wait.
            self._stopped = (
                f"the storage was away for longer than a search waits ({_PATIENCE_S:g} s): "
                f"{reason}; expected it back: see to it, then go on"
            )
            call = again or call
            if not self._waits or time.monotonic() + pause > end:
                raise SearchStoppedError(self._stopped)
            log.warning("the storage is away (%s); next try in %g s", reason, pause)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
