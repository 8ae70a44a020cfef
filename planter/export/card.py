"""Model cards: what an exported network is, what it learned from, how sure its measures are.

The front matter is that of the Hugging Face Hub's model cards, whose tools read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from planter.arch import Architecture
from planter.channels.groups import groups
from planter.driver.run_folder.making import drawn_parameters
from planter.driver.storage.reading import run_study
from planter.driver.trials.networks import baseline_id
from planter.export import Exported
from planter.export.formats import FORMATS
from planter.export.int8.finetuning import FineTuned
from planter.front.certainty import wilson
from planter.front.choose import Row
from planter.front.lineage import edits_text
from planter.front.methods import METHODS
from planter.latency.file import read_measurements
from planter.plots.pages import Markdown, rendered_markdown
from planter.study.schema import Study

UNKNOWN = "unknown: say so before sharing"
_HUB_LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0",
    "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-4.0", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "gpl-2.0", "gpl-3.0",
    "isc", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "openrail", "osl-3.0",
    "pddl", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
"""Names that the Hub knows; any other is its `other`, with a name."""
_SHOWN_CLASSES = 100


def card_text(
    run: Path,
    row: Row,
    front: Mapping[str, Any],
    exported: Exported,
    spec: Mapping[str, Any],
    licence: str | None = None,
) -> str:
    """The card of a point's exported file, as Markdown: `front` is the run's pareto.json, `spec`
    the point's arch.json, `licence` a name such as MIT."""
    study = run_study(run)
    told = {name: _value(text) for name, text in exported.metadata.items()}
    classes = told["classes"]
    measured = _measures(row, front, exported)
    return rendered_markdown(
        "planter.export",
        "card.md",
        front_matter=Markdown(_front_matter(study, row, front, exported, measured, licence)),
        name=f"{front['study']}: {row['id']}",
        what=f"A classifier of {'x'.join(map(str, told['image'][1:]))} images into {len(classes)} "
        "classes, from a search for networks of high accuracy and few multiply-adds with planter.",
        facts=_facts(run, row, exported, told),
        use=Markdown(use(exported, told)),
        data=_data(study, front, exported, classes),
        measures=[
            (what, f"{images:,}", f"{right / images:.2%}", _interval(right, images))
            for what, images, right in measured
        ],
        notes=_notes(row, exported),
        lineage=_lineage(row, front, spec),
        seed=spec.get("seed"),
        recipe=Markdown(_yaml(_recipe(study, row, spec))),
        drawn=Markdown(_yaml(found) if (found := drawn_parameters(run, study, row)) else ""),
        versions=", ".join(f"{name} {version}" for name, version in told["trained_with"].items())
        + f"; seed of the study {told['study_seed']}; exported with torch {told['torch']}.",
        licence=licence or UNKNOWN,
    )


def use(exported: Exported, told: Mapping[str, Any]) -> str:
    """Lines of Python that load the file, beside which they run, and classify an image."""
    file, (channels, *sides) = exported.files[0].name, told["image"]
    shape = ", ".join(map(str, [exported.batch or 1, channels, *sides]))
    bytes_ = told["scale"] == 255
    kind = "uint8" if bytes_ else "float32"
    usage = FORMATS[exported.format].use.replace('"FILE"', json.dumps(file))
    usage = usage.replace("from CODE import load", _import_of(exported.files[0].stem))
    imports, _, body = (usage or "# logits: as the format says").rpartition("\n\n")
    lines = ["import numpy as np", *([imports] if imports else []), ""]
    lines += [f"images = np.zeros(({shape}), np.{kind})  # yours: [batch, channels, height, width]"]
    if not told["normalised_inside"]:
        for name in ("mean", "std"):
            lines.append(f"{name} = np.array({told[name]}, np.float32)[:, None, None]")
        pixels = "images / np.float32(255)" if bytes_ else "images"
        lines.append(f"images = ({pixels} - mean) / std")
    ends = [f"classes = {json.dumps(told['classes'], ensure_ascii=False)}"]
    ends += ["print([classes[best] for best in logits.argmax(1)])"]
    return "\n".join([*lines, "", body, *ends, ""])


