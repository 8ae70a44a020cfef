"""optuna-dashboard on a run, served to this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna_dashboard

from planter.driver.dashboard.own import with_own_pages
from planter.driver.dashboard.storage_view import DashboardView
from planter.driver.storage.reading import opened, run_study

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def serve_dashboard(run: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves optuna-dashboard on a run's database until interrupted; calls `ready` with the
    address of the study of points when it listens.

    The dashboard reads through a connection of its own that waits rather than fails, and writes
    nothing but people's notes, so a running search is not disturbed.
    """
    study = run_study(run)
    with opened(run, study) as storage:
        try:
            number = storage.get_study_id_from_name(study.name)
        except KeyError:
            raise ValueError(
                f"{run} has no study in its database yet; expected a begun search"
            ) from None
        view = DashboardView(storage, run, study.name)
        app = with_own_pages(optuna_dashboard.wsgi(view, artifact_store=view), run)
        with make_server(host, port, app, handler_class=_Quiet) as server:
            bound = str(server.server_address[0])
            if ip_address(bound).is_loopback:
                names = {host, bound, "127.0.0.1", "localhost"}
                server.set_app(_for_this_machine(app, names))
            ready(f"http://{host}:{server.server_port}/dashboard/studies/{number}")
            server.serve_forever()


def _for_this_machine(app: WSGIApplication, names: Set[str]) -> WSGIApplication:
    """The application under these names of the machine, closed to pages of others whose name was
    made to lead to it: the browser sends that name, and would show them the run."""

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ.get("HTTP_HOST", "").partition(":")[0] in names:
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"planter dashboard answers at 127.0.0.1 and localhost\n"]

    return answer


class _Quiet(WSGIRequestHandler):
    """Does not write a line for every request."""

    def log_message(self, *args: object) -> None:
        pass
