"""`planter pareto`, `report` and `show` on made runs: axes, bounds, faults of a run."""

import contextlib
import csv
import io
import json
import os
import re
import sqlite3
import tempfile
from pathlib import Path

import pytest
from made_runs import POINTS, made_run
from rich.console import Console

from planter.cli.tables import print_points
from planter.driver.run_folder.read import read_points
from planter.driver.storage.points import PointBook, open_storage
from planter.front.describe import difference, network_lines
from planter.front.points import Point


@pytest.fixture
def call(tmp_path, command_in):
    """Runs `planter ARGUMENTS` beside a run `runs/made`; exit code, stdout, stderr on one line."""
    made_run(tmp_path / "runs" / "made")
    run = command_in(tmp_path)

    def told(*arguments):
        code, out, err = run(*arguments)
        return code, out, re.sub(r"\s+", " ", err)

    return told


def _starred(text):
    return {line.split()[1] for line in text.splitlines() if line.startswith("* ")}


@pytest.mark.parametrize(
    ("arguments", "front"),
    [
        ([], {"p00-start/base", "s0001/cut2", "p01-conv1/base", "s0002/base"}),
        (["--x", "params"], {"s0001/cut2", "s0001/base", "s0002/base"}),
        (["--y", "macs", "--x", "params"], {"p00-start/base", "s0001/cut2"}),
        (
            ["--z", "params"],
            {"p00-start/base", "s0001/cut2", "s0001/base", "p01-conv1/base", "s0002/base"},
        ),
    ],
)
def test_the_front_by_the_axes_that_are_asked_for(call, arguments, front):
    code, out, _ = call("pareto", "made", *arguments, "--csv", "t.csv", "--html", "t.html")
    assert code == 0
    assert _starred(out) == front
    with open("t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows if row["on_front"] == "True"} == front
    assert len(rows) == len(POINTS)
    found = json.loads(call("pareto", "made", *arguments, "--json")[1])
    assert {row["id"] for row in found["points"] if row["on_front"]} == front
    assert (found["hypervolume"] is None) == bool(arguments)


def test_the_page_of_a_front_tells_the_networks(call):
    assert call("pareto", "made", "--html", "deep/t.html")[0] == 0
    with open("deep/t.html", encoding="utf-8") as file:
        text = file.read()
    assert "pipeline cut2: before conv3, kernel 4" in text
    assert "trained with cut2" in text
    assert "kernels in training: kflo" in text


def test_bounds_of_the_study_hold_for_other_axes_too(call, tmp_path):
    settings = {"objectives": {"bounds": {"macs": 2500}}}
    made_run(tmp_path / "runs" / "bound", name="bound", **settings)
    assert "s0002/base" not in _starred(call("pareto", "bound", "--x", "params")[1])


def test_the_best_point_under_a_bound_and_its_neighbours(call):
    code, out, _ = call("show", "made", "--max-macs", "1.5k")
    assert code == 0
    assert _starred(out) == {"p01-conv1/base"}
    lines = [line.strip() for line in out.splitlines()]
    assert (
        "next smaller on the front: s0001/cut2, -25.00 points of accuracy, -900 (-90%) macs, "
        "-80 (-80%) parameters"
    ) in lines
    assert "conv1 5 -> 16, base -> cut2, kernels in training plain -> kflo" in lines
    assert (
        "next larger on the front: s0002/base, +12.50 points of accuracy, +2,000 (+200%) macs, "
        "+200 (+200%) parameters"
    ) in lines
    assert "conv1 5 -> 24" in lines


def test_the_ends_of_a_front_have_one_neighbour(call):
    out = call("show", "made", "--min-accuracy", "0.8")[1]
    assert _starred(out) == {"s0002/base"}
    assert "next larger on the front: none" in out
    assert "next smaller on the front: none" in call("show", "made", "--max-macs", "60")[1]


def test_the_knee_is_told_with_its_network(call):
    # From (50, 0.25) to (3000, 0.875) on a logarithmic axis cut2 lies 0.23 above the line, and
    # p01-conv1 0.07 (log10 of 2 and of 20 over that of 60, against 0.4 and 0.8).
    out = call("show", "made", "--knee")[1]
    assert _starred(out) == {"s0001/cut2"}
    assert "pipeline cut2: before conv3, kernel 4, stride 2" in out


def test_a_bound_that_nothing_meets_is_exit_code_3_and_names_the_nearest(call):
    code, out, err = call("show", "made", "--max-macs", "10")
    assert code == 3
    assert out == ""
    assert "the nearest is p00-start/base" in err
    code, _, err = call("show", "made", "--min-accuracy", "0.95", "--max-macs", "1.5k")
    assert code == 3
    assert "the nearest is p01-conv1/base" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "made", "s0001", "--knee"], "either the ID 's0001' or a bound"),
        (["show", "made", "--knee", "--max-macs", "2M"], "either --knee or bounds"),
        (["show", "made", "--max-macs", "few"], "macs 'few': expected a number"),
        (["pareto", "made", "--x", "flops"], "expected different ones of accuracy, macs"),
        (["pareto", "made", "--x", "accuracy"], "expected different ones"),
        (["pareto", "made", "--x", "latency_ms"], "planter latency made measures it"),
        (["report", "nosuch"], "no run 'nosuch'"),
        (["report", "made", "nosuch"], "no run 'nosuch'"),
    ],
)
def test_a_mistake_is_exit_code_2(call, arguments, message):
    code, _, err = call(*arguments)
    assert code == 2
    assert message in err


