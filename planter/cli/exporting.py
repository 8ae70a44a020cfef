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
from planter.front.certainty import interval_text, like_guessing, wilson

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
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write, or with --format a folder: model.EXT and card.md in it.",
            callback=expanded,
        ),
    ],
    max_macs: MaxMacs = None,
    min_accuracy: MinAccuracy = None,
    knee: Knee = False,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="onnx, pt2, safetensors, openvino, executorch or tflite. Default: by the file's "
            "ending.",
        ),
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
    qat: Annotated[
        int | None,
        typer.Option(
            "--qat",
            metavar="EPOCHS",
            min=1,
            help="With --int8: where it loses more than a point, fine-tune on training images with "
            "8 bits simulated (quantisation-aware training).",
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(min=1, help="Of ONNX: the operators' version [18].")
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="dynamic|N",
            help="Images the file takes at once. Default: dynamic; of executorch and tflite 1.",
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="NAME", help="For the model card: MIT, apache-2.0, ...")
    ] = None,
    card: Annotated[
        bool, typer.Option("--card/--no-card", help="Write a model card beside the file.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a network of a run as a file for other programs, and its model card.

    The file is loaded again where planter cannot be imported. It stays only if it gives the
    network's logits (to 1e-4) and classes for each of the run's validation images.
    """
    from planter.front.choose import chosen

    if calibration is not None and not int8:
        raise ValueError("--calibration is a number of images for --int8: give --int8 with it")
    if qat is not None and not int8:
        raise ValueError("--qat is a number of epochs for --int8: give --int8 with it")
    with err.status("loading"):
        from planter.export.points import export_point, find_row, open_run

        file, beside = _places(file, format_name)
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
            qat=qat,
            opset=opset,
            batch=_batch(batch, file),
            card=beside if card else None,
            licence=licence,
            force=force,
        )
    found = {**_told(exported, row), "card": str(beside) if card else None}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(exported, found, asked=qat is not None)
        if (told := like_guessing(run.front, [row["id"]])) is not None:
            err.print(told, soft_wrap=True, markup=False)


def _places(file: Path, format_name: str | None) -> tuple[Path, Path]:
    """The file to write and where its card goes: beside it, under its whole name, as a folder may
    hold files of several formats. Raises ValueError for an ending of another format."""
    if format_name is None:
        return file, file.with_name(f"{file.name}.card.md")
    from planter.export.formats import named

    ending = named(format_name)
    if not file.suffix or file.is_dir():
        return file / f"model.{ending}", file / "card.md"
    if file.suffix != f".{ending}":
        raise ValueError(f"-o {file}: expected a file that ends in .{ending}")
    return file, file.with_name(f"{file.name}.card.md")


def _batch(text: str | None, file: Path) -> int | None:
    """What --batch says; None where any number of images is to be allowed."""
    if text is None:
        return None
    if text == "dynamic":
        from planter.export.formats import FORMATS, format_of

        if (least := FORMATS[format_of(file)].batch) is not None:
            raise ValueError(
                f"--batch dynamic: a {file.suffix} file takes a fixed number of images; give that "
                f"number, or leave the option out for {least}"
            )
        return None
    if not text.isdecimal() or not int(text):
        raise ValueError(f"--batch {text}: expected dynamic or a whole number above 0")
    return int(text)


def _told(exported: Exported, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "file": str(exported.files[0]),
        "code": next((str(file) for file in exported.files if file.suffix == ".py"), None),
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
        "batch": exported.batch,
        "folded_norms": exported.folded_norms,
        "int8": exported.calibration > 0,
        "calibration": exported.calibration,
        "qat": exported.qat and exported.qat.told(),
    }


def _print(exported: Exported, found: Mapping[str, Any], *, asked: bool) -> None:
    files = " and ".join(str(file) for file in exported.files)
    told = f"{found['id']} -> {files} ({found['bytes']:,} bytes)"
    out.print(told, soft_wrap=True, markup=False)
    out.print(escape(f"takes {found['input']}"), soft_wrap=True)
    if exported.folded_norms:
        norms = "norm" if exported.folded_norms == 1 else "norms"
        out.print(f"{exported.folded_norms} batch {norms} folded")
    around = interval_text("accuracy", wilson(found["accuracy"], found["images"]))
    shown = f"{found['accuracy']:.2%} ({around}) of {found['images']:,} validation images"
    if exported.calibration:
        points = 100 * (found["accuracy"] - found["accuracy_of_run"])
        out.print(
            f"INT8, ranges from {exported.calibration:,} training images: {shown}, "
            f"{found['accuracy_of_run']:.2%} before "
            f"({points:+.2f} points); logits differ by up to "
            f"{found['max_difference']:.2g}",
            soft_wrap=True,
        )
        if (more := _of_qat(exported, asked=asked)) is not None:
            out.print(more, soft_wrap=True)
    else:
        out.print(
            f"checked without planter: {shown}, logits differ by up to "
            f"{found['max_difference']:.1g}",
            soft_wrap=True,
        )
    out.print(f"{found['macs']:,} macs, {found['params']:,} parameters")
    if found["card"] is not None:
        out.print(f"model card: {found['card']}", soft_wrap=True, markup=False)


def _of_qat(exported: Exported, *, asked: bool) -> str | None:
    """What fine-tuning with 8 bits simulated did or would be for; None where nothing is to say."""
    if (tuned := exported.qat) is not None:
        epochs = "1 epoch" if tuned.epochs == 1 else f"{tuned.epochs} epochs"
        told = (
            f"static INT8 loses {100 * exported.lost:.2f} points ({tuned.static_accuracy:.2%}); "
            f"fine-tuned for {epochs}: {tuned.accuracy:.2%}"
        )
        kept = "fine-tuned" if tuned.kept else "static"
        return f"{told}; the file has the {kept} weights"
    if exported.loses_much:
        return (
            f"static INT8 loses {100 * exported.lost:.2f} points; --qat 10 fine-tunes the network "
            "for 10 epochs with 8 bits simulated and keeps what is better"
        )
    return "static INT8 loses no more than a point: not fine-tuned" if asked else None
