"""Documents of a run: pareto.json's rows and numbers, CSV text, files replaced whole."""

import csv
import dataclasses
import io
import json
import math
import os

import pytest

from planter.front import points as front
from planter.front.points import (
    COLUMNS,
    Point,
    covered,
    document,
    front_of,
    read_front,
    to_csv,
    write_text,
)

_KEYS = {"study", "objectives", "points", "hypervolume", "reference_point", "cost"}
_POINT_KEYS = {
    "id", "trial", "pipeline", "method", "accuracy", "test_accuracy", "macs", "params",
    "on_front", "model", "train_macs", "latency_ms", "within_bounds",
}  # fmt: skip


def _point(trial, accuracy, macs, *, method="sample", pipeline="base", params=100):
    return Point(
        trial=trial, pipeline=pipeline, method=method, accuracy=accuracy, loss=0.5, macs=macs,
        params=params, train_macs=7, seconds=1.5, architecture={"builder": "toy"},
    )  # fmt: skip


# The teacher and a baseline dominate everything that was searched.
_POINTS = [
    _point("teacher", 0.99, 1000, method="teacher"),
    _point("b-width8", 0.95, 10, method="baseline"),
    _point("s0001", 0.80, 100, params=50),
    _point("s0001", 0.60, 40, pipeline="cut2", params=20),
    _point("p01-conv1", 0.80, 100, method="plant", params=60),
    _point("s0002", 0.50, 90, params=70),
    _point("s0003", 0.90, 900, params=500),
]


def _document(tmp_path, points=_POINTS, limits=None, test=None):
    return document("study", points, (0.1, 1000), limits or {}, test or {}, tmp_path)


def test_document_has_exactly_the_keys_of_the_interface(tmp_path):
    made = _document(tmp_path)
    assert set(made) == _KEYS
    assert [set(point) for point in made["points"]] == [_POINT_KEYS] * len(_POINTS)
    assert made["study"] == "study"
    assert made["objectives"] == ["accuracy", "macs"]
    assert made["reference_point"] == [0.1, 1000]


def test_document_keeps_each_point_once_with_its_own_numbers(tmp_path):
    made = {row["id"]: row for row in _document(tmp_path, test={"s0001/cut2": 0.58})["points"]}
    assert set(made) == {f"{p.trial}/{p.pipeline}" for p in _POINTS}
    cut = made["s0001/cut2"]
    assert (cut["trial"], cut["pipeline"], cut["method"]) == ("s0001", "cut2", "sample")
    assert (cut["accuracy"], cut["test_accuracy"]) == (0.60, 0.58)
    assert (cut["macs"], cut["params"], cut["train_macs"]) == (40, 20, 7)
    assert made["s0001/base"]["test_accuracy"] is None


def test_document_is_strict_json_and_reads_back(tmp_path):
    made = _document(tmp_path)
    write_text(tmp_path / "pareto.json", json.dumps(made, allow_nan=False))
    assert read_front(tmp_path) == made


@pytest.mark.parametrize("text", ['{"study": ', "[]", "null", '{"points": 3}', '{"points": [1]}'])
def test_a_damaged_document_is_told_with_its_place_and_what_to_do(tmp_path, text):
    (tmp_path / "pareto.json").write_text(text)
    with pytest.raises(ValueError, match=r"pareto.json is damaged .*writes it anew"):
        read_front(tmp_path)


def test_of_a_run_that_was_measured_no_point_keeps_another_latency(tmp_path):
    points = [dataclasses.replace(point, latency_ms=7.0) for point in _POINTS]
    assert {row["latency_ms"] for row in _document(tmp_path, points=points)["points"]} == {7.0}
    rows = [{"id": "s0001/cut2", "torch": {"median_ms": 0.5}}]
    measured = {"measurements": [{"batch": 1, "column": "torch", "rows": rows}]}
    (tmp_path / "latency.json").write_text(json.dumps(measured))
    made = {row["id"]: row["latency_ms"] for row in _document(tmp_path, points=points)["points"]}
    assert made.pop("s0001/cut2") == 0.5
    assert set(made.values()) == {None}


def test_whether_a_point_keeps_the_bounds_is_told_by_what_they_were_checked_with(tmp_path):
    points = [dataclasses.replace(p, latency_ms=float(i)) for i, p in enumerate(_POINTS)]
    found = document("study", points, [0.1, 1000], {"latency_ms": 1.0}, {}, tmp_path)
    told = {row["id"]: row["within_bounds"] for row in found["points"]}
    assert told == {point.id: i <= 1 for i, point in enumerate(points)}


def test_teacher_and_baselines_are_points_but_never_on_the_front(tmp_path):
    rows = _document(tmp_path)["points"]
    on_front = {row["id"] for row in rows if row["on_front"]}
    # Equal points stay together; s0002 is dominated by s0001/base only through its accuracy.
    assert on_front == {
        "s0001/cut2",
        "s0001/base",
        "p01-conv1/base",
        "s0003/base",
        "s0002/base",
    } - {"s0002/base"}


def test_hypervolume_counts_searched_points_alone(tmp_path):
    # By hand, in decades below 1000 macs and accuracy above 0.1: cut2 covers 0.5 high from 40 on,
    # s0001 another 0.2 from 100 on, s0003 another 0.1 from 900 on.
    expected = 0.5 * math.log10(1000 / 40) + 0.2 * 1 + 0.1 * math.log10(1000 / 900)
    assert _document(tmp_path)["hypervolume"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"macs": 100}, {"s0001/cut2", "s0001/base", "p01-conv1/base"}),
        ({"macs": 99}, {"s0001/cut2"}),
        ({"params": 50}, {"s0001/cut2", "s0001/base"}),
        ({"macs": 900, "params": 60}, {"s0001/cut2", "s0001/base", "p01-conv1/base"}),
        ({"macs": 5}, set()),
    ],
)
def test_points_beyond_a_bound_are_not_on_the_front(tmp_path, limits, expected):
    rows = _document(tmp_path, limits=limits)["points"]
    assert len(rows) == len(_POINTS)
    # s0002 (90 macs, 0.5) is dominated by cut2 (40 macs, 0.6) under every one of these bounds.
    assert {row["id"] for row in rows if row["on_front"]} == expected