def _import_of(module: str) -> str:
    """How a generated Python file gives `load`: a file may have a name that no import can say."""
    if module.isidentifier():
        return f"from {module} import load"
    return f"load = __import__({json.dumps(module)}).load"


def _value(text: str) -> Any:
    """What metadata hold: JSON, or a text as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _measures(row: Row, front: Mapping[str, Any], exported: Exported) -> list[tuple[str, int, int]]:
    """What was measured: on which images, how many, and how many were right."""
    found = [("validation images", exported.images, exported.accuracy)]
    if (tuned := exported.qat) is not None and tuned.kept:
        static = ("validation images, INT8 without fine-tuning", exported.images)
        found.append((*static, tuned.static_accuracy))
    if exported.calibration:
        found.append(("validation images, before INT8", exported.images, row["accuracy"]))
    if row["test_accuracy"] is not None and (account := front.get("data")):
        before = ", before INT8" if exported.calibration else ""
        found.append((f"test images{before}", account["test"], row["test_accuracy"]))
    return [(what, images, round(share * images)) for what, images, share in found]


def _interval(right: int, images: int) -> str:
    low, high = wilson(right / images, images)
    return f"{low:.2%} to {high:.2%}"


def _notes(row: Row, exported: Exported) -> list[str]:
    notes = [
        "Validation images selected the network, so its accuracy on them is biased upwards; the "
        "interval (Wilson) tells the chance in drawing the images, not this bias."
    ]
    if row["test_accuracy"] is None:
        notes.append(
            "Test images were not read: a search does so at its end, for its front, its teacher "
            "and its baselines."
        )
    elif exported.calibration:
        notes.append("The INT8 file was not measured on test images.")
    return notes


def _facts(
    run: Path, row: Row, exported: Exported, told: Mapping[str, Any]
) -> list[tuple[str, str]]:
    names = [file.name for file in exported.files]
    architecture = Architecture.from_dict(told["architecture"])
    own = _own_widths(architecture, row["pipeline"])
    widths = ", ".join(f"{k} {v}" for k, v in architecture.widths.items() if k in own)
    facts = [
        ("file", f"{' and '.join(names)}, {exported.size_bytes:,} bytes"),
        ("takes", str(told["input"])),
        ("gives", f"logits [{exported.batch or 'batch'}, {len(told['classes'])}], no softmax"),
        ("architecture", f"{architecture.builder}: {widths or 'as it is'}"),
        ("pipeline of it", row["pipeline"]),
        ("multiply-adds of an image", f"{row['macs']:,}"),
        ("parameters", f"{row['params']:,}"),
    ]
    if exported.calibration:
        facts.append(("INT8", f"ranges from {exported.calibration:,} training images"))
    if (tuned := exported.qat) is not None:
        facts.append(("fine-tuning with 8 bits simulated", _of_qat(tuned)))
    return [*facts, *_latency(run, row)]


def _own_widths(architecture: Architecture, pipeline: str) -> set[str]:
    """All but those of layers before a pipeline's entry. Widths that only change with others, such
    as a DenseNet's growth, are in no group: they stay."""
    if pipeline == "base":
        return set(architecture.widths)
    every, here = (
        {name for group in groups(architecture, way) for name in group.widths}
        for way in ("base", pipeline)
    )
    return set(architecture.widths) - (every - here)


def _of_qat(tuned: FineTuned) -> str:
    epochs = "1 epoch" if tuned.epochs == 1 else f"{tuned.epochs} epochs"
    how = f"{epochs} on the training images, seed {tuned.seed}, guided by the network before INT8"
    return how if tuned.kept else f"{how}; left out, as it gave {tuned.accuracy:.2%}"


def _latency(run: Path, row: Row) -> list[tuple[str, str]]:
    """What was timed of the network in the run: the file may have other times."""
    found = []
    for one in read_measurements(run):
        own: Mapping[str, Any] = next((r for r in one["rows"] if r["id"] == row["id"]), {})
        for engine, timing in own.items():
            if engine != "id":
                how = f"{engine}, batch {one['batch']}, threads {one['threads']}"
                place = f"{how}, {one['machine'].get('cpu')}"
                found.append(("latency in the run", f"{timing['median_ms']:.3g} ms ({place})"))
    if not found and row.get("latency_ms") is not None:
        found.append(("latency in the run", f"{row['latency_ms']:.3g} ms, timed by the search"))
    return found


