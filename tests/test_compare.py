"""A second run beside a first: a random control or not, the same images or not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_run

from planter.driver.run_folder.compare import compared, other_images
from planter.driver.run_folder.report import write_report


def a_run(folder: Path, sampler: str = "tpe", images: str | None = "aaaa", **settings: Any) -> Path:
    sample = {"space": "convnet_cuts", "sampler": sampler}
    run = made_run(folder, name=folder.name, sample=sample, **settings)
    environment = {"versions": {}, **({} if images is None else {"data": images})}
    (run / "environment.json").write_text(json.dumps(environment))
    return run


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return a_run(tmp_path / "first")


def section(run: Path, other: Path) -> str:
    page = write_report(run, other).read_text(encoding="utf-8")
    return page.partition('<section id="control">')[2].partition("</section>")[0]


def test_the_same_study_with_the_random_sampler_is_a_control(first: Path, tmp_path: Path) -> None:
    other = a_run(tmp_path / "other", "random", resources={"workers": 3}, keep="all")
    assert compared(first, other).control
    told = section(first, other)
    assert "<h2>Random control</h2>" in told
    assert "differs in" not in told


def test_where_images_and_the_space_lie_and_what_a_search_may_take_is_no_difference(
    tmp_path: Path,
) -> None:
    runs = []
    for name, sampler in (("one", "tpe"), ("two", "random")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "space.py").write_text("def space(trial): ...")
        sample = {"space": f"{folder / 'space.py'}:space", "sampler": sampler}
        data = {"name": "cifar10", "root": str(folder)}
        budget = {"hours": 2.0 if name == "one" else None}
        run = made_run(folder / "run", sample=sample, data=data, budget=budget)
        (run / "environment.json").write_text('{"versions": {}, "data": "aaaa"}')
        runs.append(run)
    found = compared(*runs)
    assert list(found.differences) == [("sample.sampler", "tpe", "random")]
    assert found.control
    (tmp_path / "two" / "space.py").write_text("def space(trial): return 1")
    found = compared(*runs)
    assert [key for key, *_ in found.differences] == ["sample.sampler", "sample.space"]
    assert not found.control


@pytest.mark.parametrize(
    ("settings", "key", "values"),
    [
        ({"sampler": "nsgaii"}, "sample.sampler", ("tpe", "nsgaii")),
        ({"sampler": "random", "seed": 1}, "seed", ("0", "1")),
        ({"sampler": "random", "recipe": {"epochs": 3}}, "recipe.epochs", ("20", "3")),
    ],
)
def test_any_other_difference_makes_it_a_second_run_that_is_named(
    first: Path, tmp_path: Path, settings: dict[str, Any], key: str, values: tuple[str, str]
) -> None:
    other = a_run(tmp_path / "other", **settings)
    found = compared(first, other)
    assert not found.control
    assert found.same_images
    assert (key, *values) in list(found.differences)
    told = section(first, other)
    assert "<h2>Second run</h2>" in told
    cells = re.findall(r"<td[^>]*>(?:<div>)?(.*?)(?:</div>)?</td>", told)
    at = cells.index(key)
    assert cells[at : at + 3] == [key, *values]
    assert "different images" not in told


def test_a_run_laid_beside_itself_is_no_control(first: Path, tmp_path: Path) -> None:
    other = a_run(tmp_path / "other")
    assert not compared(first, other).control
    assert "the same study once more" in section(first, other)


@pytest.mark.parametrize("images", ["bbbb", None])
def test_runs_of_other_images_are_told_so_in_the_report(
    first: Path, tmp_path: Path, images: str | None
) -> None:
    other = a_run(tmp_path / "other", "random", images)
    found = compared(first, other)
    assert not found.control
    assert not found.same_images
    told = section(first, other)
    assert "different images or labels" in told
    assert "aaaa" in told


def test_a_control_that_is_found_by_its_name_is_judged_as_well(first: Path, tmp_path: Path) -> None:
    a_run(tmp_path / "first-random", "random", "bbbb")
    page = write_report(first).read_text(encoding="utf-8")
    assert "<h2>Second run</h2>" in page


def test_fronts_of_other_images_are_told_apart(
    first: Path, tmp_path: Path, command_in: Any
) -> None:
    a_run(tmp_path / "same")
    a_run(tmp_path / "apart", images="bbbb")
    assert other_images([first, tmp_path / "same"]) == []
    call = command_in(tmp_path)
    code, _, err = call("pareto", "first", "same", "apart")
    assert code == 0
    assert "different images or labels, by fingerprint: first, same (aaaa); apart (bbbb)" in err
    assert "different images" not in call("pareto", "first", "same")[2]


def test_a_section_that_one_study_has_is_one_difference(tmp_path: Path) -> None:
    runs = a_run(tmp_path / "plain"), a_run(tmp_path / "grown", evolve={"trials": 3})
    one, other = (compared(*pair).differences for pair in (runs, runs[::-1]))
    (row,) = (values for key, *values in one if key.startswith("evolve"))
    assert row[0] == "nothing"
    assert re.fullmatch(r"a section of \d\d keys", row[1])
    assert [values[::-1] for key, *values in other if key.startswith("evolve")] == [row]
