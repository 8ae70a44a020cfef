"""Run folders without a training: a database, its points, and the files beside it."""

import json

import yaml

from planter.driver.storage.points import PointBook, database_url, open_storage
from planter.front.points import COLUMNS, Point, document, to_csv
from planter.study.schema import Study

REFERENCE = [0.1, 9000]


def network(pipelines=None, **widths):
    """The data of a convnet with these widths."""
    return {"builder": "convnet", "widths": widths, "options": {}, "pipelines": pipelines or {}}


_CUT = {"cut2": {"before": "conv3", "kernel": 4, "stride": 2}}
POINTS = [
    Point("teacher", "base", "teacher", 1.0, 0.1, 9000, 900, 50, 2.0, network(conv1=48)),
    Point("b-width8", "base", "baseline", 0.75, 0.5, 400, 40, 10, 1.0, network(conv1=8)),
    Point("p00-start", "base", "plant", 0.25, 1.5, 50, 60, 5, 1.0, network(conv1=3)),
    Point("p01-conv1", "base", "plant", 0.75, 0.5, 1000, 100, 5, 1.0, network(conv1=5)),
    Point("s0001", "base", "sample", 0.75, 0.5, 2000, 30, 20, 3.0, network(_CUT, conv1=16), "kflo"),
    Point("s0001", "cut2", "sample", 0.5, 0.9, 100, 20, 20, 3.0, network(_CUT, conv1=16), "kflo"),
    Point("s0002", "base", "sample", 0.875, 0.3, 3000, 300, 30, 4.0, network(conv1=24)),
]
"""On the front by accuracy and macs: p00-start, s0001/cut2, p01-conv1, s0002; by accuracy and
params: s0001/cut2, s0001/base, s0002."""


def made_run(folder, points=POINTS, name="made", **settings):
    """A run folder of these points, as a search would have left it."""
    folder.mkdir(parents=True)
    study = Study(name=name, **settings)
    text = yaml.safe_dump(study.model_dump())
    for file in ("study.yaml", "resolved.yaml"):
        (folder / file).write_text(text)
    (folder / "environment.json").write_text(json.dumps({"versions": {"planter": "0"}}))
    storage = open_storage(database_url(folder, study.storage))
    limits = study.objectives.bounds.limits()
    book = PointBook(storage, name, limits)
    book.reference(REFERENCE)
    book.add(points, {}, {})
    storage.close()
    for trial in {point.trial for point in points}:
        (folder / "trials" / trial).mkdir(parents=True)
        lines = [{"epoch": n, "loss": 2.0 / n, "lr": 0.1, "seconds": 0.5} for n in (1, 2, 4)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "trials" / trial / "metrics.jsonl").write_text(text)
    tested = {"s0002/base": 0.8125}
    found = document(name, points, REFERENCE, limits, tested, folder)
    (folder / "pareto.json").write_text(json.dumps(found))
    (folder / "pareto.csv").write_text(to_csv(found["points"], COLUMNS))
    return folder