def _data(
    study: Study, front: Mapping[str, Any], exported: Exported, classes: Sequence[str]
) -> dict[str, Any]:
    account = front.get("data") or {}
    purposes = {"train": "trained on", "validation": "selected by", "test": "read once, at the end"}
    counts = {part: account.get(part) for part in purposes} | {"validation": exported.images}
    shown = ", ".join(classes[:_SHOWN_CLASSES])
    more = len(classes) - _SHOWN_CLASSES
    text = f"{_data_name(study)}, {len(classes)} classes"
    for part in ("validation", "test"):
        if account.get(part):
            text += f"; {part} images: {account[f'{part}_from']}"
    return {
        "text": f"{text}. Fingerprint {exported.metadata.get('data_fingerprint')}.",
        "parts": [(part, f"{count:,}", purposes[part]) for part, count in counts.items() if count],
        "classes": shown + (f", and {more:,} more" if more > 0 else ""),
    }


def _data_name(study: Study) -> str:
    """The data set's name; of a folder its own, without where it lies."""
    if study.data.name == "folder" and study.data.root is not None:
        return Path(study.data.root).name
    return study.data.name


def _lineage(row: Row, front: Mapping[str, Any], spec: Mapping[str, Any]) -> list[str]:
    """How it came to be, from its first ancestor on."""
    methods = {one["id"]: one["method"] for one in front["points"]}
    steps = spec.get("lineage") or [{"id": row["id"]}]
    told = []
    for step in steps:
        if "edits" in step:
            how = f"{edits_text(step['edits'])}; trained for {step['recipe']['epochs']} epochs"
            how += ", guided by the teacher" if step.get("kd") else ""
        elif "taken" in step:
            how = "taken over from another run"
        else:
            method = methods.get(step["id"])
            how = METHODS[method].label if method in METHODS else "of another run"
        told.append(f"{step['id']}: {how}")
    if spec.get("kernels", "plain") != "plain":
        told[-1] += f"; kernels in training: {spec['kernels']}"
    return told


def _recipe(study: Study, row: Row, spec: Mapping[str, Any]) -> dict[str, Any]:
    own = spec.get("recipe")
    if own is None:
        sections = {baseline_id(study, one): one.recipe for one in study.baselines}
        if study.teacher is not None:
            sections["teacher"] = study.teacher.recipe
        own = (sections.get(row["trial"]) or study.recipe).model_dump()
    return {key: value for key, value in own.items() if value not in (None, [])}


def _front_matter(
    study: Study,
    row: Row,
    front: Mapping[str, Any],
    exported: Exported,
    measured: Sequence[tuple[str, int, int]],
    licence: str | None,
) -> str:
    name = _data_name(study)
    slug = _slug(name)
    results = [
        {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"name": name, "type": slug, "split": what.split()[0]},
            "metrics": [
                {
                    "type": "accuracy",
                    "value": round(right / images, 6),
                    "name": f"accuracy on {images:,} {what}",
                }
            ],
        }
        for what, images, right in measured
    ]
    kind = FORMATS[exported.format].name or exported.format
    return _yaml(
        {
            **_licence(licence),
            "pipeline_tag": "image-classification",
            "tags": ["image-classification", "neural-architecture-search", "planter", kind],
            "datasets": [slug],
            "metrics": ["accuracy"],
            "model-index": [{"name": f"{front['study']} {row['id']}", "results": results}],
        }
    )


def _licence(licence: str | None) -> dict[str, str]:
    if licence is None:
        return {"license": "unknown"}
    if licence.lower() in _HUB_LICENCES:
        return {"license": licence.lower()}
    return {"license": "other", "license_name": _slug(licence)}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-") or "unnamed"


def _yaml(value: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)
    return text
