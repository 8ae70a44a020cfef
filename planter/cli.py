"""The command line: one function a command; each imports what it needs when it is called."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planter.arch import Architecture
from planter.tables import (
    cost_json,
    form_text,
    print_cost,
    print_front,
    print_points,
    training_table,
)
from planter.targets import architecture_of_builder, pipelines_of, point_of, run_folder

app = typer.Typer(
    name="planter",
    help="Grows CNNs and selects sub-networks: a Pareto front of accuracy against MACs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study. Repeatable."),
]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, or a name in runs/.")
]


def main() -> None:
    """Entry point of `planter`: a user's mistake is one message and exit code 2."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    # The user's own modules (my_pkg.nets:build) stand in the folder planter is called from.
    sys.path.insert(0, str(Path.cwd()))
    try:
        app()
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        err.print(f"[red]planter:[/red] {escape(str(error))}", soft_wrap=True)
        if not debug:
            err.print("[dim]--debug shows where this was raised[/dim]")
        sys.exit(2)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(f"planter {version('planter')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error was raised (in any place).")
    ] = False,
) -> None:
    """Options of planter itself."""


@app.command(epilog="Example: planter search quickstart --set recipe.epochs=10 --workers 2")
def search(
    study: StudyArgument,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Run folder. Default: runs/NAME.")
    ] = None,
    overrides: Set = None,
    workers: Annotated[
        int | None, typer.Option(help="Trainings at a time; 0 trains in this process.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL. Default: study.db in the run folder.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster, host:port. Default: Ray started here."),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on with a run whose study has changed.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Take the run from a driver that is gone or shall stop."),
    ] = False,
) -> None:
    """Run a study: teacher, baselines, planting rounds and sampled trials, to one Pareto front.

    The same command continues a run that was interrupted, to exactly the trials asked for.
    """
    with err.status("loading"):
        from planter.driver.jobs import SearchStoppedError
        from planter.driver.run import search as run_search
        from planter.memory import keep_memory
        from planter.progress import ProgressDisplay
        from planter.study_file import read_study

    given = _overrides(overrides, workers, storage)
    name = read_study(study, given).name
    run = (out_folder if out_folder is not None else Path("runs") / name).resolve()
    keep_memory()  # with workers: 0 it is this process that trains
    try:
        with ProgressDisplay(out) as display:
            front = run_search(
                study,
                out=run,
                overrides=given,
                accept_changes=accept_changes,
                take_over=take_over,
                ray_address=ray_address,
                observe=display.show,
            )
    except KeyboardInterrupt:
        err.print(
            f"\ninterrupted; what is finished stays in {_shown(run)}; "
            "the same command goes on from there",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    except SearchStoppedError as error:
        err.print(
            f"[red]stopped:[/red] {escape(str(error))}\n"
            f"logs: {_shown(run)}/trials/ID/log.txt; the same command goes on",
            soft_wrap=True,
        )
        raise typer.Exit(4) from None
    print_front(out, front)
    shown = _shown(run)
    written = [
        "pareto.html",
        "pareto.csv",
        "pareto.json",
        "planting.html",
        "planting.csv",
        "models",
    ]
    out.print(
        f"\nwritten to {shown}: {', '.join(f for f in written if (run / f).exists())}\n"
        f"next: planter show {shown} · planter dashboard {shown} · planter pareto {shown}",
        soft_wrap=True,
    )
    checked = read_study(study, given)
    searched = [p for p in front["points"] if p["method"] in ("plant", "sample")]
    if (checked.plant is None and checked.sample is None) or any(p["on_front"] for p in searched):
        return
    if checked.objectives.bounds.limits():
        err.print("nothing within the bounds")
        raise typer.Exit(3)
    err.print(f"every searched trial failed; logs: {shown}/trials/ID/log.txt")
    raise typer.Exit(4)


@app.command(epilog="Example: planter check studies/quickstart.yaml --json")
def check(
    study: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study."),
    ] = None,
    overrides: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of study files and stop.")
    ] = False,
) -> None:
    """Find every mistake in a study, and say what it would cost, without training anything."""
    from planter.study import Study, StudyError
    from planter.study_file import read_study

    if schema:
        typer.echo(json.dumps(Study.model_json_schema(), indent=2))
        return
    if study is None:
        raise ValueError("check needs a STUDY (or --schema)")
    from planter.driver.check import prepare, worker_count
    from planter.driver.estimate import estimate_seconds
    from planter.progress import duration

    try:
        checked = read_study(study, overrides or [])
        prepared = prepare(checked)
    except StudyError as error:
        if not as_json:
            raise
        problems = [
            {"place": p.place, "got": p.got, "expected": p.expected} for p in error.problems
        ]
        empty: dict[str, Any] = {"estimate_s": None, "macs": {}, "params": {}}
        typer.echo(json.dumps({"ok": False, "problems": problems, **empty}, indent=2))
        raise typer.Exit(2) from None
    costs = prepared.costs()
    seconds = estimate_seconds(checked, prepared)
    for warning in prepared.warnings:
        err.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    if as_json:
        found = {
            "ok": True,
            "problems": [],
            "estimate_s": round(seconds, 1),
            "macs": {name: cost.macs for name, cost in costs.items()},
            "params": {name: cost.params for name, cost in costs.items()},
        }
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("network", "macs", "parameters", "pipelines", box=None, pad_edge=False)
    for name, cost in costs.items():
        shown = f"random draw {name.removeprefix('sample')}" if name.startswith("sample") else name
        ways = ", ".join(f"{way} {c.macs:,}" for way, c in cost.pipelines.items() if way != "base")
        table.add_row(shown, f"{cost.macs:,}", f"{cost.params:,}", ways)
    out.print(table)
    out.print(
        f"\n{study} is sound. About {duration(seconds)} of training on this machine "
        f"with {worker_count(checked)} workers.\nnext: planter search {study}",
        soft_wrap=True,
    )


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
    out.print(f"\nfiles: {_shown(folder)}/trials/{first.trial}/ (log.txt, metrics.jsonl)")


