"""Model cards: read by the Hub's own reader, their code run where planter is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

import planter
from planter.export import FORMATS
from planter.export.card import _own_widths
from planter.plots.pages import Markdown, rendered_markdown

pytestmark = pytest.mark.usefixtures("forked_checks")

ENDINGS = ("onnx", "pt2", "safetensors", "xml", "pte", "tflite")


@pytest.fixture
def row(place: Path) -> dict[str, Any]:
    front = json.loads((place / "runs" / "small" / "pareto.json").read_text())
    points = sorted((p for p in front["points"] if p["on_front"]), key=lambda p: p["macs"])
    return dict(points[-1])


def _needed(kind: str) -> None:
    for package in FORMATS[kind].needs:
        pytest.importorskip(package)


@pytest.mark.parametrize(
    ("licence", "told", "name"),
    [
        (["--licence", "MIT"], "mit", None),
        (["--licence", "Our Own 1.0"], "other", "our-own-1.0"),
        ([], "unknown", None),
    ],
)
def test_the_hub_reads_the_card(call, place, row, tmp_path, licence, told, name):
    hub = pytest.importorskip("huggingface_hub")
    file = tmp_path / "net.pt2"
    code, out, err = call("export", f"small/{row['id']}", "-o", str(file), *licence)
    assert code == 0, err
    assert f"model card: {file}.card.md" in out
    card = hub.ModelCard.load(tmp_path / "net.pt2.card.md")
    found = card.data
    assert (found.license, found.get("license_name")) == (told, name)
    assert found.datasets == ["digits"]
    assert found.metrics == ["accuracy"]
    assert {"image-classification", "pt2"} <= set(found.tags)
    results = {one.dataset_split: one.metric_value for one in found.eval_results}
    assert results == {
        "validation": pytest.approx(row["accuracy"], abs=1e-6),
        "test": pytest.approx(row["test_accuracy"], abs=1e-6),
    }
    assert ("unknown: say so before sharing" in card.text) == (not licence)


def test_the_card_says_what_the_run_says(call, place, row, tmp_path):
    run = place / "runs" / "small"
    code, _, err = call("export", f"small/{row['id']}", "-o", str(tmp_path), "--format", "pt2")
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.md", "model.pt2"]
    text = (tmp_path / "card.md").read_text()
    data = planter.load_data(run)
    for part, split in (("train", data.train), ("validation", data.validation)):
        assert re.search(rf"\| {part} \| {len(split):,} \|", text)
    right = round(row["test_accuracy"] * len(data.test))
    low, high = binomtest(right, len(data.test)).proportion_ci(0.95, "wilson")
    shown = f"{right / len(data.test):.2%} | {low:.2%} to {high:.2%} |"
    assert f"| test images | {len(data.test)} | {shown}" in text
    assert f"| multiply-adds of an image | {row['macs']:,} |" in text
    assert f"| parameters | {row['params']:,} |" in text
    spec = json.loads((run / row["model"] / "arch.json").read_text())
    assert f"with seed {spec['seed']}" in text
    assert f"torch {spec['versions']['torch']}" in text


def test_the_card_of_a_cut_names_the_widths_that_the_cut_has(call, place, tmp_path):
    run = tmp_path / "kept"
    planter.search(place / "small.yaml", out=run, overrides=["keep=all"])
    points = json.loads((run / "pareto.json").read_text())["points"]
    cut = next(point for point in points if point["pipeline"] == "cut2")
    spec = json.loads((run / cut["model"] / "arch.json").read_text())
    code, _, err = call("export", f"{run}/{cut['id']}", "-o", str(tmp_path / "cut.pt2"))
    assert code == 0, err
    (line,) = re.findall(r"\| architecture \| (.*) \|", (tmp_path / "cut.pt2.card.md").read_text())
    named = dict(re.findall(r"(\w+) (\d+)", line))
    widths = spec["architecture"]["widths"]
    # cut2 enters before conv3, with as many channels as conv2 hands on.
    assert list(widths) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc1"]
    assert list(named) == ["conv2", "conv3", "conv4", "conv5", "fc1"]
    assert named == {name: str(widths[name]) for name in named}


def test_widths_that_only_change_with_others_stay_on_the_card_of_a_cut() -> None:
    """A DenseNet's growth is of all its layers: no group of channels has it alone."""
    options = {"depth": 13, "classes": 10, "image": [3, 32, 32]}
    network = planter.Architecture("densenet", {"stem": 16, "growth": 12}, options)
    place = list(planter.cuts(network))[-1]
    network = replace(network, pipelines={"cut": {"before": place}})
    assert _own_widths(network, "cut") == {"stem", "growth"} == _own_widths(network, "base")


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("kind", ENDINGS)
def test_the_cards_lines_run_and_answer_as_the_network(call, place, row, tmp_path, kind, normalise):
    _needed(kind)
    file = tmp_path / f"my-net.{kind}"
    flags = ["--normalise"] if normalise else []
    code, _, err = call("export", f"small/{row['id']}", "-o", str(file), *flags)
    assert code == 0, err
    text = (tmp_path / f"my-net.{kind}.card.md").read_text()
    (code_,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    run = place / "runs" / "small"
    data = planter.load_data(run).validation
    np.save(tmp_path / "images.npy", data.images[:1].numpy())
    code_, count = re.subn(r"np\.zeros\(.*?\)  #", 'np.load("images.npy")  #', code_)
    assert count == 1
    (tmp_path / "use.py").write_text(
        f'import sys\n\nsys.modules["planter"] = None\n{code_}\nnp.save("logits.npy", logits)\n'
    )
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    network = planter.load(run / row["model"])
    expected = network(data.normalise(data.images[:1])).detach().numpy()
    assert np.allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-2)
    best = [str(int(expected.argmax()))]  # digits' classes are named by their numbers
    assert done.stdout.strip().splitlines()[-1] == str(best)


