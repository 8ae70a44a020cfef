"""final.json and final.csv of a run: what final training gave, by point, kind and seed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from planter.front.certainty import Interval, wilson, with_interval
from planter.front.points import Point, to_csv, write_text
from planter.networks import checkpoint

log = logging.getLogger(__name__)
FINAL = "final"
Kind = Literal["continued", "stand-alone", "repeated"]
KINDS: tuple[Kind, ...] = ("continued", "stand-alone")
REPEATED: Kind = "repeated"
EVERY: tuple[Kind, ...] = (*KINDS, REPEATED)
"""In the order of columns. A repetition is that of a whole trial: each of its pipelines is one of a
point."""
COLUMNS = ["id", "kind", "seed", "accuracy", "test_accuracy", "epochs", "seconds", "model"]
_MEASURES = ("accuracy", "test_accuracy")


@dataclass(frozen=True)
class Row:
    """One network: the point as the search left it ("shared", without seed), or one training.

    Accuracies are shares of images, on validation and test images; `seconds` are those of the
    training; `model` is the network's folder relative to the run, None where it was not kept;
    `macs` are those of a repeated network, whose edits may have come out otherwise.
    """

    id: str
    kind: str
    seed: int | None
    accuracy: float
    test_accuracy: float | None
    epochs: int | None
    seconds: float | None
    model: str | None
    macs: int | None = None


class FinalFile:
    """What `final/` holds, in memory; `write` brings the files up to it."""

    def __init__(
        self,
        run: Path,
        study: str,
        points: Iterable[Point],
        settings: Mapping[str, Any],
        images: Mapping[str, int],
    ) -> None:
        """Reads what was written before. `settings` are those of each kind to be trained, `images`
        how many a measure is one of. Raises ValueError where the folder holds trainings of that
        kind under others."""
        self._run = run
        self._study = study
        self._images = images
        path = run / FINAL / "final.json"
        before: dict[str, Any] = {"settings": {}, "points": [], "rows": []}
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
                rows = [Row(**row) for row in before["rows"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged: {error!r}; remove it") from error
        else:
            rows = []
        given = json.loads(json.dumps(settings))
        for kind in (kind for kind in given if self._begun(kind, rows)):
            _refuse_others(run, kind, before["settings"].get(kind, given[kind]), given[kind])
        self._settings = {**before["settings"], **given}
        self._costs = {p["id"]: {k: p[k] for k in ("macs", "params")} for p in before["points"]}
        self._costs |= {p.id: {"macs": p.macs, "params": p.params} for p in points}
        self._rows = {(row.id, row.kind, row.seed): row for row in rows}
        self._failed: list[dict[str, Any]] = []

    def _begun(self, kind: str, rows: Iterable[Row]) -> bool:
        """Whether a training of that kind has ended, booked or not, or has a checkpoint to go on
        from."""
        final = self._run / FINAL
        left = (f"models/*/*/{kind}-*", f"trials/*/*/{kind}-*/checkpoint.pt")
        return any(row.kind == kind for row in rows) or any(any(final.glob(one)) for one in left)

    @property
    def rows(self) -> list[Row]:
        """By rising macs, then kind and seed."""
        order = ("shared", *EVERY)
        return sorted(
            self._rows.values(),
            key=lambda r: (self._costs[r.id]["macs"], r.id, order.index(r.kind), r.seed or 0),
        )

    def add(self, row: Row) -> None:
        """Puts a row in; what was read from the test data before stays."""
        key = (row.id, row.kind, row.seed)
        if row.test_accuracy is None and (before := self._rows.get(key)) is not None:
            row = replace(row, test_accuracy=before.test_accuracy)
        self._rows[key] = row

    def take_up(self, point: str, kind: str, seed: int) -> Row | None:
        """The row of a training whose network is there; None, and no row, where it is not."""
        model = Path(FINAL, "models", point, f"{kind}-{seed}")
        if kind == REPEATED:
            trial, _, pipeline = point.partition("/")
            model = Path(FINAL, "models", f"{trial}/{kind}-{seed}", pipeline)
        try:
            spec = checkpoint.read_spec(self._run / model)
            numbers = (spec["accuracy"], None, spec.get("epochs"), spec.get("train_seconds"))
        except (ValueError, KeyError) as error:
            if (self._run / model).is_dir():
                log.warning("%s; it is trained again", error)
            self._rows.pop((point, kind, seed), None)
            return None
        macs = spec["macs"] if kind == REPEATED else None
        self.add(Row(point, kind, seed, *numbers, str(model), macs))
        return self._rows[point, kind, seed]

    def fail(self, point: str, kind: str, seed: int, error: str) -> None:
        """Notes a training that failed; the next call tries it again."""
        self._failed.append({"id": point, "kind": kind, "seed": seed, "error": error})

    def document(self) -> dict[str, Any]:
        """What final.json says."""
        rows = self.rows
        points = []
        for point in dict.fromkeys(row.id for row in rows):
            own = [row for row in rows if row.id == point]
            told: dict[str, Any] = {"id": point, **self._costs[point]}
            for row in own:
                if row.kind == "shared":
                    told["shared"] = {}
                    for measure in _MEASURES:
                        value = getattr(row, measure)
                        around = self._interval(measure, value)
                        told["shared"] |= with_interval(measure, value, around)
            for kind in EVERY:
                if trained := [row for row in own if row.kind == kind]:
                    told[kind] = {"seeds": len(trained), **self._summary(trained)}
            points.append(told)
        return {
            "study": self._study,
            "settings": self._settings,
            "points": points,
            "rows": [_told(row) for row in rows],
            "failed": self._failed,
        }

    def _interval(self, measure: str, value: float | None) -> Interval | None:
        images = self._images.get(measure)
        return None if value is None or images is None else wilson(value, images)

    def _summary(self, rows: Sequence[Row]) -> dict[str, dict[str, float | None] | None]:
        """Mean and sample standard deviation over the seeds; of a single one its 95 % interval,
        `low` to `high`, in place of a deviation. Nothing of a measure that a row lacks."""
        found: dict[str, dict[str, float | None] | None] = {}
        for measure in _MEASURES:
            values = [getattr(row, measure) for row in rows]
            if None in values:
                found[measure] = None
                continue
            told: dict[str, float | None] = {"mean": fmean(values), "std": None}
            if len(values) > 1:
                told["std"] = stdev(values)
            elif (around := self._interval(measure, *values)) is not None:
                told["low"], told["high"] = around
            found[measure] = told
        return found

    def write(self) -> None:
        folder = self._run / FINAL
        write_text(folder / "final.json", json.dumps(self.document(), indent=2) + "\n")
        write_text(folder / "final.csv", to_csv([asdict(row) for row in self.rows], COLUMNS))


def _told(row: Row) -> dict[str, Any]:
    """A row as final.json holds it: its own macs where it has some."""
    return {key: value for key, value in asdict(row).items() if key != "macs" or value is not None}


def _refuse_others(
    run: Path, kind: str, before: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Raises ValueError where a kind was trained otherwise before: its rows would be no seeds of
    one training."""
    old, new = (
        {"guided": one["guided"], **{f"recipe.{k}": v for k, v in one["recipe"].items()}}
        for one in (before, given)
    )
    changed = [f"{key} {old.get(key)} (now {new[key]})" for key in new if old.get(key) != new[key]]
    if changed:
        raise ValueError(
            f"{run / FINAL} holds {kind} trainings with {', '.join(changed)}: the same settings "
            f"again, or move that folder away first (mv {run / FINAL} {run / FINAL}-1)"
        )