def test_a_machine_without_a_browser_still_writes_page_and_table(call, monkeypatch):
    import plotly.graph_objects as go

    def no_browser(*_, **__):
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    monkeypatch.setattr(go.Figure, "write_image", no_browser)
    files = ["--png", "f.png", "--csv", "f.csv", "--html", "f.html"]
    code, _, err = call("pareto", "made", *files)
    assert code == 2
    assert "pip install planter[png]" in err
    assert "Chromium" in err
    assert Path("f.csv").read_text().count("\n") == len(POINTS) + 1
    assert "Plotly.newPlot" in Path("f.html").read_text(encoding="utf-8")


def test_a_run_that_is_going_says_so_and_shows_what_there_is(call, tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'runs' / 'made' / 'study.db'}")
    held = {"pid": 4711, "host": "there", "token": "x"}
    PointBook(storage, "made")._study.set_user_attr("driver", held)
    storage.close()
    code, out, err = call("pareto", "made")
    assert code == 0
    assert len(_starred(out)) == 4
    assert "made: Not finished: a search is at work on it, or was killed (process 4711" in err
    assert "Not finished" in call("report", "made")[2]


def test_an_empty_front_is_told_and_drawn(call, tmp_path):
    made_run(tmp_path / "runs" / "empty", [p for p in POINTS if not p.searched], name="empty")
    code, out, _ = call("pareto", "empty", "--html", "empty.html")
    assert code == 0
    assert "The front is empty: no searched network has finished" in out
    assert "Plotly.newPlot" in Path("empty.html").read_text(encoding="utf-8")
    assert call("report", "empty")[0] == 0
    page = (tmp_path / "runs" / "empty" / "report.html").read_text(encoding="utf-8")
    assert "The front is empty" in page
    code, _, err = call("show", "empty", "--knee")
    assert code == 2
    assert "the front of empty is empty" in err


def test_a_run_without_a_finished_trial_is_told(call, tmp_path):
    (tmp_path / "runs" / "made" / "pareto.json").unlink()
    for command in ("pareto", "show", "report"):
        code, _, err = call(command, "made")
        assert code == 2
        assert "has no finished trial yet" in err


