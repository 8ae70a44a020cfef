"""What stands before optuna-dashboard: planter's own pages of the run, its names and its look in
Optuna's pages, and a sentence to whoever would change something."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planter.driver.run_folder.read import read_points
from planter.driver.run_folder.report import report_text
from planter.front.describe import with_networks
from planter.front.points import nothing_trained, read_front
from planter.plots import figure_page, front_figure

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

OWN = "/planter/"
_STATIC = {"dashboard.css": "text/css", "dashboard.js": "text/javascript"}
_HEAD = b'<link rel="stylesheet" href="/planter/dashboard.css">' + (
    b'<script defer src="/planter/dashboard.js"></script>'
)
_NOTE = re.compile(r"/api/studies/\d+(/\d+)?/note")
_REFUSED = (
    "planter dashboard shows a run and changes nothing but notes; planter enqueue and planter stop "
    "steer a search"
)


def with_own_pages(app: WSGIApplication, run: Path) -> WSGIApplication:
    """The dashboard of a run with what planter adds: `/planter/report.html` and
    `/planter/pareto.html`, made of what the run holds when they are asked for; in the dashboard's
    pages planter's ids and no buttons that cannot work; 403 and a sentence for any request that
    would write more than a note."""

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD") and not (method == "PUT" and _NOTE.fullmatch(path)):
            reason = json.dumps({"reason": _REFUSED}).encode()
            return _answered(start, "403 Forbidden", "application/json", reason)
        if path.startswith(OWN):
            return _own(run, path.removeprefix(OWN), start)
        if path == "/dashboard" or path.startswith("/dashboard/"):
            return _with_head(app, environ, start)
        return app(environ, start)

    return answer


def _own(run: Path, name: str, start: StartResponse) -> Iterable[bytes]:
    if name in _STATIC:
        held = files("planter.driver.dashboard") / "static" / name
        return _answered(start, "200 OK", _STATIC[name], held.read_bytes())
    pages: dict[str, Callable[[Path], str]] = {
        "report.html": report_text,
        "pareto.html": _front_page,
    }
    if name not in pages:
        known = ", ".join(f"{OWN}{page}" for page in pages)
        told = f"no page {OWN}{name}; there are {known}\n".encode()
        return _answered(start, "404 Not Found", "text/plain", told)
    try:
        text = pages[name](run)
    except ValueError as error:  # nothing trained yet, or a damaged document
        return _answered(start, "503 Service Unavailable", "text/plain", f"{error}\n".encode())
    return _answered(start, "200 OK", "text/html", text.encode())


def _front_page(run: Path) -> str:
    front = read_front(run)
    if nothing := nothing_trained(front):
        raise ValueError("; ".join(nothing))
    figure = front_figure([with_networks(front, read_points(run))])
    return figure_page(figure, "pareto.html", ["report.html"])


def _answered(start: StartResponse, status: str, kind: str, body: bytes) -> Iterable[bytes]:
    headers = [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))]
    start(status, headers)
    return [body]


def _with_head(
    app: WSGIApplication, environ: WSGIEnvironment, start: StartResponse
) -> Iterable[bytes]:
    """One of the dashboard's pages, with our style sheet and script in its head."""
    conditions = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE")
    whole = {key: value for key, value in environ.items() if key not in conditions}
    given: list[Any] = []

    def take(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
        given[:] = [status, headers]

    held = app(whole, take)
    try:
        body = b"".join(held)
    finally:
        if (close := getattr(held, "close", None)) is not None:
            close()  # the file of the page
    status, headers = given
    body = body.replace(b"</head>", _HEAD + b"</head>", 1)
    dropped = ("content-length", "last-modified", "etag", "accept-ranges")
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    start(status, [*kept, ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
    return [body]
