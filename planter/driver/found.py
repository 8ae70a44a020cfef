"""A run in Python: what a search returns, and what `open_run` opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from planter.driver.run_folder.names import run_folder
from planter.driver.run_folder.read import images_of, read_points
from planter.front.choose import best_of, best_under, knee, macs_of, on_front
from planter.front.describe import with_networks
from planter.front.lineage import Step, lineage
from planter.front.points import nothing_trained, read_front
from planter.networks import checkpoint

if TYPE_CHECKING:
    from pandas import DataFrame

    from planter.data import Data
    from planter.plots import Figure


class Run(dict[str, Any]):
    """What `pareto.json` says of a run, as a mapping of its keys, and what lies behind it.

    A point is a row of its `points`: a mapping with `id`, `method`, `accuracy`, `macs` and so on
    (docs/python.md). An `id` may be that of a training, where only one point comes of it.
    """

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        super().__init__(document)
        self.path = path

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every network that the run has trained: one for each pipeline, by rising macs."""
        return list(self["points"])

    @property
    def front(self) -> list[Mapping[str, Any]]:
        """The points on the front by rising macs; none where the front is empty."""
        return on_front(self) if any(row["on_front"] for row in self["points"]) else []

    @property
    def failed(self) -> dict[str, str]:
        """Why trainings failed, by trial."""
        return {one["trial"]: one["reason"] for one in self.get("failed", [])}

    def best(
        self, *, max_macs: float | str | None = None, min_accuracy: float | None = None
    ) -> Mapping[str, Any]:
        """The most accurate point of the front of at most `max_macs` (20_000, or "20k"); with
        `min_accuracy` (0..1) alone the one of fewest macs that reaches it; without bounds the most
        accurate of all.

        Raises ValueError where the front is empty, or none of its points keeps to the bounds; the
        message names the nearest.
        """
        if max_macs is None and min_accuracy is None:
            return best_of(on_front(self), self["objectives"])
        most = None if max_macs is None else macs_of(max_macs)
        return best_under(self, max_macs=most, min_accuracy=min_accuracy)

    def knee(self) -> Mapping[str, Any]:
        """The point of the front from which on accuracy costs most. Raises ValueError where the
        front is empty."""
        return knee(self)

    def point(self, id: str | Mapping[str, Any]) -> dict[str, Any]:
        """The point of an id, or a point itself. Raises KeyError where there is none, ValueError
        where it is that of a training of several points."""
        if isinstance(id, Mapping):
            id = str(id["id"])
        found = [row for row in self["points"] if id in (row["id"], row["trial"])]
        if not found:
            raise KeyError(f"{self.path} has no point {id!r}; run.points lists them")
        if len(found) > 1:
            several = ", ".join(row["id"] for row in found)
            raise ValueError(f"{id} has several points: expected one of {several}")
        row: dict[str, Any] = found[0]
        return row

    def load(self, id: str | Mapping[str, Any]) -> nn.Module:
        """The trained network of a point, in eval mode. It is built by your own code, where the
        study names such.

        Raises KeyError for an unknown id, ValueError where the run has not kept its weights.
        """
        row = self.point(id)
        if row["model"] is None or not (self.path / row["model"]).is_dir():
            raise ValueError(
                f"the weights of {row['id']} are not kept: a run keeps those of its front, "
                "teacher, baselines and last planted network, of all with keep: all in its study"
            )
        return checkpoint.load(self.path / row["model"], own_code=True)

    def data(self) -> Data:
        """The images of the run, split as they were. Raises ValueError where they have changed."""
        return images_of(self.path)

    def lineage(self, id: str | Mapping[str, Any]) -> list[Step]:
        """The ancestors of a point, the first of them first, and itself last: what was done to each
        (`how`) and its `point`. Raises as `point` does."""
        return lineage(read_points(self.path), self.point(id)["id"])

    def to_frame(self) -> DataFrame:
        """The points as a pandas DataFrame, a row each, with their ids as index. Raises ImportError
        where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise ImportError("to_frame needs pandas: pip install pandas") from None
        columns = None if self["points"] else ["id", "method", "accuracy", "macs"]
        return pandas.DataFrame(self["points"], columns=columns).set_index("id")

    def plot(self) -> Figure:
        """The front's figure, as `pareto.html` shows it; the last line of a notebook's cell draws
        it. Raises ValueError where nothing is trained."""
        from planter.plots import front_figure

        if told := nothing_trained(self):
            raise ValueError("; ".join(told))
        return front_figure([with_networks(self, read_points(self.path))])

    def __repr__(self) -> str:
        on = sum(row["on_front"] for row in self["points"])
        return (
            f"<run {self['study']} in {self.path}: {len(self['points'])} points, {on} on the "
            f"front, hypervolume {self['hypervolume']:.4f}>"
        )


def open_run(path: str | Path) -> Run:
    """A run that is there, finished or not: of its folder, or its name under runs/.

    Raises ValueError where there is none, naming those there are, where nothing of it has finished
    yet, or its documents are of another planter.
    """
    folder = run_folder(path).resolve()
    return Run(folder, read_front(folder))
