"""Networks that are no better than always answering one class are called so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from planter.front.certainty import like_guessing


def front(*shares: float, counts: tuple[int, ...] = (50, 30, 20)) -> dict[str, Any]:
    points = [
        {"id": f"s{at:04d}/base", "accuracy": share, "on_front": at > 0}
        for at, share in enumerate(shares)
    ]
    classes = {f"class {at}": {"train": 9, "validation": n} for at, n in enumerate(counts)}
    return {"points": points, "data": {"classes": classes}}


@pytest.mark.parametrize("right", range(45, 75))
def test_it_is_said_where_the_interval_holds_the_share_of_the_commonest_class(right: int) -> None:
    low = binomtest(right, 100).proportion_ci(method="wilson").low
    assert (like_guessing(front(0.99, right / 100)) is not None) == (low <= 0.5)


def test_it_names_the_network_and_what_guessing_reaches() -> None:
    told = like_guessing(front(0.99, 0.4, 0.55))
    assert told is not None
    assert told.startswith("s0002/base is not told from guessing: 55.00 %")
    assert "always 'class 0' has 50.00 %" in told


def test_a_network_is_asked_about_by_name_and_unknown_classes_say_nothing() -> None:
    assert like_guessing(front(0.99, 0.4), ["s0000/base"]) is None
    assert like_guessing(front(0.99, 0.4), ["s0001/base"]) is not None
    assert like_guessing(front(0.99)) is None  # nothing on the front
    assert like_guessing({**front(0.9, 0.4), "data": None}) is None
    assert like_guessing(front(0.9, 0.4, counts=(0, 0))) is None


STUDY = """
name: idle
data: {name: digits, subset: 120, validation: 0.25}
baselines: [{builder: convnet, widths: 2}]
recipe: {epochs: 1, batch: 45, lr: 1.0e-12}
evolve: {trials: 1}
resources: {workers: 0}
"""


def test_a_search_and_an_export_say_it(tmp_path: Path, command_in: Any) -> None:
    (tmp_path / "idle.yaml").write_text(STUDY)
    call = command_in(tmp_path)
    code, out, err = call("search", "idle.yaml")
    assert code == 0
    assert "e0000/base is not told from guessing" in err
    assert "export runs/idle --knee -o small.py" in out
    code, _, err = call("export", "idle", "--knee", "-o", "small.py")
    assert code == 0
    assert "e0000/base is not told from guessing" in err


def test_without_a_front_there_is_nothing_to_export(tmp_path: Path, command_in: Any) -> None:
    (tmp_path / "idle.yaml").write_text(STUDY.replace("evolve: {trials: 1}\n", ""))
    code, out, err = command_in(tmp_path)("search", "idle.yaml")
    assert code == 0
    assert "show runs/idle" in out
    assert "export" not in out
    assert "guessing" not in err