def test_a_point_beyond_a_bound_does_not_dominate_one_within():
    points = [_point("s1", 0.9, 10, params=99), _point("s2", 0.8, 20, params=5)]
    assert [p.trial for p in front_of(points, {})] == ["s1"]
    assert [p.trial for p in front_of(points, {"params": 10})] == ["s2"]
    assert covered(points, (0.0, 1000), {"params": 10}) == pytest.approx(
        0.8 * math.log10(50), rel=1e-12
    )


def test_front_rises_in_macs():
    assert [p.id for p in front_of(_POINTS[::-1], {})] == [
        "s0001/cut2",
        "p01-conv1/base",
        "s0001/base",
        "s0003/base",
    ]


def test_a_study_without_a_searched_point_has_an_empty_front(tmp_path):
    made = _document(tmp_path, points=_POINTS[:2])
    assert made["hypervolume"] == 0
    assert [row["on_front"] for row in made["points"]] == [False, False]


def test_model_is_a_relative_path_and_null_where_the_folder_is_gone(tmp_path):
    (tmp_path / "models" / "s0001" / "cut2").mkdir(parents=True)
    rows = {row["id"]: row["model"] for row in _document(tmp_path)["points"]}
    assert rows.pop("s0001/cut2") == "models/s0001/cut2"
    assert set(rows.values()) == {None}


def test_read_front_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no finished trial yet"):
        read_front(tmp_path)
    with pytest.raises(ValueError, match=r"gone.*no such folder"):
        read_front(tmp_path / "gone")


def test_csv_holds_what_the_document_holds(tmp_path):
    awkward = _point("s0009", 1 / 3, 123_456_789_012, pipeline='a,"b"\nc')
    timed = dataclasses.replace(awkward, trial="s0010", latency_ms=0.1234)
    rows = _document(tmp_path, points=[*_POINTS, awkward, timed], test={"s0001/base": 0.1})[
        "points"
    ]
    read = list(csv.DictReader(io.StringIO(to_csv(rows, COLUMNS), newline="")))
    assert list(read[0]) == COLUMNS
    assert set(COLUMNS) == _POINT_KEYS
    back = [
        {
            **row,
            "accuracy": float(row["accuracy"]),
            "test_accuracy": float(row["test_accuracy"]) if row["test_accuracy"] else None,
            "macs": int(row["macs"]),
            "params": int(row["params"]),
            "on_front": {"True": True, "False": False}[row["on_front"]],
            "model": row["model"] or None,
            "train_macs": int(row["train_macs"]),
            "latency_ms": float(row["latency_ms"]) if row["latency_ms"] else None,
            "within_bounds": {"True": True, "False": False}[row["within_bounds"]],
        }
        for row in read
    ]
    assert back == rows


def test_csv_of_nothing_is_its_header():
    assert to_csv([], ["a", "b"]) == "a,b\n"


def test_write_text_replaces_the_whole_text_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "pareto.json"
    write_text(file, "a longer first text")
    write_text(file, "zweiter: ä")
    assert file.read_bytes() == "zweiter: ä".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["pareto.json"]


def test_who_reads_the_old_text_reads_it_to_its_end(tmp_path):
    file = tmp_path / "pareto.json"
    file.write_text("the old text")
    with file.open() as reader:
        write_text(file, "new")
        assert reader.read() == "the old text"


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_write_that_fails_leaves_the_old_text_and_no_other_file(tmp_path, monkeypatch, failing):
    file = tmp_path / "pareto.json"
    file.write_text("old")
    if failing == "write":
        with pytest.raises(TypeError):
            write_text(file, b"no text")
    else:

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(front.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_text(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["pareto.json"]


def test_what_has_no_utf8_form_is_written_escaped(tmp_path):
    write_text(tmp_path / "a.txt", "half\udc80 ü")  # a name of a file that is no UTF-8
    assert (tmp_path / "a.txt").read_bytes() == "half\\udc80 ü".encode()


def test_the_old_text_stands_until_the_new_one_is_synced(tmp_path, monkeypatch):
    file = tmp_path / "pareto.json"
    file.write_text("old")
    seen = []
    sync = os.fsync
    monkeypatch.setattr(front.os, "fsync", lambda fd: (seen.append(file.read_text()), sync(fd)))
    write_text(file, "new")
    assert seen == ["old"]
    assert file.read_text() == "new"


def test_a_point_without_a_word_on_kernels_was_trained_plain():
    """Points of runs older than training forms."""
    assert _point("s0001", 0.5, 10).kernels == "plain"


def test_a_point_that_was_not_timed_keeps_no_bound_on_latency():
    points = [
        dataclasses.replace(_point("s1", 0.9, 10), latency_ms=2.0),
        dataclasses.replace(_point("s2", 0.95, 20), latency_ms=2.1),
        _point("s3", 0.99, 30),
    ]
    assert [p.trial for p in front_of(points, {"latency_ms": 2.0})] == ["s1"]
    assert [p.trial for p in front_of(points, {"latency_ms": 2.1})] == ["s1", "s2"]
    assert [p.trial for p in front_of(points, {})] == ["s1", "s2", "s3"]
