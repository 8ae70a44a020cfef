"""`planter pareto`, `show` and `dashboard`: what a run has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from planter.cli.app import RunArgument, app, err, out, shown_path
from planter.tables import form_text, print_front, print_points
from planter.targets import run_folder


@app.command(epilog="Example: planter pareto quickstart runs/other --html fronts.html")
def pareto(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders or names.")],
    html: Annotated[Path | None, typer.Option(help="Draw the fronts into this page.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every point as a table.")] = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw a picture: .png, .svg or .pdf by its ending.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what pareto.json says; a list for several runs.")
    ] = False,
) -> None:
    """Show the front of one run, or lay the fronts of several over each other."""
    from planter.front import COLUMNS, read_front, to_csv, write_text

    fronts = [read_front(run_folder(run)) for run in runs]
    if as_json:
        typer.echo(json.dumps(fronts[0] if len(fronts) == 1 else fronts, indent=2))
    else:
        for front in fronts:
            print_front(out, front)
    if csv is not None:
        rows = [{"study": f["study"], **point} for f in fronts for point in f["points"]]
        csv.parent.mkdir(parents=True, exist_ok=True)
        write_text(csv, to_csv(rows, ["study", *COLUMNS]))
        err.print(f"written: {csv}")
    if html is not None or png is not None:
        from planter.plots import front_figure, write_html, write_image

        figure = front_figure(fronts)
        for file, write in ((html, write_html), (png, write_image)):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write(figure, file)
                err.print(f"written: {file}")


@app.command(epilog="Example: planter show quickstart s0010/cut3")
def show(
    run: RunArgument,
    point: Annotated[
        str | None, typer.Argument(metavar="ID", help="A trial or a point, e.g. s0012/cut2.")
    ] = None,
) -> None:
    """Show a run's points, or one trial: architecture, cost, accuracy, files."""
    from planter.driver.read import read_points
    from planter.front import read_front

    folder = run_folder(run)
    front = read_front(folder)
    if point is None:
        print_front(out, front, every=True)
        out.print(f"\nnext: planter show {run} ID · planter cost {run}/ID", soft_wrap=True)
        return
    matching = [p for p in read_points(folder) if point in (p.trial, p.id)]
    if not matching:
        trials = sorted({p["trial"] for p in front["points"]})
        raise ValueError(f"{run} has no trial or point {point!r}; trials are {', '.join(trials)}")
    rows = {row["id"]: row for row in front["points"]}
    first = matching[0]
    out.print(f"[bold]{first.trial}[/bold], {first.method}, {first.seconds:.1f} s of training")
    widths = " ".join(f"{name}={width}" for name, width in first.architecture["widths"].items())
    out.print(f"{first.architecture['builder']}: {widths}", soft_wrap=True)
    if first.kernels != "plain":
        out.print(f"kernels in training: {form_text(first.kernels)}", soft_wrap=True)
    for name, spec in first.architecture["pipelines"].items():
        out.print(f"{name}: " + " ".join(f"{key}={value}" for key, value in spec.items()))
    print_points(out, [rows[p.id] for p in matching if p.id in rows])
    out.print(f"\nfiles: {shown_path(folder)}/trials/{first.trial}/ (log.txt, metrics.jsonl)")


@app.command(epilog="Example: planter dashboard quickstart --port 8080")
def dashboard(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than 127.0.0.1 open it to a network.")
    ] = "127.0.0.1",
) -> None:
    """Open optuna-dashboard on a running or finished run. Ctrl-C ends it."""
    from planter.driver.read import serve_dashboard

    folder = run_folder(run)

    def ready(address: str) -> None:
        out.print(f"{run} at {address} (Ctrl-C ends)", soft_wrap=True)

    try:
        serve_dashboard(folder, host, port, ready)
    except KeyboardInterrupt:
        out.print("ended")
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error}; try another --port") from error
