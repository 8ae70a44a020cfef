"""`planter pareto`, `report`, `show` and `dashboard`: what a run has found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planter.cli.app import (
    Knee,
    MaxMacs,
    MinAccuracy,
    RunArgument,
    app,
    err,
    expanded,
    out,
)
from planter.cli.tables import (
    print_choice,
    print_difference,
    print_front,
    print_lineage,
    print_points,
)
from planter.driver.run_folder.names import run_folder
from planter.front.describe import form_text, with_networks
from planter.front.lineage import lineage
from planter.machine.commands import command
from planter.machine.paths import shown_path

if TYPE_CHECKING:
    from planter.front.points import Point

Picture = Annotated[Path | None, typer.Option(help="Draw a picture.", callback=expanded)]


@app.command(epilog="Example: planter pareto quickstart runs/other --html fronts.html")
def pareto(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders or names.")],
    across: Annotated[
        str | None,
        typer.Option("--x", help="What is across: macs, params, latency_ms. Default: the study's."),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option("--y", help="What goes up: accuracy, or another. Default: the study's."),
    ] = None,
    third: Annotated[
        str | None, typer.Option("--z", help="A third objective; each two are then drawn.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Draw the fronts into this page.", callback=expanded)
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write every point as a table.", callback=expanded)
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Draw a picture: .png, .svg or .pdf by its ending.", callback=expanded),
    ] = None,
    svg: Picture = None,
    pdf: Picture = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what pareto.json says; a list for several runs.")
    ] = False,
) -> None:
    """Show the front of one run, or lay the fronts of several over each other.

    By other axes than the study's objectives the front is chosen anew, within its bounds.
    """
    from planter.driver.run_folder.compare import other_images
    from planter.driver.storage.reading import run_study
    from planter.front.points import columns, read_front, to_csv, with_bounds, write_text
    from planter.front.reranked import front_by

    folders = [run_folder(run) for run in runs]
    limits = [run_study(folder).objectives.bounds.limits() for folder in folders]
    found = [
        with_bounds(read_front(folder), most) for folder, most in zip(folders, limits, strict=True)
    ]
    objectives = list(found[0]["objectives"])
    if across is not None or up is not None or third is not None:
        own_up, own_across, *_ = objectives
        objectives = [up or own_up, across or own_across, *([third] if third else [])]
    fronts = [front_by(front, objectives, most) for front, most in zip(found, limits, strict=True)]
    points = [_looked_up(run, folder) for run, folder in zip(runs, folders, strict=True)]
    for told in other_images(folders):
        err.print(told, soft_wrap=True, markup=False)
    if as_json:
        typer.echo(json.dumps(fronts[0] if len(fronts) == 1 else fronts, indent=2))
    else:
        for front in fronts:
            print_front(out, front)
    if csv is not None:
        rows = [{"study": f["study"], **point} for f in fronts for point in f["points"]]
        csv.parent.mkdir(parents=True, exist_ok=True)
        write_text(csv, to_csv(rows, ["study", *columns(objectives)]))
        err.print(f"written: {csv}", soft_wrap=True, markup=False)
    pictures = [(png, None), (svg, "svg"), (pdf, "pdf")]
    if html is not None or any(file is not None for file, _ in pictures):
        drawn = [with_networks(*pair) for pair in zip(fronts, points, strict=True)]
        _draw(drawn, html, pictures)


def _looked_up(run: str, folder: Path, *, needed: bool = False) -> list[Point]:
    """The points of a run's database, and a word where it is not finished. Unless they are
    `needed`, a front can be shown without the database, though not what its networks are."""
    from planter.driver.run_folder.read import points_in, standing
    from planter.driver.storage.reading import opened, run_study

    try:
        study = run_study(folder)
        with opened(folder, study) as storage:
            if (why := standing(storage, study.name)) is not None:
                err.print(f"{run}: {why}", soft_wrap=True, markup=False)
            return points_in(storage, study.name)
    except ValueError as error:
        if needed:
            raise
        told = f"{run}: shown without its networks: {error}"
        err.print(told, soft_wrap=True, markup=False)
        return []


def _draw(
    fronts: Sequence[Mapping[str, Any]],
    html: Path | None,
    pictures: Sequence[tuple[Path | None, str | None]],
) -> None:
    """The page first: it needs no browser."""
    from planter.plots import front_figure, write_html, write_image

    figure = front_figure(fronts)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_html(figure, html)
        err.print(f"written: {html}", soft_wrap=True, markup=False)
    for file, kind in pictures:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_image(figure, file, kind)
            err.print(f"written: {file}", soft_wrap=True, markup=False)


@app.command(epilog="Example: planter report quickstart quickstart-random")
def report(
    run: RunArgument,
    control: Annotated[
        str | None,
        typer.Argument(metavar="CONTROL", help="A run to lay beside it. Default: RUN-random."),
    ] = None,
) -> None:
    """Write the page report.html into a run folder: fronts, course, growth, costs, settings."""
    from planter.driver.run_folder.read import run_standing
    from planter.driver.run_folder.report import write_report

    folder = run_folder(run)
    file = write_report(folder, None if control is None else run_folder(control))
    if (why := run_standing(folder)) is not None:
        err.print(f"{run}: {why}", soft_wrap=True, markup=False)
    out.print(f"written: {shown_path(file.resolve())}", soft_wrap=True, markup=False)


@app.command(epilog="Example: planter show quickstart s0004/cut3")
def show(
    run: RunArgument,
    point: Annotated[
        str | None, typer.Argument(metavar="ID", help="A trial or a point, e.g. s0004/cut3.")
    ] = None,
    second: Annotated[
        str | None,
        typer.Argument(metavar="ID2", help="Another point, to tell the difference from."),
    ] = None,
    max_macs: MaxMacs = None,
    min_accuracy: MinAccuracy = None,
    at_knee: Knee = False,
    with_lineage: Annotated[
        bool, typer.Option("--lineage", help="Show how the point ID came to be.")
    ] = False,
) -> None:
    """Show a run's points, one trial, how two points differ on the same images, or the best point
    under a bound and its neighbours."""
    from planter.front.points import read_front

    folder = run_folder(run)
    front = read_front(folder)
    points = _looked_up(run, folder, needed=point is not None)
    bounded = max_macs is not None or min_accuracy is not None or at_knee
    if with_lineage and point is None:
        raise ValueError(f"--lineage is of one point: {command('show', run)} ID --lineage")
    if bounded:
        if point is not None:
            raise ValueError(f"give either the ID {point!r} or a bound (or --knee), not both")
        from planter.front.choose import chosen

        row = chosen(front, max_macs=max_macs, min_accuracy=min_accuracy, at_knee=at_knee)
        print_choice(out, front, row, points)
        if row["model"] is not None:
            files = f"\nfiles: {shown_path(folder)}/{row['model']}/"
            out.print(files, soft_wrap=True, markup=False)
        return
    if point is None:
        print_front(out, front, every=True)
        if not front["points"]:
            return
        told = f"\nnext: {command('show', run)} ID · {command('cost', run)}/ID"
        out.print(told, soft_wrap=True, markup=False)
        return
    matching = _matching(run, points, point)
    if with_lineage:
        rows = {row["id"]: row for row in front["points"]}
        for one in matching:
            print_lineage(out, lineage(points, one.id), rows, front["objectives"])
        return
    if second is not None:
        from planter.driver.run_folder.predictions import paired_answers

        pair = [_one_of(run, points, name) for name in (point, second)]
        print_difference(out, pair, paired_answers(folder, *pair), front["objectives"][0])
        return
    rows = {row["id"]: row for row in front["points"]}
    first = matching[0]
    told = f"{first.trial}, {first.method}, {first.seconds:.1f} s of training"
    out.print(told, style="bold", markup=False)
    widths = " ".join(f"{name}={width}" for name, width in first.architecture["widths"].items())
    out.print(f"{first.architecture['builder']}: {widths}", soft_wrap=True, markup=False)
    if first.kernels != "plain":
        told = f"kernels in training: {form_text(first.kernels)}"
        out.print(told, soft_wrap=True, markup=False)
    for name, spec in first.architecture["pipelines"].items():
        told = " ".join(f"{key}={value}" for key, value in spec.items())
        out.print(f"{name}: {told}", markup=False)
    print_points(out, [rows[p.id] for p in matching if p.id in rows], front["objectives"])
    files = f"\nfiles: {shown_path(folder)}/trials/{first.trial}/ (log.txt, metrics.jsonl)"
    out.print(files, soft_wrap=True, markup=False)


def _matching(run: str, points: Sequence[Point], name: str) -> list[Point]:
    """The points of a trial, or the one of that id."""
    matching = [p for p in points if name in (p.trial, p.id)]
    if not matching:
        trials = sorted({p.trial for p in points})
        raise ValueError(f"{run} has no trial or point {name!r}; trials are {', '.join(trials)}")
    return matching


def _one_of(run: str, points: Sequence[Point], name: str) -> str:
    """The id of the only point that a name means."""
    ids = [p.id for p in _matching(run, points, name)]
    if len(ids) > 1:
        raise ValueError(f"{name} has several points; expected one of {', '.join(ids)}")
    return ids[0]


@app.command(epilog="Example: planter dashboard quickstart --port 8080")
def dashboard(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than 127.0.0.1 open it to a network.")
    ] = "127.0.0.1",
) -> None:
    """Open optuna-dashboard on a running or finished run. Ctrl-C ends it."""
    from planter.driver.dashboard.serve import serve_dashboard

    folder = run_folder(run)

    def ready(address: str) -> None:
        out.print(f"{run} at {address} (Ctrl-C ends)", soft_wrap=True, markup=False)

    try:
        serve_dashboard(folder, host, port, ready)
    except KeyboardInterrupt:
        out.print("ended")
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error}; try another --port") from error
