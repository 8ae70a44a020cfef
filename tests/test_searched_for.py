"""Studies with other objectives than accuracy against macs: their books, documents, commands."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from sklearn import metrics

import planter
from planter.driver.checking.check import prepare
from planter.driver.run_folder.predictions import answers_of
from planter.driver.run_folder.report import write_report
from planter.front.choose import best_under, knee, on_front
from planter.study.file import study_of
from planter.study.schema import StudyError

STUDY: dict[str, Any] = {
    "name": "asked",
    "data": {"name": "digits", "subset": 240, "validation": 0.25},
    "teacher": {"builder": "convnet", "widths": 12},
    "baselines": [{"builder": "convnet", "widths": 4}],
    "recipe": {"epochs": 2, "batch": 30, "optimizer": "adam", "lr": 0.01},
    "plant": {
        "start": 2,
        "rounds": 1,
        "layers": ["conv1"],
        "recipe": {"epochs": 1, "batch": 30, "optimizer": "adam", "lr": 0.01},
    },
    "evolve": {"trials": 4, "early_stopping": {"wait": 2}},
    "resources": {"workers": 0},
}
ASKED = {
    "loss": {"metric": "loss"},
    "f1": {"metric": "f1_macro", "costs": ["bytes"]},
    "params": {"costs": ["params"]},
    "three": {"costs": ["macs", "latency_ms"]},
}


UNEVEN = """
import numpy as np

def make():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [240, 45, 15])
    images = rng.random((300, 1, 8, 8)) + 0.3 * np.minimum(labels, 1)[:, None, None, None]
    order = rng.permutation(300)
    train, test = order[:220], order[220:]
    images = images.astype(np.float32)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