def test_a_run_of_an_older_format_is_told(call, tmp_path):
    run = tmp_path / "runs" / "made"
    whole = json.loads((run / "pareto.json").read_text())
    old = json.loads(json.dumps(whole))
    del old["cost"]
    for row in old["points"]:
        del row["train_macs"]
    (run / "pareto.json").write_text(json.dumps(old))
    for command in ("pareto", "show", "report"):
        code, _, err = call(command, "made")
        assert code == 2
        assert "is of an older planter: it lacks cost, train_macs" in err
    (run / "pareto.json").write_text(json.dumps(whole))
    (run / "resolved.yaml").write_text("name: made\nsearch_space: old\n")
    code, _, err = call("pareto", "made")
    assert code == 2
    assert "of another version of planter (unknown or missing: search_space)" in err


def test_a_row_of_the_database_without_a_field_is_told(call, tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'runs' / 'made' / 'study.db'}")
    study = PointBook(storage, "made")._study
    study.add_trial(_row(study.trials[0], {"id": "old/base", "trial": "old"}))
    storage.close()
    code, _, err = call("show", "made", "old")
    assert code == 2
    assert "written by another version of planter" in err


def _row(like, attributes):
    from optuna.trial import create_trial

    return create_trial(values=like.values, user_attrs=attributes)


def test_a_run_whose_database_is_gone_is_told(call, tmp_path):
    (tmp_path / "runs" / "made" / "study.db").unlink()
    code, _, err = call("report", "made")
    assert code == 2
    assert "has no study.db" in err
    for command in (["pareto", "made"], ["show", "made"]):  # the front stands in a file
        code, out, err = call(*command)
        assert code == 0
        assert len(_starred(out)) == 4
        assert "shown without its networks" in err
    code, _, err = call("show", "made", "s0001")
    assert code == 2
    assert "has no study.db" in err
    assert not (tmp_path / "runs" / "made" / "study.db").exists()


def test_a_damaged_database_is_told(call, tmp_path):
    (tmp_path / "runs" / "made" / "study.db").write_bytes(bytes(range(256)) * 20)
    code, out, err = call("show", "made")
    assert code == 0
    assert len(_starred(out)) == 4
    assert "study.db is damaged" in err
    code, _, err = call("report", "made")
    assert code == 2
    assert "study.db is damaged" in err


def test_an_id_that_looks_like_markup_is_shown(call, tmp_path):
    file = tmp_path / "runs" / "made" / "pareto.json"
    file.write_text(file.read_text().replace("s0001/cut2", "[/red]s[bold]1/cut2"))
    for arguments in (["show"], ["pareto"], ["show", "--knee"]):
        code, out, err = call(arguments[0], "made", *arguments[1:])
        assert code == 0, err
        assert "[/red]s[bold]1/cut2" in out


@pytest.mark.parametrize("tables", [(), ("studies", "trials")])
def test_a_database_that_is_only_being_made_is_left_alone(tmp_path, tables):
    """As a driver has it in its first moments: without tables, or with some of them."""
    made_run(tmp_path / "runs" / "made")
    file = tmp_path / "runs" / "made" / "study.db"
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as database:
        for table in tables:
            database.execute(f"CREATE TABLE {table} (number INTEGER)")
        database.commit()
    with pytest.raises(ValueError, match="only being made"):
        read_points(tmp_path / "runs" / "made")
    with contextlib.closing(sqlite3.connect(file)) as database:
        found = database.execute("SELECT name FROM sqlite_master").fetchall()
    assert found == [(table,) for table in tables]


def test_a_run_that_may_not_be_written_to_is_read_all_the_same(tmp_path, monkeypatch):
    """With an open log, as a search that was killed leaves one."""
    run = made_run(tmp_path / "runs" / "made")
    before = sorted(path.name for path in run.iterdir())
    access = os.access

    def of_somebody_else(path, mode, **options):
        return run not in (path, Path(path).parent) and access(path, mode, **options)

    monkeypatch.setattr(os, "access", of_somebody_else)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir()
    assert [point.id for point in read_points(run)] == [point.id for point in POINTS]
    assert sorted(path.name for path in run.iterdir()) == before
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.parametrize("command", [["show"], ["pareto", "--csv"]])
def test_names_are_shown_as_they_are(call, tmp_path, command):
    made_run(tmp_path / "runs" / "q[red]s[/x]", name="q")
    files = ["o[bold].csv"] if "--csv" in command else []
    code, out, err = call(command[0], "q[red]s[/x]", *command[1:], *files)
    assert code == 0, err
    assert ("o[bold].csv" if files else "q[red]s[/x]") in out + err


