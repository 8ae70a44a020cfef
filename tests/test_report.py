"""The report page: what it says, and that it is nobody's door."""

import importlib.metadata
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import create_trial
from test_driver import write_study

import planter
from planter.driver.run_folder import report as report_module
from planter.driver.run_folder.read import read_points, standing
from planter.driver.run_folder.report import _importances, write_report
from planter.driver.storage.points import METRICS, PointBook, open_storage, open_study
from planter.driver.storage.reading import run_study
from planter.front.choose import recommended
from planter.front.history import Stopped, elapsed, history
from planter.front.points import Point
from planter.plots import HistoryLine, history_figure, importance_figure
from planter.report import without_password


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    study = write_study(folder)
    found = planter.search(study, out=folder / "runs" / "small")
    assert (folder / "runs" / "small" / "report.html").is_file()  # written by the search
    assert found["points"]
    return folder / "runs" / "small"


class _Page(HTMLParser):
    """The rows of each section's tables, the tags, and what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags, self.fetched, self.text = {}, [], [], []
        self._section, self._cell = "", None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for name, v in attrs if name in ("src", "href", "data", "srcset")]
        if tag == "section":
            self._section = dict(attrs)["id"]
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[self._section][-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self._cell is not None:
            self._cell += data


def _read(file):
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def test_the_page_says_what_pareto_json_says(run):
    page = _read(run / "report.html")
    front = json.loads((run / "pareto.json").read_text())
    every = page.rows["front"]
    begin = next(at for at, row in enumerate(every) if row[:2] == ["point", "method"])
    names = [row[0].removeprefix("* ") for row in every[begin + 1 :]]
    assert names == [
        p["id"] for p in front["points"] if p["on_front"] or p["method"] in ("teacher", "baseline")
    ]
    starred = {row[0][2:] for row in page.rows["front"] if row[0].startswith("* ")}
    assert starred == {p["id"] for p in front["points"] if p["on_front"]}
    # What each method cost adds up to what the front cost.
    cost = {row[0]: row[1:] for row in page.rows["cost"][1:]}
    assert int(cost["all"][0]) == front["cost"]["trials"]
    assert sum(int(row[0]) for name, row in cost.items() if name != "all") == int(cost["all"][0])
    searched = [p for p in front["points"] if p["method"] in ("plant", "sample")]
    counted = {row[0]: int(row[1]) for row in page.rows["pipelines"][1:]}
    assert sum(counted.values()) == len(searched)
    assert counted["base (planted)"] == sum(p["method"] == "plant" for p in searched)
    versions = dict(page.rows["versions"][1:])
    assert versions["planter"] == importlib.metadata.version("planter")
    assert (run / "study.yaml").read_text().strip() in "".join(page.text)


def test_the_page_stands_alone(run):
    page = _read(run / "report.html")
    # Nothing is fetched; what can be opened lies beside it, and is nobody's address.
    assert set(page.fetched) == {
        "pareto.html", "planting.html", "pareto.csv", "pareto.json", "planting.csv",
    }  # fmt: skip
    assert all((run / name).is_file() for name in page.fetched)
    assert page.tags.count("section") == 12  # with curves and planting
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text.split("<script", 1)[0]
    assert text.count('id="drawing-code"') == 1  # once, not once a figure
    assert len(text) < 1_000_000


def test_each_line_of_the_page_loads_the_network_of_its_row(run):
    page = _read(run / "report.html")
    front = json.loads((run / "pareto.json").read_text())
    known = {point["id"]: point for point in front["points"]}
    rows = [row for row in page.rows["front"] if row[-1].startswith("planter.")]
    assert {row[0].removeprefix("* ") for row in rows} >= {
        point["id"] for point in front["points"] if point["on_front"]
    }
    for row in rows:
        network = eval(row[-1], {"planter": planter})
        parameters = sum(p.numel() for p in network.parameters())
        assert parameters == known[row[0].removeprefix("* ")]["params"]


def test_too_few_trials_tell_no_importances(run):
    assert "Shown from 10 finished" in (run / "report.html").read_text(encoding="utf-8")


def test_a_control_is_found_by_its_name_and_told_beside_the_run(run):
    control = run.parent / "small-random"
    shutil.copytree(run, control)
    try:
        page = _read(write_report(run))
    finally:
        shutil.rmtree(control)
    rows = {row[0]: row[1:] for row in page.rows["control"][1:]}
    front = json.loads((run / "pareto.json").read_text())
    # The copy is the same run: both columns are alike, and the last step is the front's volume.
    assert rows["hypervolume"] == [f"{front['hypervolume']:.4f}"] * 2
    assert all(first == second for first, second in rows.values())
    page = _read(write_report(run))
    assert "control" not in page.rows


def test_a_control_that_is_named_must_be_readable(run, tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        write_report(run, tmp_path)


def _sampled(storage, trials, accuracy):
    """A study of trials whose accuracy a function of their parameters tells."""
    rng = random.Random(0)
    study = open_study(storage, "small/sampling", METRICS)
    kinds = {"strong": FloatDistribution(0, 1), "weak": FloatDistribution(0, 1)}
    for number in range(trials):
        params = {name: rng.random() for name in kinds}
        values = [accuracy(**params), 100 + number]
        study.add_trial(create_trial(values=values, params=params, distributions=kinds))


def test_importances_name_what_decides_the_accuracy(run):
    study = run_study(run)
    storage = InMemoryStorage()
    _sampled(storage, 9, lambda strong, weak: strong)
    assert _importances(storage, study) is None
    _sampled(storage, 31, lambda strong, weak: strong)
    found = _importances(storage, study)
    assert (found.target, found.trials) == ("accuracy", 40)
    assert found.shares["strong"] > 0.9
    bars = importance_figure(found.shares).data[0]
    assert list(bars.y) == ["weak", "strong"]  # the lowest is drawn first


def test_importances_of_a_long_study_are_told_of_trials_all_over_it(run, monkeypatch):
    monkeypatch.setattr(report_module, "_MOST", 20)
    storage = InMemoryStorage()
    # What decides changes in the middle: the first or the last twenty alone would see one of both.
    _sampled(storage, 50, lambda strong, weak: strong)
    _sampled(storage, 50, lambda strong, weak: weak)
    found = _importances(storage, run_study(run))
    assert found.trials == 20
    assert min(found.shares.values()) > 0.1


def test_trials_that_do_not_differ_have_no_importances(run):
    storage = InMemoryStorage()
    _sampled(storage, 12, lambda strong, weak: 0.5)
    assert _importances(storage, run_study(run)) is None


def test_what_a_study_says_cannot_put_code_into_the_page(run, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(run, folder)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    front = json.loads((folder / "pareto.json").read_text())
    front["study"] = evil
    for point in front["points"]:
        point["id"] = evil + point["id"]
    account = front["data"]
    account |= dict.fromkeys(("pixels", "validation_from", "test_from"), evil)
    account |= {key: [evil] for key in ("image", "warnings", "notes")}
    account["skipped"] = [{"ending": evil, "files": 1, "reason": evil}]
    account["ignored"] = [{"folder": evil, "files": 1, "reason": evil}]
    account["classes"] = {evil: {"train": 1, "validation": 1, "test": 1}}
    (folder / "pareto.json").write_text(json.dumps(front))
    (folder / "study.yaml").write_text(f"# {evil}\n")
    environment = json.loads((folder / "environment.json").read_text())
    environment["platform"] = evil
    (folder / "environment.json").write_text(json.dumps(environment))
    page = _read(write_report(folder))
    assert "img" not in page.tags
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")
    assert evil in "".join(page.text)  # shown as text


def test_passwords_of_a_storage_are_not_shown():
    text = "storage: postgresql+psycopg://me:se:cr@t@host:5432/db\nroot: /data\n"
    assert (
        without_password(text) == "storage: postgresql+psycopg://me:***@host:5432/db\nroot: /data\n"
    )
    for url, starred in (
        ("postgresql://h/db?user=u&password=se&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("'postgresql://u:p w@h/d'", "'postgresql://u:***@h/d'"),
        ("postgresql://h/db?sslpassword=se cret", "postgresql://h/db?sslpassword=***"),
        ("'postgresql://h/db?password=x'", "'postgresql://h/db?password=***'"),
    ):
        assert without_password(f"storage: {url}\n") == f"storage: {starred}\n"
    plain = "storage: sqlite:////tmp/x.db\n# see http://host/a:b\n"
    assert without_password(plain) == plain


def test_a_search_that_was_killed_is_told_from_one_at_work(run):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    study, here = run_study(run), socket.gethostname()
    storage = open_storage(f"sqlite:///{run / 'study.db'}")
    book = PointBook(storage, study.name)
    try:
        for pid, host, told in (
            (os.getpid(), here, "at work on it, or was killed"),
            (ended.pid, here, "its search was killed"),
            (ended.pid, "elsewhere", "at work on it, or was killed"),
        ):
            book._study.set_user_attr("driver", {"pid": pid, "host": host, "token": "x"})
            assert told in standing(storage, study.name)
    finally:
        book._study.set_user_attr("driver", None)
        storage.close()


def test_an_unfinished_run_is_told_from_a_finished_one(run):
    study = run_study(run)
    storage = open_storage(f"sqlite:///{run / 'study.db'}")
    try:
        assert standing(storage, study.name) is None
        book = PointBook(storage, study.name)
        book._study.set_user_attr("driver", {"pid": 4711, "host": "there", "token": "x"})
        try:
            assert "process 4711 on there" in standing(storage, study.name)
            assert "Not finished" in _read_text(write_report(run))
        finally:
            book._study.set_user_attr("driver", None)
        assert "Not finished" not in _read_text(write_report(run))
    finally:
        storage.close()


def _read_text(file):
    return file.read_text(encoding="utf-8")


def _point(trial, accuracy, macs, cost, method="sample"):
    return Point(trial, "base", method, accuracy, 1.0, macs, 1, cost, 2.0, {})


def test_the_course_adds_rectangles_and_costs_in_the_order_of_writing():
    points = [
        _point("teacher", 1.0, 10_000, 7, "teacher"),
        _point("s0", 0.5, 1000, 20),
        _point("s1", 0.75, 100, 30),
        _point("s2", 0.6, 1000, 1),  # dominated
        _point("s3", 0.9, 20_000, 5),  # beyond the reference
    ]
    steps = history(points, [0.25, 10_000], {})
    assert [step.trial for step in steps] == ["teacher", "s0", "s1", "s2", "s3"]
    assert [step.trainings for step in steps] == [1, 2, 3, 4, 5]
    assert [step.train_macs for step in steps] == [7, 27, 57, 58, 63]
    # 0.25 above the reference over one decade; then 0.5 over two; nothing more.
    expected = [0, 0.25, 1.0, 1.0, 1.0]
    assert [step.hypervolume for step in steps] == pytest.approx(expected, rel=1e-12)
    assert [s.hypervolume for s in history(points, [0.25, 10_000], {"macs": 99})] == [0] * 5


def test_what_was_stopped_costs_where_it_took_its_time():
    points = [_point("s0", 0.5, 1000, 20), _point("s1", 0.75, 100, 30)]
    stopped = [Stopped("s2", 3, 1.0, after=1), Stopped("s3", 4, 1.0, 2), Stopped("s4", 5, 1.0, 2)]
    steps = history(points, [0.25, 10_000], {}, stopped)
    assert [step.trial for step in steps] == ["s0", "s2", "s1", "s3", "s4"]
    assert [step.train_macs for step in steps] == [20, 23, 53, 57, 62]
    assert [step.hypervolume for step in steps] == pytest.approx([0.25, 0.25, 1.0, 1.0, 1.0])


def test_a_trial_of_several_pipelines_is_one_training(run):
    points = read_points(run)
    steps = history(points, [0.1, 1e9], {})
    assert len(steps) == len({point.trial for point in points}) < len(points)
    once = {point.trial: point.train_macs for point in points}
    assert steps[-1].train_macs == sum(once.values())


def test_the_course_is_drawn_from_the_first_volume_on():
    points = [_point("teacher", 1.0, 10_000, 7, "teacher"), _point("s0", 0.5, 1000, 20)]
    line = HistoryLine("<x>", history(points, [0.25, 10_000], {}))
    above, below = history_figure([line]).data
    assert (list(above.x), list(above.y)) == ([2], [0.25])
    assert (list(below.x), list(below.y)) == ([27], [0.25])
    assert above.name == "&lt;x&gt;"


def test_the_clock_counts_what_lies_between_trainings_but_no_break():
    # Two at a time, a wait of 100 s, a break of an hour, another training.
    assert elapsed([(0, 50), (10, 60), (160, 200), (3800, 3900)]) == 200 + 100
    assert elapsed([(0, 100), (20, 30)]) == 100
    assert elapsed([]) == 0


def test_the_points_to_take_are_the_best_the_cheapest_like_it_and_the_knee():
    def row(name, accuracy, macs, low, high):
        return {
            "id": name, "accuracy": accuracy, "macs": macs, "on_front": True,
            "accuracy_low": low, "accuracy_high": high,
        }  # fmt: skip

    front = {
        "study": "x",
        "objectives": ["accuracy", "macs"],
        "reference_point": [0.1, 1e6],
        "points": [
            row("a", 0.2, 10, 0.1, 0.3),
            row("b", 0.9, 20, 0.85, 0.93),
            row("c", 0.94, 500, 0.9, 0.96),
            row("d", 0.95, 1000, 0.92, 0.97),
        ],
        "bounds": {"macs": 1000},
    }
    found = recommended(front)
    assert [one.row["id"] for one in found] == ["d", "c", "b"]
    assert found[0].why == "best accuracy within the bounds of at most 1,000 macs"
    assert "fewest multiply-adds" in found[1].why
    assert "knee" in found[2].why
    assert recommended({**front, "points": []}) == []
