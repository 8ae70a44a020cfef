"""A run's storage as the dashboard sees it: rows with their files, a note and plots; read only."""

from __future__ import annotations

import copy
import io
import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

from planter.driver.dashboard.notes import learning_curve, study_note, study_picture, study_plots
from planter.front.points import nothing_trained, read_front

_FILES = ("metrics.jsonl", "log.txt")
_KINDS = {".json": "application/json", ".svg": "image/svg+xml", ".txt": "text/plain"}
_NOTE = "dashboard:note_ver"
_NOTES = re.compile(r"dashboard:([0-9]+:)?note_(ver|str:[0-9]+)")  # of the study, or of a row


def _read(method: Callable[..., Any]) -> Any:
    def passed(self: DashboardView, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._storage, method.__name__)(*args, **kwargs)

    return passed


def _refused(method: Callable[..., Any]) -> Any:
    def refuse(self: DashboardView, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(
            f"{method.__name__}: planter dashboard shows a run and changes nothing but notes"
        )

    return refuse


class DashboardView(BaseStorage):
    """Adds to what a storage holds, as it is asked for: to each row its architecture, learning
    curve and log as artifacts and when its training began, to the study of points a note and plots
    of the front.

    Nothing of that is written, so a search pays nothing for it and any run has it. Notes of people
    are the only writes let through; they take the place of the study's own. It is the artifact
    store of what it adds as well: `open_reader`.
    """

    def __init__(self, storage: BaseStorage, run: Path, name: str) -> None:
        self._storage = storage
        self._run = run
        self._name = name
        self._number = storage.get_study_id_from_name(name)
        self._made: dict[str, Callable[[], bytes]] = {}
        self._lock = threading.Lock()
        self._seen: tuple[int, dict[str, Any]] | None = None

    get_study_id_from_name = _read(BaseStorage.get_study_id_from_name)
    get_study_name_from_id = _read(BaseStorage.get_study_name_from_id)
    get_study_directions = _read(BaseStorage.get_study_directions)
    get_study_user_attrs = _read(BaseStorage.get_study_user_attrs)
    get_trial_id_from_study_id_trial_number = _read(
        BaseStorage.get_trial_id_from_study_id_trial_number
    )
    create_new_study = _refused(BaseStorage.create_new_study)
    delete_study = _refused(BaseStorage.delete_study)
    set_study_user_attr = _refused(BaseStorage.set_study_user_attr)
    create_new_trial = _refused(BaseStorage.create_new_trial)
    set_trial_param = _refused(BaseStorage.set_trial_param)
    set_trial_state_values = _refused(BaseStorage.set_trial_state_values)
    set_trial_intermediate_value = _refused(BaseStorage.set_trial_intermediate_value)
    set_trial_user_attr = _refused(BaseStorage.set_trial_user_attr)
    set_trial_system_attr = _refused(BaseStorage.set_trial_system_attr)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Writes a person's note."""
        if not _NOTES.fullmatch(key):
            raise PermissionError(f"{key}: planter dashboard changes nothing but notes")
        self._storage.set_study_system_attr(study_id, key, value)

    def get_all_studies(self) -> list[FrozenStudy]:
        """The studies of this run; a storage may hold others."""
        studies = []
        for study in self._storage.get_all_studies():
            if study.study_name == self._name or study.study_name.startswith(f"{self._name}/"):
                shown = copy.copy(study)
                shown.system_attrs = self._with_extras(study._study_id, study.system_attrs)
                studies.append(shown)
        return sorted(studies, key=lambda study: study._study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._with_extras(study_id, self._storage.get_study_system_attrs(study_id))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._with_files(self._storage.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Any = None
    ) -> list[FrozenTrial]:
        rows = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return [self._with_files(row) for row in rows]

    def open_reader(self, artifact_id: str) -> BinaryIO:
        if artifact_id not in self._made:
            raise ArtifactNotFound(artifact_id)
        try:
            return io.BytesIO(self._made[artifact_id]())
        except FileNotFoundError as error:
            raise ArtifactNotFound(artifact_id) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        raise PermissionError("planter dashboard takes no files")

    def remove(self, artifact_id: str) -> None:
        raise PermissionError("planter dashboard removes no files")

    def _with_files(self, row: FrozenTrial) -> FrozenTrial:
        """A row of a point or a candidate, with what the run folder has of its training."""
        trial = row.user_attrs.get("trial", row.user_attrs.get("id"))
        if trial is None:
            return row
        files: dict[str, Callable[[], bytes]] = {}
        if (architecture := row.user_attrs.get("architecture")) is not None:
            network = {"pipeline": row.user_attrs.get("pipeline"), "architecture": architecture}
            files["architecture.json"] = lambda: json.dumps(network, indent=2).encode()
        folder = self._run / "trials" / trial
        for name in _FILES:
            if (folder / name).is_file():
                files[name] = (folder / name).read_bytes
        if (metrics := folder / "metrics.jsonl").is_file():
            files["learning-curve.svg"] = lambda: learning_curve(metrics).encode()
        shown = copy.copy(row)
        if row.datetime_complete is not None and (took := row.user_attrs.get("seconds")):
            # Points are written when their training has ended; the timeline shows trainings.
            shown.datetime_start = row.datetime_complete - timedelta(seconds=took)
        shown._system_attrs = {**row._system_attrs, **self._artifacts(row.user_attrs["id"], files)}
        return shown

    def _with_extras(self, study_id: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of a study; of the study of points, with picture, plots and note."""
        if study_id != self._number:
            return dict(attributes)
        extras = self._extras()
        if _NOTE in attributes:
            extras = {key: value for key, value in extras.items() if not _NOTES.fullmatch(key)}
        return {**attributes, **extras}

    def _extras(self) -> dict[str, Any]:
        """Made anew when pareto.json is; nothing while there is none."""
        file = self._run / "pareto.json"
        if not file.is_file():
            return {}
        stamp = file.stat().st_mtime_ns
        with self._lock:
            if self._seen is None or self._seen[0] != stamp:
                self._seen = (stamp, self._drawn())
            return self._seen[1]

    def _drawn(self) -> dict[str, Any]:
        try:
            front = read_front(self._run)
            if nothing := nothing_trained(front):
                return {_NOTE: 1, "dashboard:note_str:0": "\n\n".join(nothing)}
            plots = study_plots(self._run, front, self._storage)
        except ValueError as error:  # damaged, or older: Optuna's own pages stand all the same
            return {_NOTE: 1, "dashboard:note_str:0": f"{error}\n"}
        picture = study_picture(front).encode()
        artifacts = self._artifacts("study", {"front.svg": lambda: picture})
        number = next(iter(artifacts)).removeprefix("artifacts:")
        note = study_note(front, f"/artifacts/{self._number}/{number}")
        return {
            **artifacts,
            **{f"dashboard:plot_data:{name}:0": text for name, text in plots.items()},
            # A version of its own a state of the front: the page then shows the new text.
            _NOTE: 1 + len(front["points"]),
            "dashboard:note_str:0": note,
        }

    def _artifacts(self, owner: str, files: Mapping[str, Callable[[], bytes]]) -> dict[str, str]:
        """What Optuna would keep of these files among a row's attributes."""
        found = {}
        for name, make in files.items():
            number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"planter:{owner}/{name}"))
            self._made[number] = make
            kind = _KINDS.get(Path(name).suffix, "application/octet-stream")
            meta = {"artifact_id": number, "filename": name, "mimetype": kind, "encoding": None}
            found[f"artifacts:{number}"] = json.dumps(meta)
        return found
