"""What the dashboard is given of a run, and that it changes none of it."""

import json
import xml.etree.ElementTree as ElementTree

import optuna
import pytest
from made_runs import POINTS, made_run
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState

from planter.driver.dashboard import notes
from planter.driver.dashboard.storage_view import DashboardView
from planter.driver.storage.points import open_storage
from planter.plots.svg import Line, chart


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "made")


@pytest.fixture
def view(run):
    storage = open_storage(f"sqlite:///{run / 'study.db'}")
    yield DashboardView(storage, run, "made")
    storage.close()


def _written(run):
    """Everything the database says, read by Optuna alone."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{run / 'study.db'}")
    found = [
        (
            study.study_name,
            study.user_attrs,
            study.system_attrs,
            storage.get_all_trials(study._study_id),
        )
        for study in storage.get_all_studies()
    ]
    storage.engine.dispose()
    return found


def _files(row):
    found = [json.loads(v) for k, v in row.system_attrs.items() if k.startswith("artifacts:")]
    return {meta["filename"]: meta["artifact_id"] for meta in found}


def test_each_row_has_its_network_curve_and_metrics(view, run):
    number = view.get_study_id_from_name("made")
    rows = view.get_all_trials(number)
    assert [row.user_attrs["id"] for row in rows] == [point.id for point in POINTS]
    seen = set()
    for row, point in zip(rows, POINTS, strict=True):
        files = _files(row)
        assert set(files) == {"architecture.json", "metrics.jsonl", "learning-curve.svg"}
        assert _files(view.get_trial(row._trial_id)) == files
        network = json.loads(view.open_reader(files["architecture.json"]).read())
        assert network == {"pipeline": point.pipeline, "architecture": point.architecture}
        metrics = run / "trials" / point.trial / "metrics.jsonl"
        assert view.open_reader(files["metrics.jsonl"]).read() == metrics.read_bytes()
        seen |= set(files.values())
    assert len(seen) == 3 * len(POINTS)


def test_the_timeline_shows_trainings_not_the_writing_of_points(view):
    for row in view.get_all_trials(view.get_study_id_from_name("made")):
        took = row.datetime_complete - row.datetime_start
        assert took.total_seconds() == pytest.approx(row.user_attrs["seconds"])


def test_the_study_has_a_note_a_picture_and_plots(view):
    (study,) = view.get_all_studies()
    attributes = study.system_attrs
    assert attributes == view.get_study_system_attrs(study._study_id)
    note = attributes["dashboard:note_str:0"]
    assert "4 of 7 points on the front" in note
    assert "| s0001/cut2 | sample | 50.00 % | 100 | 20 |" in note
    (picture,) = [v for k, v in attributes.items() if k.startswith("artifacts:")]
    number = json.loads(picture)["artifact_id"]
    assert f"(/artifacts/{study._study_id}/{number})" in note
    svg = ElementTree.fromstring(view.open_reader(number).read())
    assert len(svg.findall("{http://www.w3.org/2000/svg}circle")) == len(POINTS)
    plots = {k.split(":")[2]: json.loads(v) for k, v in attributes.items() if "plot_data" in k}
    assert set(plots) == {"front", "hypervolume"}
    assert study.system_attrs["study:metric_names"] == ["accuracy", "macs"]


def test_the_note_follows_the_front(view, run):
    number = view.get_study_id_from_name("made")
    before = view.get_study_system_attrs(number)
    front = json.loads((run / "pareto.json").read_text())
    front["points"] = front["points"][1:]
    (run / "pareto.json").write_text(json.dumps(front))
    after = view.get_study_system_attrs(number)
    assert "3 of 6 points" in after["dashboard:note_str:0"]
    assert after["dashboard:note_ver"] != before["dashboard:note_ver"]


@pytest.mark.parametrize("text", ['{"study": ', "[]", '{"study": "made", "points": []}'])
def test_a_document_that_cannot_be_read_is_told_in_the_note(view, run, text):
    (run / "pareto.json").write_text(text)
    attributes = view.get_study_system_attrs(view.get_study_id_from_name("made"))
    assert "pareto.json is" in attributes["dashboard:note_str:0"]
    assert view.get_all_trials(view.get_study_id_from_name("made"))


def test_points_of_another_planter_leave_the_rest_of_the_dashboard(view, monkeypatch):
    def other(*_):
        raise ValueError("the points of made were written by another version of planter")

    monkeypatch.setattr(notes, "points_in", other)
    attributes = view.get_study_system_attrs(view.get_study_id_from_name("made"))
    assert "another version of planter" in attributes["dashboard:note_str:0"]


def test_the_curve_of_a_training_that_goes_on_is_drawn(view, run):
    metrics = run / "trials" / "s0002" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"epoch": 5, "lo')
    (row,) = [
        row
        for row in view.get_all_trials(view.get_study_id_from_name("made"))
        if row.user_attrs["id"] == "s0002/base"
    ]
    svg = view.open_reader(_files(row)["learning-curve.svg"]).read()
    ElementTree.fromstring(svg)
    assert b"validation" not in svg
    lines = [{"epoch": n, "loss": 1.0 / n, "val_loss": 2.0 / n} for n in (1, 2)]
    del lines[0]["val_loss"]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    svg = view.open_reader(_files(row)["learning-curve.svg"]).read()
    ElementTree.fromstring(svg)
    assert b"validation" in svg


def test_looking_writes_nothing(view, run):
    before = _written(run)
    number = view.get_study_id_from_name("made")
    assert view.get_all_studies()
    assert view.get_all_trials(number)
    assert view.get_study_system_attrs(number)
    assert _written(run) == before


def test_nobody_can_end_or_bend_the_search_from_the_dashboard(view, run):
    before = _written(run)
    number = view.get_study_id_from_name("made")
    row = view.get_all_trials(number)[0]._trial_id
    for write in (
        lambda: view.delete_study(number),
        lambda: view.create_new_study([optuna.study.StudyDirection.MINIMIZE], "other"),
        lambda: view.create_new_trial(number),
        lambda: view.set_trial_state_values(row, TrialState.FAIL),
        lambda: view.set_trial_user_attr(row, "id", "other"),
        lambda: view.set_study_user_attr(number, "reference_point", [0, 1]),
        lambda: view.set_study_system_attr(number, "study:metric_names", ["a", "b"]),
        lambda: view.write("id", None),
        lambda: view.remove("id"),
    ):
        with pytest.raises(PermissionError, match="dashboard"):
            write()
    assert _written(run) == before


def test_a_persons_note_takes_the_place_of_ours(view, run):
    number = view.get_study_id_from_name("made")
    version = view.get_study_system_attrs(number)["dashboard:note_ver"]
    view.set_study_system_attr(number, "dashboard:note_ver", version + 1)
    view.set_study_system_attr(number, "dashboard:note_str:0", "take s0001/cut2")
    view.set_study_system_attr(number, "dashboard:1:note_str:0", "of a row")
    shown = view.get_study_system_attrs(number)
    assert shown["dashboard:note_str:0"] == "take s0001/cut2"
    assert shown["dashboard:note_ver"] == version + 1
    assert any("plot_data" in key for key in shown)


def test_a_run_without_points_is_shown_without_extras(tmp_path):
    run = made_run(tmp_path / "none", [], name="none")
    (run / "pareto.json").unlink()
    storage = open_storage(f"sqlite:///{run / 'study.db'}")
    view = DashboardView(storage, run, "none")
    (study,) = view.get_all_studies()
    assert not [key for key in study.system_attrs if key.startswith(("artifacts", "dashboard"))]
    with pytest.raises(ArtifactNotFound):
        view.open_reader("00000000-0000-0000-0000-000000000000")
    storage.close()


def _marks(svg):
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    return root.findall(f"{name}circle"), [text.text for text in root.findall(f"{name}text")]


def test_a_chart_places_points_by_their_values():
    circles, texts = _marks(
        chart(
            [Line("<a>", [(10, 0), (100, 5), (1000, 10)], "#123456", "points")], "x", "y", log=True
        )
    )
    across, up = ([float(circle.get(axis)) for circle in circles] for axis in ("cx", "cy"))
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.11)  # of 0.1 px
    assert up[0] - up[1] == pytest.approx(up[1] - up[2], abs=0.11)
    assert up[0] > up[2]
    assert {"<a>", "x", "y", "10", "100", "1k"} <= set(texts)


@pytest.mark.parametrize("ends", [(14_000, 16_000), (21_000, 49_000), (1, 1e7)])
def test_a_chart_of_a_narrow_and_of_a_wide_front_has_ticks(ends):
    line = Line("", [(x, 50.0) for x in ends], "black")
    texts = ElementTree.fromstring(chart([line], "macs", "accuracy", log=True)).iter(
        "{http://www.w3.org/2000/svg}text"
    )
    assert sum(text.get("text-anchor") == "middle" for text in texts) >= 3


def test_a_chart_of_nothing_of_one_point_and_of_no_numbers_is_a_chart():
    assert _marks(chart([], "x", "y"))[0] == []
    assert len(_marks(chart([Line("", [(3, 3)], "red", "points")], "x", "y"))[0]) == 1
    points = [(1, float("nan")), (2, 5.0), (3, float("inf"))]
    assert len(_marks(chart([Line("", points, "red", "points")], "x", "y"))[0]) == 1
