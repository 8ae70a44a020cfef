"""Reading a run that another process may be writing: its points, its dashboard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

import yaml

from planter.driver.storage import PointBook, database_url, open_storage
from planter.front import Point
from planter.study import Study

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def run_study(run: Path) -> Study:
    """The study of a run folder. Raises ValueError where the folder holds none."""
    file = run / "resolved.yaml"
    if not file.is_file():
        raise ValueError(f"{run} is no run folder: it has no resolved.yaml; expected runs/NAME")
    return Study.model_validate(yaml.safe_load(file.read_text()))


def read_points(run: Path) -> list[Point]:
    """Every point in a run's database."""
    study = run_study(run)
    storage = open_storage(database_url(run, study.storage))
    try:
        return PointBook(storage, study.name).points
    finally:
        storage.close()


def serve_dashboard(run: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves optuna-dashboard on a run's database until interrupted; calls `ready` with the
    address of the study of points when it listens.

    The dashboard reads through a connection of its own that waits rather than fails, so a running
    search is not disturbed.
    """
    import optuna_dashboard

    study = run_study(run)
    storage = open_storage(database_url(run, study.storage))
    number = storage.get_study_id_from_name(study.name)
    app = optuna_dashboard.wsgi(storage)
    if host == "127.0.0.1":
        app = _for_this_machine(app)
    with make_server(host, port, app, handler_class=_Quiet) as server:
        ready(f"http://{host}:{server.server_port}/dashboard/studies/{number}")
        server.serve_forever()


def _for_this_machine(app: WSGIApplication) -> WSGIApplication:
    """The application, closed to pages of others whose name was made to lead to this machine: the
    browser sends that name, and optuna-dashboard lets whoever reaches it change a study."""

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ.get("HTTP_HOST", "").partition(":")[0] in ("127.0.0.1", "localhost"):
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"planter dashboard answers at 127.0.0.1 and localhost\n"]

    return answer


class _Quiet(WSGIRequestHandler):
    """Does not write a line for every request."""

    def log_message(self, *args: object) -> None:
        pass
