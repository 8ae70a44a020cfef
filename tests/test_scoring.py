"""A network is scored, saved, loaded and exported as its training left it.

What a run says is compared with the same training done by hand (`fit` under the same seed) and
scored in plain torch: nothing may come between the last step and the score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from test_contract import SHALLOW, whole
from torch import Tensor, nn
from torch.nn import functional

import planter
from planter.arch import Architecture
from planter.backbones import BUILDERS
from planter.data import Data, InMemorySplit, Split
from planter.driver.final import train_points
from planter.driver.trials.jobs import seed_of
from planter.export.points import export_point, find_row, open_run
from planter.networks.assembly import build, build_network, build_without_data
from planter.networks.normalisation import Renormalised
from planter.study.schema import StudyError
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.loop import fit
from planter.training.recipe import Recipe
from planter.training.scores import recalibrate_batchnorm_

pytestmark = pytest.mark.usefixtures("forked_checks")

WITHOUT_NORMS = {"convnet", "toy", "alexnet"}
NORMED = [*sorted(set(BUILDERS) - WITHOUT_NORMS), "torchvision:resnet18"]
OPTIONS: dict[str, dict[str, Any]] = {**SHALLOW, "wrn": {"depth": 16, "dropout": 0.3}}
AUGMENT = {"crop": 4, "flip": True}
RECIPE = {"epochs": 2, "batch": 32, "lr": 0.02, "augment": AUGMENT}
DATA = {"name": "test_scoring:coloured_digits", "resize": 32, "subset": 120, "validation": 0.2}


def coloured_digits() -> dict[str, Any]:
    """Digits in three channels of different brightness, as torchvision's networks take three."""
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    grey = (images.view(-1, 1, 8, 8) * 15).to(torch.uint8)
    return {"train": (torch.cat([grey, grey // 2, 255 - grey], 1), labels)}


def name_of(builder: str) -> str:
    return builder.replace(":", "-")


def write_study(folder: Path, name: str, **sections: Any) -> Path:
    study = {
        "name": name,
        "data": DATA,
        "recipe": RECIPE,
        "resources": {"workers": 0},
        "keep": "all",
        "objectives": {"macs_reference": 1e9},
        **sections,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every backbone with norms, trained alone on augmented images."""
    folder = tmp_path_factory.mktemp("scoring")
    baselines = [
        {
            "name": name_of(builder),
            "builder": builder,
            "options": OPTIONS.get(builder, {}),
            **({"widths": 8} if builder in BUILDERS else {}),
        }
        for builder in NORMED
    ]
    file = write_study(folder, "normed", baselines=baselines)
    planter.search(file, out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def data(run: Path) -> Data:
    return planter.load_data(run)


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch.images), batch.labels)


def logits_of(network: nn.Module, split: Split) -> Tensor:
    """In eval mode, in one batch, by plain torch."""
    network.eval()
    with torch.no_grad():
        logits: Tensor = network((split.images.float() / 255 - split.mean) / split.std)
    return logits


def share_right(logits: Tensor, split: Split) -> float:
    return int((logits.argmax(1) == split.labels).sum()) / len(split.labels)


def spec_of(folder: Path) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((folder / "arch.json").read_text())
    return spec


def told(run: Path) -> dict[str, float]:
    points = json.loads((run / "pareto.json").read_text())["points"]
    return {point["id"]: point["accuracy"] for point in points}


@pytest.mark.parametrize(
    ("builder", "views"), [*((builder, None) for builder in NORMED), ("resnet", 2)]
)
def test_a_training_leaves_what_a_loop_in_plain_torch_leaves(
    builder: str, views: int | None, run: Path, data: Data
) -> None:
    """Weights and running statistics, over the batches that `fit` gave. What `fit` leaves is what
    the tests below compare with."""
    recipe = Recipe(**{**RECIPE, "augment": {**AUGMENT, "views": views}, "weight_decay": 5e-4})
    spec = spec_of(run / "models" / f"b-{name_of(builder)}" / "base")
    architecture = Architecture.from_dict(spec["architecture"])
    if "dropout" in architecture.options:  # drawn by memory layout
        architecture = replace(architecture, options={**architecture.options, "dropout": 0.0})
    batches: list[Batch] = []

    def note(model: nn.Module, batch: Batch) -> Tensor:
        batches.append(batch)
        return entropy(model, batch)

    found = fit(build_network(architecture, seed=3), note, data.train, recipe, seed=3).state_dict()
    model = build_network(architecture, seed=3).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step, batch in enumerate(batches):
        # Half a cosine from the recipe's rate to zero.
        rate = 0.02 * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        entropy(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    start = build_network(architecture, seed=3).state_dict()
    for name, tensor in model.state_dict().items():
        # Two memory formats in float32 part ways over the steps, most where maps are one pixel.
        # Statistics of other images or of all steps alike are as far off as the training moved.
        moved = (tensor.double() - start[name].double()).norm()
        gap = (found[name].double() - tensor.double()).norm()
        assert gap <= 0.3 * moved + 1e-5, name


def as_trained(run: Path, trial: str, data: Data, recipe: Recipe) -> nn.Module:
    spec = spec_of(run / "models" / trial / "base")
    network = build_network(Architecture.from_dict(spec["architecture"]), seed=spec["seed"])
    return fit(network, entropy, data.train, recipe, seed=spec["seed"])


def test_every_backbone_with_norms_is_here() -> None:
    for builder in BUILDERS:
        network = build_without_data(whole(builder))
        norms = any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
        assert norms == (builder in NORMED), builder


@pytest.mark.parametrize("builder", NORMED)
def test_what_is_told_saved_and_loaded_is_the_network_as_trained(
    builder: str, run: Path, data: Data
) -> None:
    trial = f"b-{name_of(builder)}"
    network = as_trained(run, trial, data, Recipe(**RECIPE))
    folder = run / "models" / trial / "base"
    saved = load_file(folder / "weights.safetensors")
    assert all(torch.equal(t, saved[name]) for name, t in network.state_dict().items())
    logits = logits_of(network, data.validation)
    assert torch.equal(logits_of(planter.load(folder), data.validation), logits)
    assert told(run)[f"{trial}/base"] == share_right(logits, data.validation)


@pytest.mark.parametrize("builder", NORMED)
@pytest.mark.parametrize(
    "ending",
    [".safetensors", *(pytest.param(e, marks=pytest.mark.long) for e in (".onnx", ".pt2"))],
)
def test_what_is_exported_is_the_network_as_trained(
    builder: str, ending: str, run: Path, data: Data, tmp_path: Path
) -> None:
    """From raw pixels, so that a wrong normalisation would show."""
    trial = f"b-{name_of(builder)}"
    expected = logits_of(planter.load(run / "models" / trial / "base"), data.validation)
    opened = open_run(run)
    row = find_row(opened.front, trial)
    file = tmp_path / f"net{ending}"
    export_point(opened, row, file, normalise=True)
    found = LOADERS[ending](file)(data.validation.images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _code(file: Path) -> Callable[[Tensor], Tensor]:
    names: dict[str, Any] = {"__file__": str(file.with_suffix(".py"))}
    exec(file.with_suffix(".py").read_text(), names)
    network = names["load"](file)

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images)

    return run


def _onnx(file: Path) -> Callable[[Tensor], Tensor]:
    from onnxruntime import InferenceSession

    session = InferenceSession(str(file))
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _program(file: Path) -> Callable[[Tensor], Tensor]:
    program = torch.export.load(file).module()
    return lambda images: program(images).detach()


LOADERS = {".safetensors": _code, ".onnx": _onnx, ".pt2": _program}


def _distilled(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy + KL to the teacher, T = 1."""
    assert batch.teacher is not None
    logits = model(batch.images)
    guide = functional.softmax(batch.teacher, 1)
    kl = functional.kl_div(functional.log_softmax(logits, 1), guide, reduction="batchmean")
    return functional.cross_entropy(logits, batch.labels) + kl


@pytest.mark.parametrize("augment", [AUGMENT, {**AUGMENT, "views": 2}], ids=["fresh", "pool"])
def test_students_learn_from_the_teacher_as_it_was_trained(
    augment: dict[str, Any], tmp_path: Path
) -> None:
    """Its weights are those of its own training; its answers are given to what students see."""
    options = {"depth": 8}
    file = write_study(
        tmp_path,
        "taught",
        teacher={"builder": "resnet", "options": options, "recipe": RECIPE},
        recipe={**RECIPE, "augment": augment},
        baselines=[{"name": "taught", "widths": 8, "options": options, "kd": {}}],
    )
    run = tmp_path / "run"
    planter.search(file, out=run)
    data = planter.load_data(run)
    folder = run / "models" / "teacher" / "base"
    teacher = as_trained(run, "teacher", data, Recipe(**RECIPE))
    saved = load_file(folder / "weights.safetensors")
    assert all(torch.equal(t, saved[name]) for name, t in teacher.state_dict().items())
    assert told(run)["teacher/base"] == share_right(
        logits_of(teacher, data.validation), data.validation
    )
    plain = load_file(run / "trials" / "teacher" / "logits.safetensors")["logits"]
    torch.testing.assert_close(plain, logits_of(teacher, data.train), rtol=1e-4, atol=1e-4)
    seen: list[Batch] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch)
        return _distilled(model, batch)

    spec = spec_of(run / "models" / "b-taught" / "base")
    student = build_network(Architecture.from_dict(spec["architecture"]), seed=spec["seed"])
    recipe = Recipe(**{**RECIPE, "augment": augment})
    split: Split = data.train
    guide: nn.Module | Tensor = teacher
    if "views" in augment:
        split = planter.training.batches.view_pool(
            data.train, Augment(**augment), seed_of(0, "views")
        )
        guide = logits_of(teacher, split)
    fit(student, loss, split, recipe, seed=spec["seed"], teacher=guide)
    for batch in seen:
        with torch.no_grad():
            answers = teacher.eval()(batch.images)
        assert batch.teacher is not None
        torch.testing.assert_close(batch.teacher, answers, rtol=1e-4, atol=1e-4)
    found = load_file(run / "models" / "b-taught" / "base" / "weights.safetensors")
    for name, tensor in student.state_dict().items():
        # The loss is written a second time: sums in another order, over twelve steps.
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)


def darker_digits() -> dict[str, Any]:
    images, labels = coloured_digits()["train"]
    return {"train": (images // 3, labels)}


def float_digits() -> dict[str, Any]:
    images, labels = coloured_digits()["train"]
    return {"train": (images.float(), labels)}


def test_a_teacher_of_other_data_gets_images_as_its_own_were(tmp_path: Path) -> None:
    options = {"depth": 8}
    one = {"name": "net", "builder": "resnet", "widths": 8, "options": options}
    planter.search(write_study(tmp_path, "first", baselines=[one]), out=tmp_path / "first")
    model = tmp_path / "first" / "models" / "b-net" / "base"
    file = write_study(
        tmp_path,
        "second",
        data={**DATA, "name": "test_scoring:darker_digits"},
        teacher={"model": str(model)},
        baselines=[{**one, "kd": {}}],
    )
    run = tmp_path / "second"
    planter.search(file, out=run, overrides=["recipe.augment={}"])
    first, second = planter.load_data(tmp_path / "first"), planter.load_data(run)
    assert not torch.allclose(first.train.mean, second.train.mean, rtol=0.1)
    teacher = planter.load(model).eval()

    def answers(split: Split) -> Tensor:
        with torch.no_grad():
            z: Tensor = teacher((split.images.float() / 255 - first.train.mean) / first.train.std)
        return z

    validation = second.validation
    assert told(run)["teacher/base"] == share_right(answers(validation), validation)
    kept = load_file(run / "trials" / "teacher" / "logits.safetensors")["logits"]
    torch.testing.assert_close(kept, answers(second.train), rtol=1e-4, atol=1e-4)
    spec, own = spec_of(run / "models" / "teacher" / "base"), spec_of(model)
    assert (spec["mean"], spec["std"]) == (own["mean"], own["std"])
    with pytest.raises(ValueError, match=r"teacher/base was given as teacher\.model"):
        train_points(run, ["teacher/base"], kinds=["continued"], seeds=1)
    # The same pixels as floating-point numbers are no longer what it was trained on.
    with pytest.raises(StudyError, match="a network of uint8 pixels"):
        planter.search(file, out=tmp_path / "x", overrides=["data.name=test_scoring:float_digits"])
    # Fresh views: it is asked for every batch.
    planter.search(file, out=tmp_path / "third", overrides=["name=third"])
    seed = spec_of(tmp_path / "third" / "models" / "b-net" / "base")["seed"]
    architecture = Architecture.from_dict(spec["architecture"])
    student = build_network(architecture, seed=seed)
    guide = Renormalised(teacher, second.train, first.train)
    fit(student, _distilled, second.train, Recipe(**RECIPE), seed=seed, teacher=guide)
    found = load_file(tmp_path / "third" / "models" / "b-net" / "base" / "weights.safetensors")
    for name, tensor in student.state_dict().items():
        # The loss is written a second time: sums in another order, over a few steps.
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)


@given(
    mean=st.lists(st.floats(-2, 2), min_size=6, max_size=6),
    std=st.lists(st.floats(0.1, 3), min_size=6, max_size=6),
)
def test_renormalised_images_are_the_pixels_normalised_once(
    mean: list[float], std: list[float]
) -> None:
    pixels = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    one, other = (
        InMemorySplit(
            pixels,
            torch.zeros(2, dtype=torch.int64),
            torch.tensor(mean[part], dtype=torch.float64).view(3, 1, 1),
            torch.tensor(std[part], dtype=torch.float64).view(3, 1, 1),
        )
        for part in (slice(3), slice(3, 6))
    )
    found = Renormalised(nn.Identity(), one, other)((pixels - one.mean) / one.std)
    torch.testing.assert_close(found, (pixels - other.mean) / other.std, rtol=1e-9, atol=1e-9)


SPACE = """
from planter import Architecture, Candidate
def space(trial, *, image, classes):
    widths = {"stem": 4, "group1": 4, "group2": 8, "group3": 8}
    ways = {"cut": {"before": "group2"}, "branch": {"after": "group1"}}
    options = {"depth": 8, "image": image, "classes": classes}
    trial.suggest_int("drawn", 0, 9)
    return Candidate(Architecture("resnet", widths, options, ways), norms="NORMS", kernels=KERNELS)
"""


@pytest.mark.parametrize(
    ("norms", "ema"),
    [("switch_stats", None), ("switch_all", None), ("shared", None), ("switch_stats", 0.9)],
)
def test_pipelines_keep_their_own_statistics_and_get_them_where_they_shared(
    norms: str, ema: float | None, tmp_path: Path
) -> None:
    (tmp_path / "space.py").write_text(SPACE.replace("NORMS", norms).replace("KERNELS", "None"))
    file = write_study(
        tmp_path,
        "joint",
        sample={"space": "space.py:space", "trials": 1},
        recipe={**RECIPE, "ema": ema},
    )
    run = tmp_path / "run"
    planter.search(file, out=run)
    data = planter.load_data(run)
    spec = spec_of(run / "models" / "s0000" / "base")
    seed, recipe = spec["seed"], Recipe(**RECIPE, ema=ema)
    joint = build(Architecture.from_dict(spec["architecture"]), seed, norms)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        parts = [functional.cross_entropy(z, batch.labels) for z in model(batch.images).values()]
        return torch.stack(parts).sum()

    fit(joint, loss, data.train, recipe, seed=seed)
    for name in ("base", "cut", "branch"):
        way = joint.detach(name)
        if norms == "shared":
            recalibrate_batchnorm_(way, data.train, recipe, seed=seed)
        saved = load_file(run / "models" / "s0000" / name / "weights.safetensors")
        for key, tensor in way.state_dict().items():
            # Losses are added in another order than by `multi_pipeline_loss`.
            torch.testing.assert_close(saved[key], tensor, rtol=1e-3, atol=1e-4)
        logits = logits_of(planter.load(run / "models" / "s0000" / name), data.validation)
        assert told(run)[f"s0000/{name}"] == share_right(logits, data.validation)


def test_a_folded_block_is_scored_as_it_was_trained(tmp_path: Path) -> None:
    """ACNet's three norms follow their own maps while they train; folding keeps the function."""
    space = SPACE.replace("NORMS", "switch_stats").replace("KERNELS", "planter.form_of('acnet')")
    space = "import planter\n" + space.replace('"cut": {"before": "group2"}, ', "")
    (tmp_path / "space.py").write_text(space)
    file = write_study(tmp_path, "folded", sample={"space": "space.py:space", "trials": 1})
    run = tmp_path / "run"
    planter.search(file, out=run)
    data = planter.load_data(run)
    spec = spec_of(run / "models" / "s0000" / "base")
    joint = build(Architecture.from_dict(spec["architecture"]), spec["seed"])
    planter.expand_kernels_(joint, planter.form_of("acnet"), seed=spec["seed"])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        parts = [functional.cross_entropy(z, batch.labels) for z in model(batch.images).values()]
        return torch.stack(parts).sum()

    fit(joint, loss, data.train, Recipe(**RECIPE), seed=spec["seed"])
    joint.eval()
    with torch.no_grad():
        expected = joint(data.validation.normalise(data.validation.images))
    for name in ("base", "branch"):
        found = logits_of(planter.load(run / "models" / "s0000" / name), data.validation)
        # Folded in float32; losses are added in another order.
        torch.testing.assert_close(found, expected[name], rtol=1e-2, atol=1e-2)
