"""An augmentation that users add from outside, without a line of planter changed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field, ValidationError
from test_train import DATA, RECIPE, entropy, network, same_bits
from torch import Tensor
from typer.testing import CliRunner

import planter
from planter.cli import app
from planter.data import InMemorySplit
from planter.driver.tasks.teacher import _own_augmentations
from planter.study.schema import StudyError
from planter.training.augment import Augment
from planter.training.augmentation import AUGMENTATIONS, Augmentation
from planter.training.batches import augmented, view_pool
from planter.training.loop import fit
from planter.training.recipe import Recipe

STUDY = """
name: outside
data: {name: digits, subset: 120, validation: 0.25}
teacher: {builder: toy, widths: 4}
baselines: [{builder: toy, widths: 2, kd: {}}]
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, augment: {invert: 0.5}}
sample: {space: "SPACE:space", trials: 1}
resources: {workers: 0, max_failures: 0}
"""
SPACE = """
from planter import Architecture, Candidate

def space(trial):
    widths = dict.fromkeys(["conv1", "conv2", "conv3"], trial.suggest_int("w", 2, 4))
    share = trial.suggest_float("share", 0.2, 0.8)
    recipe = {"augment": {"invert": share, "flip": True}}
    return Candidate(Architecture("toy", widths), recipe=recipe, kd_weight=1.0)
