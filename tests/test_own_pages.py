"""What stands before optuna-dashboard, asked without a browser."""

import io
import json

import optuna_dashboard
import pytest
from made_runs import POINTS, made_run

from planter.driver.dashboard.own import with_own_pages
from planter.driver.dashboard.storage_view import DashboardView
from planter.driver.storage.points import open_storage


@pytest.fixture
def ask(tmp_path):
    """A function that asks the dashboard of a made run: status, headers, body."""
    run = made_run(tmp_path / "made")
    storage = open_storage(f"sqlite:///{run / 'study.db'}")
    view = DashboardView(storage, run, "made")
    app = with_own_pages(optuna_dashboard.wsgi(view, artifact_store=view), run)

    def answered(method, path, body=b"", **environ):
        told = []
        asked = {
            "REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "application/json",
            "QUERY_STRING": "", "SERVER_NAME": "localhost", "SERVER_PORT": "80",
            "wsgi.url_scheme": "http", "wsgi.errors": io.StringIO(), **environ,
        }  # fmt: skip
        held = app(asked, lambda *given: told.extend(given))
        found = b"".join(held)
        getattr(held, "close", lambda: None)()
        return int(told[0].split()[0]), dict(told[1]), found

    yield answered
    storage.close()


def test_the_dashboards_page_brings_our_names_and_look_whole_each_time(ask):
    since = "Fri, 01 Jan 2100 00:00:00 GMT"
    status, headers, body = ask("GET", "/dashboard/studies/1", HTTP_IF_MODIFIED_SINCE=since)
    assert status == 200
    assert int(headers["Content-Length"]) == len(body)
    assert body.count(b"/planter/dashboard.css") == body.count(b"/planter/dashboard.js") == 1
    assert body.index(b"/planter/dashboard.js") < body.index(b"</head>")
    for name, kind in (("dashboard.css", "text/css"), ("dashboard.js", "text/javascript")):
        status, headers, held = ask("GET", f"/planter/{name}")
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert held


def test_our_own_pages_tell_of_every_point(ask):
    for name in ("report.html", "pareto.html"):
        status, _, body = ask("GET", f"/planter/{name}")
        assert status == 200
        assert len(body) < 1_000_000
        told = body.decode().replace("\\u002f", "/")  # as plotly writes it in a figure's data
        assert [point.id for point in POINTS if point.id not in told] == []


def test_a_page_that_is_not_there_names_those_that_are(ask):
    status, _, body = ask("GET", "/planter/../study.yaml")
    assert status == 404
    assert b"/planter/report.html" in body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/studies"),
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/trials/1/tell"),
        ("POST", "/api/trials/1/user-attrs"),
        ("POST", "/api/artifacts/1/1"),
        ("DELETE", "/api/artifacts/1/1/0a"),
        ("PUT", "/api/studies/1/preference_feedback_component"),
    ],
)
def test_what_would_change_a_run_is_refused_with_a_sentence(ask, method, path):
    before = _held(ask)
    status, _, body = ask(method, path, b"{}")
    assert status == 403
    assert "changes nothing but notes" in json.loads(body)["reason"]
    assert _held(ask) == before


def _held(ask):
    study = json.loads(ask("GET", "/api/studies/1")[2])
    rows = [(t["number"], t["state"], t["values"], t["user_attrs"]) for t in study["trials"]]
    assert rows
    return study["name"], rows


def test_notes_can_be_written(ask):
    note = json.loads(ask("GET", "/api/studies/1")[2])["note"]
    body = json.dumps({"version": note["version"] + 1, "body": "take s0001/cut2"}).encode()
    assert ask("PUT", "/api/studies/1/note", body)[0] == 204
    assert json.loads(ask("GET", "/api/studies/1")[2])["note"]["body"] == "take s0001/cut2"
