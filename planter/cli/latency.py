"""`planter latency`: how long networks take on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from planter.cli.app import app, err, out
from planter.driver.run_folder.names import run_folder
from planter.front.certainty import value_text
from planter.machine.commands import command
from planter.machine.paths import shown_path, user_path

_ROUNDS = 10


@app.command(epilog="Example: planter latency quickstart --threads 2")
def latency(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FILE...",
            help="A run, or files: .onnx, .pt2, folders of saved networks (models/TRIAL/PIPELINE).",
        ),
    ],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads. Default: a worker's of the run; else 1.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for each network in each engine, in ten turns.")
    ] = 1.0,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Measure though a search is at work in the run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time forward passes of a run's front, teacher and baselines, or of exported files.

    All take turns, in torch and onnxruntime on the CPU, and in torch on a GPU where there is one:
    median and quartiles in milliseconds a batch. Of a run they are kept in latency.json; the median
    for one image becomes the column latency_ms of pareto.json and pareto.csv.
    """
    files = [_is_file(target) for target in targets]
    if all(files):
        places = {target: user_path(target) for target in targets}
        found = _measured(places, threads or 1, batch, seconds, "torch")
        _print(found, {}, as_json=as_json)
        return
    if len(targets) > 1:
        raise ValueError(f"expected one RUN, or files; got {', '.join(targets)}")
    import torch

    from planter.driver.storage.reading import run_study
    from planter.front.points import read_front
    from planter.latency.file import (
        read_measurements,
        reported,
        write_column,
        write_measurement,
    )

    run = run_folder(targets[0])
    resources = run_study(run).resources
    with _held(run, anyway=anyway) as alone:
        rows = {row["id"]: row for row in reported(read_front(run))}
        if not rows:
            raise ValueError(f"{run} holds no saved network of its front, teacher or baselines")
        places = {name: run / row["model"] for name, row in rows.items()}
        read_measurements(run)  # what is damaged is told before the time is spent
        column = "cuda" if resources.gpu and torch.cuda.is_available() else "torch"
        found = _measured(places, threads or resources.cpu, batch, seconds, column, own_code=True)
        write_measurement(run, found)
        if alone:
            write_column(run)
    _print(found, rows, as_json=as_json)
    told = f"written: {shown_path(run)}/latency.json"
    if alone and batch == 1:
        shown = Path(shown_path(run))
        told += f"\nnext: {command('report', shown)} · "
        told += command("pareto", shown, "--x", "latency_ms")
    err.print(told, soft_wrap=True, markup=False)
    if not alone:
        err.print("the search at work brings the column latency_ms up to it with its next trial")


def _is_file(target: str) -> bool:
    """Whether a target is a network, or a file that ought to be one, rather than a run."""
    from planter.export import FORMATS
    from planter.latency.engines import FILES

    path = user_path(target)
    known = FORMATS.get(path.suffix.removeprefix("."))
    if known is not None and path.suffix not in FILES:
        held = "tensors alone" if known.beside else "what no engine here runs"
        raise ValueError(
            f"{target} holds {held}: time the folder it was exported from "
            f"(RUN/models/TRIAL/PIPELINE), or export it as {' or '.join(FILES)}"
        )
    return path.suffix in FILES or (path / "arch.json").is_file()


@contextmanager
def _held(run: Path, *, anyway: bool) -> Iterator[bool]:
    """Keeps searches out of the run; whether that was possible. Raises ValueError where one is at
    work there, unless `anyway`."""
    from planter.driver.run_folder.settings import lock_run
    from planter.study.schema import StudyError

    try:
        lock = lock_run(run)
    except StudyError:
        if not anyway:
            raise ValueError(
                f"a search is at work in {run}, and its workers would make the times longer: "
                "wait until it has ended, or --anyway"
            ) from None
        yield False
        return
    try:
        yield True
    finally:
        lock.release(force=True)


def _measured(
    places: Mapping[str, Path],
    threads: int,
    batch: int,
    seconds: float,
    column: str,
    *,
    own_code: bool = False,
) -> dict[str, Any]:
    from planter.latency.engines import INSTALL, calls_of, onnx_is_here
    from planter.latency.file import measurement
    from planter.latency.timing import time_calls
    from planter.machine.torch_state import threads_of_torch

    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    if load is not None and load > 0.5:
        err.print(
            f"[yellow]warning:[/yellow] a load of {load} over the last minute on "
            f"{os.cpu_count()} cores: where other processes are still at work, times are longer",
            soft_wrap=True,
        )
    if not onnx_is_here():
        err.print(f"without onnxruntime: {escape(INSTALL)}")
    with err.status("building") as status, threads_of_torch(threads):
        calls = {}
        for name, place in places.items():
            for engine, call in calls_of(place, batch, threads, own_code=own_code).items():
                calls[name, engine] = call
        status.update("measuring")
        timings = time_calls(calls, rounds=_ROUNDS, seconds=seconds / _ROUNDS)
    return measurement(timings, threads=threads, batch=batch, load=load, column=column)


def _print(found: Mapping[str, Any], points: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    engines = [
        engine
        for engine in ("torch", "onnxruntime", "cuda")
        if any(engine in row for row in found["rows"])
    ]
    known = ["accuracy", "macs"] if points else []
    table = Table("id", *known, *(f"{engine} ms" for engine in engines), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found["rows"]:
        cells = []
        if points:
            point = points[row["id"]]
            cells = [value_text(point, "accuracy"), f"{point['macs']:,}"]
        table.add_row(escape(row["id"]), *cells, *(_shown(row.get(engine)) for engine in engines))
    out.print(table)
    images = "one image" if found["batch"] == 1 else f"{found['batch']} images"
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    gpu = f", {found['machine']['gpu']}" if "cuda" in engines else ""
    out.print(
        f"\na forward pass of {images}, {threads}: median (quartiles); "
        f"{found['machine']['cpu']}{gpu}",
        soft_wrap=True,
    )


def _shown(timing: Mapping[str, float] | None) -> str:
    if timing is None:
        return ""
    median, lower, upper = (f"{timing[f'{q}_ms']:.3g}" for q in ("median", "lower", "upper"))
    return f"{median} ({lower}-{upper})"
