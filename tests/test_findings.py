"""Each mistake of a study is told once, however many places follow from it."""

from __future__ import annotations

import pytest

from planter.driver.checking.check import prepare
from planter.study.file import read_study
from planter.study.findings import Findings
from planter.study.schema import StudyError


def problems(*overrides: str) -> dict[str, str]:
    """What the check says of the quickstart with these overrides, by place."""
    with pytest.raises(StudyError) as caught:
        prepare(read_study("quickstart", overrides))
    return {problem.place: problem.expected for problem in caught.value.problems}


def test_sections_that_miss_the_teachers_builder_are_one_problem() -> None:
    found = problems("teacher=null")
    assert list(found) == ["plant", "baselines.0"]
    assert found["plant"].startswith("a teacher: plants learn from its logits")
    assert found["baselines.0"].endswith("(likewise baselines.1, baselines.2, plant)")


def test_images_too_small_for_a_family_are_one_problem() -> None:
    found = problems("data.resize=4")
    assert list(found) == ["teacher"]
    assert "image 1x4x4 is too small for convnet" in found["teacher"]
    assert found["teacher"].endswith("(likewise sample.space)")


def test_a_baseline_that_cannot_be_built_is_not_missed_as_a_reference_as_well() -> None:
    found = problems(
        "teacher=null", "plant=null", "sample=null", "baselines=[{builder: convnet, widths: 0}]"
    )
    assert list(found) == ["baselines.0"]


def test_problems_of_their_own_stay_apart() -> None:
    found = Findings()
    found.add("recipe.augment.crop", 9, "fewer pixels")
    found.add("plant.recipe.augment.crop", 9, "fewer pixels")
    found.tell("teacher", "a", "one sentence")
    found.tell("plant", "b", "another sentence")
    assert found.mistakes() == found.problems


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"sample": 0, "evolve": 0}, "sample.trials and evolve.trials: 0"),
        ({"sample": 0}, "sample.trials: 0"),
        ({"evolve": 0}, "evolve.trials: 0"),
        ({"sample": 1, "evolve": 0}, None),
    ],
)
def test_a_study_that_searches_for_nothing_is_warned_of(
    sections: dict[str, int], told: str | None
) -> None:
    changes = ["plant=null", *(f"{name}.trials={many}" for name, many in sections.items())]
    changes += [f"{name}=null" for name in ("sample", "evolve") if name not in sections]
    found = prepare(read_study("quickstart", changes)).warnings
    assert [text.partition(", so that")[0] for text in found] == ([] if told is None else [told])
    assert prepare(read_study("quickstart", changes[1:])).warnings == []  # it plants