@app.command(epilog="Example: planter cost vgg16 --cut cut2 --cut cut7 --image 3x32x32")
def cost(
    target: Annotated[
        str, typer.Argument(metavar="RUN/ID|BUILDER", help="A point of a run, or a builder's name.")
    ],
    image: Annotated[
        str, typer.Option(help="channels x height x width, for a builder.")
    ] = "3x32x32",
    classes: Annotated[int, typer.Option(min=1, help="Number of classes, for a builder.")] = 10,
    widths: Annotated[
        str | None,
        typer.Option(help="One number for every convolution, or names: conv1=8,conv2=16."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the builder. Repeatable."),
    ] = None,
    cut: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Add a sub-model that enters there. Repeatable."),
    ] = None,
    branch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE[=KIND]",
            help="Add an auxiliary branch after that stage: blocks, narrow, shallow, rest, fc, "
            "conv. Repeatable.",
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Add an image head: fsrcnn, vdsr. Repeatable."),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Show what a training step costs as well.")
    ] = False,
    kernels: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="With --training: plain, kflo:2x4 (B x rho), do-conv, acnet, expandnet:4, "
            "features:4. Default: kflo:2x4, for a point of a run its own.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="With --training: images a step.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count parameters and multiply-adds of a network, by stage and by pipeline.

    macs are those of convolutions and linear layers for one image, without bias and norm.
    macs_all adds 1 per convolution output, 2 per batch-norm element, 1 per ReLU element and the
    inputs of poolings. With --training: the multiply-adds of one step, forward and backward, with
    all pipelines and in the training form of the kernels, beside the plain ones.
    """
    from planter.assembly import check_architecture
    from planter.forms import form_names, form_of, forms_of
    from planter.macs import cost as count
    from planter.macs import training_cost

    if kernels is not None and not training:
        raise ValueError("--kernels is the form a network trains in: give --training with it")
    if "/" in target:
        if widths or option or cut or branch or head:
            raise ValueError(
                f"{target} has its widths, options and pipelines; give them for a BUILDER"
            )
        point, pipeline = point_of(target)
        architecture = Architecture.from_dict(point.architecture)
        form, norms = forms_of(point.kernels), point.norms
    else:
        pipeline, form, norms = None, form_of("kflo:2x4"), "switch_stats"
        pipelines = pipelines_of(cut or [], branch or [], head or [])
        architecture = architecture_of_builder(
            target, image, classes, widths, option or [], pipelines
        )
    check_architecture(architecture)
    if kernels is not None:
        form = form_of(kernels)
    whole = count(architecture, norms=norms)
    shown = whole if pipeline is None else whole.pipelines[pipeline]
    step = training_cost(architecture, form, batch) if training else None
    if as_json:
        told = cost_json(shown, whole)
        if step is not None:
            told["training"] = {"kernels": form_names(form), **step.to_dict()}
        typer.echo(json.dumps(told, indent=2))
        return
    print_cost(out, shown, whole)
    if step is not None:
        out.print(training_table(form_names(form), step))


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


def _overrides(given: Sequence[str] | None, workers: int | None, storage: str | None) -> list[str]:
    every = list(given or [])
    if workers is not None:
        every.append(f"resources.workers={workers}")
    if storage is not None:
        every.append(f"storage={json.dumps(storage)}")
    return every


def _shown(path: Path) -> str:
    """A path relative to the working folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