def test_the_best_point_of_a_run_that_is_going_says_so(call, tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'runs' / 'made' / 'study.db'}")
    held = {"pid": 4711, "host": "there", "token": "x"}
    PointBook(storage, "made")._study.set_user_attr("driver", held)
    storage.close()
    for arguments in ([], ["--knee"], ["s0001"]):
        assert "Not finished" in call("show", "made", *arguments)[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--png", "n.gif"], "n.gif: a picture's ending is one of .png, .svg, .pdf"),
        (["--html", "runs"], "runs is a folder; name a file"),
        (["--csv", "runs"], "runs is a folder; name a file"),
        (["--pdf", "runs"], "runs is a folder; name a file"),
    ],
)
def test_a_place_that_takes_no_file_is_told(call, options, message):
    code, _, err = call("pareto", "made", *options)
    assert code == 2
    assert message in err


def test_the_difference_names_all_that_differs():
    def point(pipeline="base", trial="s1", kernels="plain", depth=20, width=8, **spec):
        pipelines = {"cut2": {"before": "stage2", "kernel": 2, "stride": 2, **spec}}
        options = {"depth": depth, "classes": 10, "image": [3, 32, 32]}
        data = {"builder": "resnet", "widths": {"stem": width}, "options": options}
        cost = (0.5, 0.1, 10, 10, 10, 1.0)
        return Point(
            trial, pipeline, "sample", *cost, {**data, "pipelines": pipelines}, kernels=kernels
        )

    assert difference(point(), point(trial="s2", depth=32)) == "depth 20 -> 32"
    assert difference(point(), point(trial="s2", width=9)) == "stem 8 -> 9"
    assert difference(point("cut2"), point("cut2", "s2", kernel=4, stride=4)) == (
        "cut2: kernel 2 -> 4, cut2: stride 2 -> 4"
    )
    assert difference(point(), point("cut2")) == "base -> cut2, of the same training"
    told = difference(point(), point(trial="s2", kernels="kflo:2x1"))
    forms = "kernels in training plain -> kflo:2x1"
    assert told == f"the same network, trained otherwise, {forms}"
    told = difference(point(), point(trial="s2", width=9, kernels="kflo:2x1"))
    assert told == f"stem 8 -> 9, {forms}"
    assert network_lines(point(depth=32))[0] == "resnet depth=32 stem=8"


@pytest.mark.parametrize(
    ("width", "gone"), [(100, []), (80, []), (60, ["parameters"]), (50, ["parameters", "method"])]
)
def test_a_narrow_terminal_shows_whole_ids_and_numbers_of_fewer_columns(tmp_path, width, gone):
    points = [
        {**point, "accuracy_low": 0.625, "accuracy_high": 0.875, "macs": point["macs"] + 10**5}
        for point in json.loads((made_run(tmp_path / "made") / "pareto.json").read_text())["points"]
    ]
    file = io.StringIO()
    print_points(Console(file=file, width=width, force_terminal=True, color_system=None), points)
    text = file.getvalue()
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    words = set(text.split())
    for point in points:
        shown = {point["id"], f"{point['macs']:,}", f"{100 * point['accuracy']:.2f}"}
        shown |= set() if "method" in gone else {point["method"]}
        shown |= set() if "parameters" in gone else {f"{point['params']:,}"}
        assert shown <= words
    assert "(62.5-87.5)" in words
    told = f"without {', '.join(gone)}: the terminal is {width} characters wide"
    assert (told in " ".join(text.split())) == bool(gone)


def test_a_pipe_gets_every_column_on_one_line(tmp_path):
    found = json.loads((made_run(tmp_path / "made") / "pareto.json").read_text())
    file = io.StringIO()
    print_points(Console(file=file, width=40), found["points"])
    assert len(file.getvalue().splitlines()) == 1 + len(found["points"])