"""
"""Three classes of very different size, told by their brightness; two of them look alike."""


@pytest.fixture(scope="module", autouse=True)
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("uneven")
    (folder / "uneven_data.py").write_text(UNEVEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    sys.modules.pop("uneven_data", None)


def study_for(name: str) -> dict[str, Any]:
    data = {"name": "uneven_data:make", "validation": 0.3} if name == "f1" else STUDY["data"]
    return {**STUDY, "data": data, "objectives": ASKED[name]}


@pytest.fixture(scope="module", params=ASKED)
def searched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, uneven: None
) -> tuple[str, Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, run, planter.search(study_for(request.param), out=run)


def objectives_of(name: str) -> list[str]:
    asked = ASKED[name]
    return [asked.get("metric", "accuracy"), *asked.get("costs", ["macs"])]


def better(name: str, value: float) -> float:
    """More is better."""
    return value if name in ("accuracy", "f1_macro") else -value


def test_the_front_is_what_no_other_point_beats_in_what_was_asked(searched: Any) -> None:
    name, _, found = searched
    names = objectives_of(name)
    assert found["objectives"] == names
    able = [r for r in found["points"] if r["method"] in ("plant", "evolve")]

    def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
        pairs = [(better(n, one[n]), better(n, other[n])) for n in names]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    best = {r["id"] for r in able if not any(beats(other, r) for other in able)}
    assert {r["id"] for r in found["points"] if r["on_front"]} == best
    assert all("accuracy" in r and "macs" in r for r in found["points"])


def test_hypervolume_and_reference_are_told_of_the_studys_objectives(searched: Any) -> None:
    """By a grid of boxes between all values."""
    name, _, found = searched
    names, reference = objectives_of(name), found["reference_point"]
    teacher = next(r for r in found["points"] if r["method"] == "teacher")
    classes = 3 if name == "f1" else 10
    assert reference[0] == pytest.approx(math.log(10) if name == "loss" else 1 / classes)
    assert reference[1:] == [teacher[cost] for cost in names[1:]]

    def place(values: list[float]) -> list[float]:
        """As costs."""
        first, *costs = values
        return [-better(names[0], first), *map(math.log10, costs)]

    points = [place([r[n] for n in names]) for r in found["points"] if r["on_front"]]
    end = place(reference)
    points = [p for p in points if all(a < b for a, b in zip(p, end, strict=True))]
    edges = [sorted({*column, last}) for *column, last in zip(*points, end, strict=True)]
    covered = 0.0
    for cell in np.ndindex(*[len(edge) - 1 for edge in edges]):
        low = [edge[at] for edge, at in zip(edges, cell, strict=True)]
        if any(all(a <= b for a, b in zip(p, low, strict=True)) for p in points):
            covered += math.prod(e[at + 1] - e[at] for e, at in zip(edges, cell, strict=True))
    assert found["hypervolume"] == pytest.approx(covered, abs=1e-9)


def test_the_database_names_the_objectives_and_their_directions(searched: Any) -> None:
    name, run, found = searched
    names = objectives_of(name)
    study = optuna.load_study(study_name="asked", storage=f"sqlite:///{run / 'study.db'}")
    assert study.metric_names == names
    assert [d.name for d in study.directions] == [
        "MAXIMIZE" if n in ("accuracy", "f1_macro") else "MINIMIZE" for n in names
    ]
    rows = {t.user_attrs["id"]: t.values for t in study.trials}
    assert rows == {r["id"]: [r[n] for n in names] for r in found["points"]}


def test_values_are_those_of_the_answers_that_are_kept(searched: Any) -> None:
    name, run, found = searched
    metric = objectives_of(name)[0]
    measure = {
        "accuracy": metrics.accuracy_score,
        "f1_macro": lambda y, p: metrics.f1_score(y, p, average="macro", zero_division=0),
    }.get(metric)
    lines = (run / "pareto.csv").read_text().splitlines()
    table = {r["id"]: r for r in csv.DictReader(lines)}
    told = 0
    for row in found["points"]:
        if row["model"] is None:
            continue
        kept = answers_of(run, row["id"])
        for images, prefix in (("validation", ""), ("test", "test_")):
            if images == "test" and row["test_accuracy"] is None:
                continue
            one, key = kept[images], f"{prefix}{metric}"
            if measure is not None:
                assert row[key] == measure(one.labels, one.predicted)
            else:
                assert row[key] == pytest.approx(one.losses.mean(), rel=1e-6)
            assert row[f"{key}_low"] <= row[key] <= row[f"{key}_high"]
            assert row[f"{prefix}accuracy"] == metrics.accuracy_score(one.labels, one.predicted)
            told += images == "test"
        assert float(table[row["id"]][metric]) == row[metric]
    assert told >= 2


def test_what_is_chosen_goes_by_the_studys_metric_and_cost(searched: Any) -> None:
    name, _, found = searched
    metric, cost, *_ = objectives_of(name)
    rows = on_front(found)
    assert [r[cost] for r in rows] == sorted(r[cost] for r in rows)
    most = max(r["macs"] for r in rows)
    best = best_under(found, max_macs=most)
    assert better(metric, best[metric]) == max(better(metric, r[metric]) for r in rows)
    assert knee(found) in rows
    cheapest = best_under(found, min_accuracy=0.0)
    assert cheapest[cost] == min(r[cost] for r in rows)


def test_a_run_goes_on_and_is_shown_and_other_objectives_are_refused(
    searched: Any, command_in: Any, tmp_path: Path
) -> None:
    name, run, found = searched
    study = study_for(name)
    again = planter.search(study, out=run)
    assert again["points"] == found["points"]
    other = {**study, "objectives": {"metric": "balanced_accuracy", "costs": ["macs", "params"]}}
    with pytest.raises(StudyError, match="objectives: got a search for balanced_accuracy"):
        planter.search(other, out=run, accept_changes=True)
    call = command_in(tmp_path)
    names = [r["id"] for r in on_front(found)]
    for line in (["show"], ["pareto", "--html", "f.html"], ["report"], ["show", names[0]]):
        code, out, err = call(line[0], str(run), *line[1:])
        assert code == 0, err
    code, out, _ = call("show", str(run), "--knee")
    assert code == 0
    code, out, _ = call("pareto", str(run), "--json")
    assert json.loads(out)["objectives"] == objectives_of(name)
    code, out, _ = call("show", str(run), "teacher", names[-1])
    assert code == 0
    assert "exact McNemar test" in out
    assert "validation images" in out
    assert "test images" in out
    assert (objectives_of(name)[0] in ("loss", "f1_macro")) == ("resamplings" in out)


def test_the_report_tells_of_classes_and_says_why_where_it_cannot(searched: Any) -> None:
    _, run, found = searched
    page = write_report(run).read_text()
    best = best_under(found, max_macs=10**12)
    answers = answers_of(run, best["id"])["validation"]
    recall = metrics.recall_score(
        answers.labels, answers.predicted, average=None, labels=[0], zero_division=0
    )[0]
    assert f"{best['id']}: " in page
    assert f"{100 * recall:.1f} % (" in page
    kept = run / "models" / best["id"] / "predictions.npz"
    whole = kept.read_bytes()
    kept.unlink()
    try:
        assert "was trained by a planter that kept no answers" in " ".join(
            write_report(run).read_text().split()
        )
    finally:
        kept.write_bytes(whole)


@pytest.mark.parametrize(
    ("changed", "place", "told"),
    [
        ({"objectives": {"metric": "top5"}}, "objectives.metric", "5 or more"),
        (
            {"objectives": {"costs": ["params"]}, "teacher": None, "baselines": []},
            "objectives.costs",
            "a teacher or a baseline, whose parameters",
        ),
    ],
)
def test_objectives_that_cannot_be_told_are_refused(
    changed: dict[str, Any], place: str, told: str
) -> None:
    study = {**study_for("f1"), **changed}
    with pytest.raises(StudyError) as caught:
        prepare(study_of(study))
    assert [p.expected for p in caught.value.problems if p.place == place and told in p.expected]


def test_the_same_cost_twice_is_refused() -> None:
    with pytest.raises(StudyError, match="twice"):
        study_of({**STUDY, "objectives": {"costs": ["macs", "macs"]}})