def test_a_card_is_not_written_over_and_can_be_left_out(call, row, tmp_path):
    file, card = tmp_path / "net.pt2", tmp_path / "net.pt2.card.md"
    card.write_text("mine")
    arguments = ("export", f"small/{row['id']}", "-o", str(file))
    code, _, err = call(*arguments)
    assert code == 2
    assert "net.pt2.card.md is there; --force" in re.sub(r"\s+", " ", err)
    assert [path.name for path in tmp_path.iterdir()] == [card.name]
    code, out, err = call(*arguments, "--no-card", "--json")
    assert code == 0, err
    assert json.loads(out)["card"] is None
    assert card.read_text() == "mine"
    code, out, err = call(*arguments, "--force", "--json")
    assert code == 0, err
    assert json.loads(out)["card"] == str(card)
    assert card.read_text().startswith("---\nlicense: unknown\n")


def test_the_card_of_an_int8_file_tells_both_accuracies(call, place, row, tmp_path):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    code, out, err = call("export", f"small/{row['id']}", "-o", str(file), "--int8", "--json")
    assert code == 0, err
    told, text = json.loads(out), (tmp_path / "net.onnx.card.md").read_text()
    images = told["images"]
    assert f"| validation images | {images} | {told['accuracy']:.2%} |" in text
    assert f"| validation images, before INT8 | {images} | {row['accuracy']:.2%} |" in text
    assert re.search(r"\| test images, before INT8 \|", text)
    assert "was not measured on test images" in text


def test_what_a_name_holds_is_no_markup(tmp_path, monkeypatch):
    folder = tmp_path / "made_package" / "templates"
    folder.mkdir(parents=True)
    (tmp_path / "made_package" / "__init__.py").touch()
    (folder / "one.md").write_text("| {{ name }} | {{ kept }} |\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "a|b\n# c <script> [x](y) `z`"
    text = rendered_markdown("made_package", "one.md", name=name, kept=Markdown("`k`"))
    assert text == r"| a\|b # c \<script\> \[x\](y) \`z\` | `k` |" + "\n"
