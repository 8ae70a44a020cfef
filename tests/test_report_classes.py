"""What a report says of classes; the confusion figure; intervals in figures, old runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_runs import POINTS, made_run
from scipy.stats import binomtest
from sklearn import metrics

from planter.driver.run_folder.predictions import answers_of, paired_answers
from planter.driver.run_folder.report import write_report
from planter.front.choose import knee
from planter.front.halving import by_rank
from planter.front.pareto import pareto_rank
from planter.front.points import Point, columns, document, measured
from planter.plots import confusion_figure, front_figure
from planter.report.classes import classes_table, confused
from planter.training.answers import Answers


def _answers(labels, predicted, classes):
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    right = labels == predicted
    return Answers(labels, predicted, right, np.ones(len(labels)), classes, 1.0)


def test_each_class_is_told_with_wilsons_intervals():
    labels = [0] * 20 + [1] * 10
    predicted = [0] * 18 + [1] * 2 + [1] * 5 + [0] * 5
    table = classes_table(_answers(labels, predicted, 3), ["cat", "dog", "eel"])
    rows = {row[0]: row[1:] for row in table.rows}
    around = binomtest(18, 20).proportion_ci(method="wilson")
    assert rows["cat"][:2] == ["20", f"90.0 % ({100 * around.low:.0f}-{100 * around.high:.0f})"]
    f1 = metrics.f1_score(labels, predicted, average=None)
    assert rows["dog"][3].startswith(f"{100 * f1[1]:.1f} % (")
    assert rows["eel"] == ["0", "none", "none", "none"]
    told = confused(_answers(labels, predicted, 3), ["cat", "dog", "eel"])
    assert told == "dog taken for cat (5), cat taken for dog (2)"
    assert confused(_answers([0, 1], [0, 1], 2), ["a", "b"]) == ""


def test_a_class_without_errors_is_no_certain_one():
    """Drawn again it has none either: its F1 is told as uncertain as recall and precision."""
    labels = [0] * 29 + [1] * 10
    table = classes_table(_answers(labels, labels, 2), ["cat", "dog"])
    least = binomtest(29, 29).proportion_ci(method="wilson").low
    assert table.rows[0][1:] == ["29"] + 3 * [f"100.0 % ({100 * least:.0f}-100)"]


def test_of_many_classes_the_worst_comes_first():
    labels = np.repeat(np.arange(30), 4)
    predicted = labels.copy()
    predicted[4 * 17 : 4 * 17 + 3] = 5
    table = classes_table(_answers(labels, predicted, 30), [f"c{n}" for n in range(30)])
    assert [row[0] for row in table.rows][:3] == ["c17", "c5", "c0"]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_figure_shows_every_image_once_and_escapes_names(classes):
    rng = np.random.default_rng(0)
    found = _answers(*rng.integers(0, classes, (2, 400)), classes)
    names = [f"<b>class {n}" for n in range(classes)]
    figure = confusion_figure(found.confusion(), names)
    (cells,) = figure.data
    shares = np.asarray(cells.z)
    images = np.bincount(found.labels, minlength=classes)
    assert (shares * images[:, None]).sum() == pytest.approx(400, abs=0.05)
    shown = [int(note.text) for note in figure.layout.annotations]
    assert sum(shown) == (400 if classes <= 12 else 0)
    hovers = [hover for row in cells.text for hover in row if hover]
    written = [*figure.layout.xaxis.ticktext, *figure.layout.yaxis.ticktext, *hovers]
    assert all("<" not in one and "&lt;b&gt;class" in one for one in written)
    assert len(figure.layout.xaxis.tickvals) <= 25
    assert len(figure.to_json()) < 600_000


def test_points_on_the_front_have_bars_of_their_intervals_and_others_none(tmp_path):
    found = document("made", POINTS, [0.1, 9000], {}, {}, tmp_path, images={"accuracy": 40})
    row = next(row for row in found["points"] if row["id"] == "p01-conv1/base")
    around = binomtest(30, 40).proportion_ci(method="wilson")
    ends = (row["accuracy_low"], row["accuracy_high"])
    assert ends == pytest.approx((around.low, around.high))
    figure = front_figure([found])
    bars = {
        id_: (trace.error_y.arrayminus[at], trace.error_y.array[at])
        for trace in figure.data
        if trace.error_y.array is not None
        for at, (id_, _) in enumerate(trace.customdata)
    }
    low, high = bars["p01-conv1/base"]
    assert (low, high) == pytest.approx((75 - 100 * around.low, 100 * around.high - 75))
    assert bars["s0001/base"] == (0, 0)  # dominated
    assert "teacher/base" not in bars
    told = {
        id_: text for t in figure.data if t.customdata is not None for id_, text in t.customdata
    }
    assert (
        f"validation 75.00 % ({100 * around.low:.1f}-{100 * around.high:.1f})"
        in (told["p01-conv1/base"])
    )


def test_a_run_without_answers_says_why_in_its_report_and_when_two_are_compared(
    tmp_path, command_in
):
    run = made_run(tmp_path / "runs" / "made")
    page = " ".join(write_report(run).read_text().split())
    assert "No classes are told: the network of s0002/base was not kept" in page
    (run / "models" / "s0002" / "base").mkdir(parents=True)
    with pytest.raises(ValueError, match="by a planter that kept no answers"):
        answers_of(run, "s0002/base")
    code, _, err = command_in(tmp_path)("show", "made", "s0001", "s0002")
    assert (code, "s0001 has several points" in err) == (2, True)
    code, _, err = command_in(tmp_path)("show", "made", "s0001/cut2", "s0002")
    assert code == 2
    assert "was not kept, nor its answers" in " ".join(err.split())
    one = _answers([0, 1], [0, 1], 2)
    for point in ("s0001/cut2", "s0002/base"):
        (run / "models" / point).mkdir(parents=True, exist_ok=True)
        one.save(run / "models" / point / "predictions.npz")
    one.save(run / "models" / "s0002" / "base" / "predictions-test.npz")
    assert set(paired_answers(run, "s0002/base", "s0001/cut2")) == {"validation"}
    assert json.loads((run / "pareto.json").read_text())["objectives"] == ["accuracy", "macs"]


def _point(number, **values):
    known = {"accuracy": 0.5, "loss": 1.0, "macs": 10, "params": 10, **values}
    return Point(
        trial=f"s{number}", pipeline="base", method="sample", train_macs=1, seconds=1.0,
        architecture={"builder": "toy", "widths": {}, "pipelines": {}}, **known,
    )  # fmt: skip


def test_only_what_a_study_asks_for_is_measured_beside_the_usual():
    class Cost:
        macs, params, size_bytes = 7, 8, 9

    found = _answers([0, 1, 2, 2], [0, 1, 2, 0], 3)
    assert measured(found, Cost) == {"accuracy": 0.75, "macs": 7, "params": 8, "loss": 1.0}
    more = measured(found, Cost, ("f1_macro", "bytes"), intervals=True)["more"]
    assert set(more) == {"f1_macro", "f1_macro_low", "f1_macro_high", "bytes"}
    assert more["bytes"] == 9
    assert "f1_macro" not in columns()
    assert {"f1_macro", "f1_macro_low", "test_f1_macro", "bytes"} <= {
        *columns(("f1_macro", "bytes"))
    }


def test_the_knee_of_a_falling_loss_is_where_it_stops_to_fall(tmp_path):
    points = [
        _point(n, macs=macs, loss=loss)
        for n, (macs, loss) in enumerate([(10, 2.0), (100, 0.5), (1000, 0.45), (10_000, 0.4)])
    ]
    found = document("x", points, [2.3, 1e5], {}, {}, tmp_path, objectives=("loss", "macs"))
    assert [row["loss"] for row in found["points"] if row["on_front"]] == [2.0, 0.5, 0.45, 0.4]
    assert knee(found)["macs"] == 100


def test_halving_by_three_objectives_is_rank_then_what_is_lacking():
    rng = np.random.default_rng(2)
    values = np.column_stack([rng.random(40), rng.integers(1, 9, 40), rng.integers(1, 9, 40)])
    trials = {f"t{n:02}": [tuple(row)] for n, row in enumerate(values)}
    ranks = pareto_rank(values, (False, False, False))
    lacks = [
        row[0] - min(other[0] for other in values if other[1] <= row[1] and other[2] <= row[2])
        for row in values
    ]
    order = sorted(range(40), key=lambda n: (ranks[n], lacks[n]))
    found = by_rank(trials, 40, ("loss", "macs", "params"))
    assert found == [f"t{n:02}" for n in order]
