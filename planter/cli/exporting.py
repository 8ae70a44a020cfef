"""`planter export`: a network as a file that runs without planter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from planter.cli.app import Knee, MaxMacs, MinAccuracy, app, err, expanded, out
from planter.cli.runs import split_target

if TYPE_CHECKING:
    from planter.export import Exported


@app.command(epilog="Example: planter export quickstart --max-macs 100k -o small.onnx")
def export(
    target: Annotated[
        str, typer.Argument(metavar="RUN/ID|RUN", help="A point of a run, or a run to choose from.")
    ],
    file: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The file to write.", callback=expanded
        ),
    ],
    max_macs: MaxMacs = None,
    min_accuracy: MinAccuracy = None,
    knee: Knee = False,
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="onnx, pt2 or safetensors. Default: by the file's ending."),
    ] = None,
    fold_norms: Annotated[
        bool,
        typer.Option("--fold-norms", help="Batch norms become part of the layer before them."),
    ] = False,
    normalise: Annotated[
        bool,
        typer.Option("--normalise", help="The file takes raw images and normalises them itself."),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise to 8 bits (ONNX); the accuracy is measured.")
    ] = False,
    calibration: Annotated[
        int | None, typer.Option(min=1, help="With --int8: training images for ranges [256].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a network of a run as ONNX, as a torch.export program or as tensors with plain code.

    The file is loaded again where planter cannot be imported. It stays only if it gives the
    network's logits (to 1e-4) and classes for each of the run's validation images.
    """
    from planter.front.choose import chosen

    if format_name is not None and file.suffix != f".{format_name}":
        raise ValueError(f"-o {file}: expected a file that ends in .{format_name}")
    if calibration is not None and not int8:
        raise ValueError("--calibration is a number of images for --int8: give --int8 with it")
    with err.status("loading"):
        from planter.export.points import export_point, find_row, open_run

        folder, wanted = split_target(target)
        run = open_run(folder)
    if wanted is None:
        row = chosen(run.front, max_macs=max_macs, min_accuracy=min_accuracy, at_knee=knee)
    elif max_macs is not None or min_accuracy is not None or knee:
        raise ValueError(f"{target} is one network; --max-macs and the like choose one of a RUN")
    else:
        row = find_row(run.front, wanted)
    if run.standing is not None:
        err.print(f"{escape(str(folder))}: {escape(run.standing)}", soft_wrap=True)
    with err.status(f"writing and checking {row['id']}"):
        exported = export_point(
            run,
            row,
            file,
            normalise=normalise,
            fold_norms=fold_norms,
            calibration=(calibration or 256) if int8 else None,
            force=force,
        )
    found = _told(exported, row)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(exported, found)


def _told(exported: Exported, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "file": str(exported.files[0]),
        "code": str(exported.files[1]) if len(exported.files) > 1 else None,
        "format": exported.format,
        "bytes": exported.size_bytes,
        "id": row["id"],
        "accuracy": exported.accuracy,
        "accuracy_of_run": row["accuracy"],
        "images": exported.images,
        "max_difference": exported.max_difference,
        "macs": row["macs"],
        "params": row["params"],
        "input": exported.takes,
        "folded_norms": exported.folded_norms,
        "int8": exported.calibration > 0,
        "calibration": exported.calibration,
    }


def _print(exported: Exported, found: Mapping[str, Any]) -> None:
    files = " and ".join(str(file) for file in exported.files)
    told = f"{found['id']} -> {files} ({found['bytes']:,} bytes)"
    out.print(told, soft_wrap=True, markup=False)
    out.print(escape(f"takes {found['input']}"), soft_wrap=True)
    if exported.folded_norms:
        norms = "norm" if exported.folded_norms == 1 else "norms"
        out.print(f"{exported.folded_norms} batch {norms} folded")
    shown = f"{found['accuracy']:.2%} of {found['images']:,} validation images"
    if exported.calibration:
        out.print(
            f"INT8, ranges from {exported.calibration:,} training images: {shown}, "
            f"{found['accuracy_of_run']:.2%} before; logits differ by up to "
            f"{found['max_difference']:.2g}",
            soft_wrap=True,
        )
    else:
        out.print(
            f"checked without planter: {shown}, logits differ by up to "
            f"{found['max_difference']:.1g}",
            soft_wrap=True,
        )
    out.print(f"{found['macs']:,} macs, {found['params']:,} parameters")
