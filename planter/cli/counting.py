"""`planter cost`: parameters and multiply-adds of a network."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from planter.arch import Architecture
from planter.cli.app import app, out
from planter.cli.runs import architecture_of_builder, pipelines_of, point_of
from planter.cli.tables import cost_json, print_cost, training_table


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
    from planter.costs.macs import alone, training_cost
    from planter.costs.macs import cost as count
    from planter.kernels.forms import form_names, form_of, forms_of
    from planter.networks.assembly import check_architecture

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
        # A child is one pipeline: of the base it came from, it has what that one reads.
        only = point.pipeline if point.method == "evolve" else None
    else:
        pipeline, form, norms, only = None, form_of("kflo:2x4"), "switch_stats", None
        pipelines = pipelines_of(cut or [], branch or [], head or [])
        architecture = architecture_of_builder(
            target, image, classes, widths, option or [], pipelines
        )
    check_architecture(architecture)
    if kernels is not None:
        form = form_of(kernels)
    whole = count(architecture, norms=norms)
    whole = whole if only is None else alone(whole, only)
    shown = whole if pipeline is None else whole.pipelines[pipeline]
    names = None if only is None else [only]
    step = training_cost(architecture, form, batch, names) if training else None
    if as_json:
        told = cost_json(shown, whole)
        if step is not None:
            told["training"] = {"kernels": form_names(form), **step.to_dict()}
        typer.echo(json.dumps(told, indent=2))
        return
    print_cost(out, shown, whole)
    if step is not None:
        out.print(training_table(form_names(form), step))
