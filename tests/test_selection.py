"""Which child is trained next, told of accuracies that a test gives: nothing is trained."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from planter.arch import Architecture
from planter.backbones import full_widths, with_data_options
from planter.costs.macs import cost
from planter.driver.proposers.offspring import Left, Selection
from planter.front.points import Point
from planter.study.schema import Study

IMAGES = 100
LEFT = Left(math.inf, 10)


def point(name: str, method: str, width: int, accuracy: float) -> Point:
    given = Architecture("convnet", full_widths("convnet", width, {}), {})
    architecture = with_data_options(given, 10, (1, 8, 8))
    costs = cost(architecture)
    return Point(
        name, "base", method, accuracy, 1.0, costs.macs, costs.params, 1, 1.0,
        architecture.to_dict(),
    )  # fmt: skip


@pytest.fixture
def selection(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a study that grows from its baseline under a teacher eight times as wide."""
    monkeypatch.setattr(Selection, "gone", lambda *_: None)
    start, teacher = point("start", "baseline", 4, 0.6), point("teacher", "teacher", 32, 0.9)
    study = Study.model_validate(
        {
            "name": "up",
            "data": {"name": "digits"},
            "teacher": {"builder": "convnet", "widths": 32},
            "baselines": [{"builder": "convnet", "widths": 4, "name": "start"}],
            "evolve": {"trials": 9, "edits": ["grow", "go_on"], "parents": ["baseline"]},
        }
    )
    points = [start, teacher]
    prepared = SimpleNamespace(
        data=SimpleNamespace(train=range(IMAGES)),
        macs_reference=teacher.macs,
        teacher_macs=teacher.macs,
    )
    book = SimpleNamespace(points=points, front=points)
    context: Any = SimpleNamespace(
        study=study, prepared=prepared, book=book, reference=(0.1, teacher.macs), run=None
    )
    return Selection(context), points


def test_a_child_grows_towards_a_teacher_that_has_none_itself(selection: Any) -> None:
    """Aimed at the line from the start to the teacher over the logarithm of macs; then the grown
    network is the parent, whose child promises more than another one of the start."""
    choose, points = selection
    start, teacher = points
    params = choose.known_good()
    assert (params["edit"], params["grow_size"]) == ("grow", 2.0)
    first = choose.decided(params, [], LEFT)
    share = math.log(2) / math.log(teacher.macs / start.macs)
    assert first.parent == "start/base"
    assert first.accuracy == pytest.approx(0.6 + share * 0.3)
    points.append(point("e0000", "evolve", 6, 0.72))
    assert choose.decided(params, [], LEFT).parent == "e0000/base"


def test_growing_promises_something_where_nothing_as_large_is_known(selection: Any) -> None:
    """It did not: a forecast that stayed level left nothing to gain but going on."""
    choose, points = selection
    del points[1]
    grown = choose.decided({**choose.known_good(), "edit": "grow"}, [], LEFT)
    assert grown.accuracy > points[0].accuracy
    assert choose.worth_of(grown, [], LEFT) > 0


def test_a_second_child_that_differs_in_its_seed_alone_comes_last(selection: Any) -> None:
    choose, points = selection
    params = choose.known_good()
    child = choose.decided(params, [], LEFT)
    choose.note(child)
    points.append(point("other", "baseline", 5, 0.61))
    assert choose.decided(params, [], LEFT).parent == "other/base"
    points.pop()
    assert choose.decided(params, [], LEFT) == child  # where nothing else is possible
    again = choose.decided({**params, "rate": 1.1}, [], LEFT)
    assert (again.parent, again.edits) == (child.parent, child.edits)
    assert again.recipe["lr"] == pytest.approx(1.1 * child.recipe["lr"])
