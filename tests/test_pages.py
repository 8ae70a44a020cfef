"""The templates of the pages: what they escape, and what they do not."""

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import planter
from planter.plots.pages import rendered

TEMPLATES = sorted(Path(planter.__file__).parent.rglob("templates/*"))


def test_only_figures_are_called_safe():
    texts = [file.read_text(encoding="utf-8") for file in TEMPLATES]
    assert {file.name for file in TEMPLATES} >= {"report.html", "figure.html"}
    safe = [found for text in texts for found in re.findall(r"(\w+)\s*\|\s*safe", text)]
    assert sorted(safe) == ["figure", "figure"]
    assert not any("autoescape" in text for text in texts)


def test_a_value_is_escaped_and_no_template_itself():
    page = rendered(
        "planter.plots",
        "figure.html",
        title="<b>&'\"{{ 7 * 7 }}",
        links=[],
        drawing_code="",
        figure="<i>",
    )
    assert "<h1>&lt;b&gt;&amp;&#39;&#34;{{ 7 * 7 }}</h1>" in page
    assert "<i>" in page


def test_a_value_that_is_not_given_is_refused():
    with pytest.raises(UndefinedError, match="title"):
        rendered("planter.plots", "figure.html", links=[], drawing_code="", figure="")