"""
UNKNOWN = r"no augmentation 'invert' in this process, which knows crop, flip, .* is imported"


def inverted(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    chosen = torch.rand(len(images), generator=generator) < share
    return torch.where(chosen[:, None, None, None], 255 - images, images)


INVERT = Augmentation(
    Annotated[float, Field(ge=0, le=1, description="share of images made negatives")],
    0.0,
    inverted,
)


@pytest.fixture
def _invert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "invert", INVERT)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "space.py").write_text(SPACE)
    file = tmp_path / "outside.yaml"
    file.write_text(STUDY.replace("SPACE", str(tmp_path / "space.py")))
    return file


def invert(share: float, **more: Any) -> Augment:
    return Augment(**{"invert": share, **more})


@pytest.mark.usefixtures("_invert")
def test_an_augmentation_from_outside_is_searched_with(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    def watched(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
        shares.append(share)
        return inverted(images, share, generator)

    with monkeypatch.context() as patch:
        patch.setitem(AUGMENTATIONS, "invert", Augmentation(INVERT.setting, 0.0, watched))
        found = planter.search(study, out=study.parent / "run")
    assert not found["failed"]
    steps = 3  # of 30 images
    assert shares[: 2 * steps] == [0.5] * 2 * steps  # the teacher, the baseline
    assert len(shares) == 3 * steps
    (drawn,) = set(shares[2 * steps :])
    assert 0.2 <= drawn <= 0.8
    assert "invert: 0.5" in (study.parent / "run" / "resolved.yaml").read_text()
    assert planter.search(study, out=study.parent / "run") == found
    off = ["recipe.augment={invert: 0}", "sample=null"]
    plain = planter.search(study, out=study.parent / "off", overrides=off)
    with_images = {p["trial"]: p for p in found["points"]}
    without = {p["trial"]: p for p in plain["points"]}
    # Images that change ask the teacher again in each step, for 90 images.
    asked = with_images["b-width2"]["train_macs"] - without["b-width2"]["train_macs"]
    assert asked == 90 * with_images["teacher"]["macs"]
    assert with_images["teacher"]["train_macs"] == without["teacher"]["train_macs"]


@pytest.mark.usefixtures("_invert")
def test_a_training_with_it_is_one_on_images_changed_by_hand() -> None:
    negatives = InMemorySplit(255 - DATA.images, DATA.labels, DATA.mean, DATA.std)
    plain = RECIPE.model_copy(update={"augment": Augment()})
    with_it = RECIPE.model_copy(update={"augment": invert(1.0)})
    one = fit(network("plain", 0), entropy, negatives, plain, seed=3)
    two = fit(network("plain", 0), entropy, DATA, with_it, seed=3)
    other = fit(network("plain", 0), entropy, DATA, plain, seed=3)
    assert same_bits(one, two)
    assert not same_bits(one, other)


@pytest.mark.usefixtures("_invert")
def test_it_changes_what_its_draws_name_after_those_of_the_table_before_it() -> None:
    generator = torch.Generator().manual_seed(5)
    out = augmented(DATA.images, invert(0.4, flip=True), generator)
    generator = torch.Generator().manual_seed(5)
    mirrored = (torch.rand(50, generator=generator) < 0.5).tolist()
    negative = (torch.rand(50, generator=generator) < 0.4).tolist()
    for image, found, mirror, minus in zip(DATA.images, out, mirrored, negative, strict=True):
        expected = image.flip(2) if mirror else image
        assert torch.equal(found, 255 - expected if minus else expected)
    pool = view_pool(DATA, invert(1.0, views=2))
    assert torch.equal(pool.images, torch.cat([DATA.images, 255 - DATA.images]))


@pytest.mark.usefixtures("_invert")
def test_kept_logits_are_refused_with_it() -> None:
    recipe = RECIPE.model_copy(update={"augment": invert(0.5)})
    with pytest.raises(ValueError, match="cached teacher logits do not fit augmented images"):
        fit(network("plain", 0), entropy, DATA, recipe, seed=0, teacher=torch.zeros(50, 4))


@pytest.mark.parametrize(
    ("augment", "place", "told"),
    [
        ("{invert: 2}", "invert", "got 2, expected less than or equal to 1"),
        ("{invert: yes}", "invert", "got True, expected a valid number"),
        ("{invrt: 0.5}", "invrt", "unknown key 'invrt', expected 'invert'? (keys are crop, flip, "),
    ],
)
@pytest.mark.usefixtures("_invert")
def test_its_mistakes_are_told_with_place_and_line(
    study: Path, augment: str, place: str, told: str
) -> None:
    # Beside another of the section's.
    study.write_text(study.read_text().replace("{invert: 0.5}", f"{augment[:-1]}, crop: -1}}"))
    with pytest.raises(StudyError) as error:
        planter.search(study, out=study.parent / "run")
    text = str(error.value)
    assert "2 problems" in text
    assert f"recipe.augment.{place} (line 6): got" in text
    assert told in text
    assert "recipe.augment.crop (line 6): got -1, expected greater than or equal to 0" in text


def test_it_is_unknown_where_nobody_added_it(study: Path) -> None:
    refused = r"augment\.invert \(line 6\): got unknown key 'invert', expected one of crop, flip, "
    with pytest.raises(StudyError, match=refused + "views"):
        planter.search(study, out=study.parent / "run")
    assert not (study.parent / "run").exists()


@pytest.mark.usefixtures("_invert")
def test_the_schema_lists_it() -> None:
    schema = json.loads(CliRunner().invoke(app, ["check", "--schema"]).stdout)
    augment = schema["$defs"]["Augment"]
    assert list(augment["properties"]) == [
        "crop", "flip", "views", *(name for name in AUGMENTATIONS if name not in ("crop", "flip"))
    ]  # fmt: skip
    shown = {"default": 0.0, "minimum": 0, "maximum": 1, "type": "number", "title": "Invert"}
    shown["description"] = "share of images made negatives"
    assert augment["properties"]["invert"] == shown
    assert augment["additionalProperties"] is False


@pytest.mark.usefixtures("_invert")
def test_recipes_without_it_are_what_they_were() -> None:
    """Keys of teachers are made of what is dumped."""
    for augment in (Augment(crop=2), invert(0, crop=2), invert(0.0, crop=2)):
        assert list(augment.model_dump().items()) == [("crop", 2), ("flip", False), ("views", None)]
        assert augment == Augment(crop=2)
    assert not invert(0).changes()
    assert invert(1).changes()
    assert not invert(1, views=3).changes()
    with pytest.raises(ValueError, match=r"neither crop, flip, .*erasing nor invert is set"):
        invert(0, views=3)


def test_a_process_that_has_not_imported_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here:
        here.setitem(AUGMENTATIONS, "invert", INVERT)
        recipe = RECIPE.model_copy(update={"augment": invert(0.5)})
        parcel, said = pickle.dumps(recipe), recipe.model_dump()
        assert pickle.loads(parcel) == Recipe.model_validate(said) == recipe
    sent = pickle.loads(parcel)
    assert sent.augment.changes()
    with pytest.raises(ValueError, match=UNKNOWN):
        fit(network("plain", 0), entropy, DATA, sent, seed=0)
    with pytest.raises(ValueError, match=UNKNOWN):
        view_pool(DATA, sent.augment.model_copy(update={"views": 2}))
    with pytest.raises(ValidationError, match=UNKNOWN):
        Recipe.model_validate(said)


@pytest.mark.parametrize("wrong", [lambda x: x[:, :, 1:], lambda x: x / 255])
def test_one_that_gives_other_images_is_refused(
    wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Augmentation(INVERT.setting, 0.0, lambda images, share, generator: wrong(images))
    monkeypatch.setitem(AUGMENTATIONS, "invert", entry)
    with pytest.raises(
        ValueError, match=r"'invert' keeps shape and type of images: given torch\.u"
    ):
        augmented(DATA.images, invert(0.5), torch.Generator())


def test_a_teacher_is_not_that_of_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(text: str) -> list[str]:
        names: dict[str, Any] = {}
        exec(text, names)
        entry = Augmentation(INVERT.setting, 0.0, names["apply"])
        monkeypatch.setitem(AUGMENTATIONS, "invert", entry)
        return _own_augmentations(Recipe(augment=invert(0.5, crop=1)))

    one, same, other = (
        keys(f"def apply(images, share, generator):\n    return {top} - images")
        for top in (255, 255, 254)
    )
    assert one == same
    assert len(one) == 1
    assert one != other
    assert _own_augmentations(Recipe(augment=Augment(crop=1, flip=True, **{"trivial": True}))) == []
