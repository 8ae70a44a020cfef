"""HTML pages and Markdown, made of the templates beside the code that fills them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

LINKS = {
    "report.html": "report",
    "pareto.html": "front",
    "planting.html": "planting",
    "pareto.csv": "points as CSV",
    "pareto.json": "points as JSON",
    "planting.csv": "planting as CSV",
}
"""Pages and files of a run, and what a link to them is called."""


def links_to(names: Iterable[str], page: str) -> list[tuple[str, str]]:
    """The links of a page of a run to those of these files that are for people."""
    there = set(names) - {page}
    return [(name, label) for name, label in LINKS.items() if name in there]


def rendered(package: str, template: str, **values: object) -> str:
    """A template of a package's folder `templates`, filled in; what it extends and includes may be
    of planter/plots. Every value is escaped, but for what the template itself calls safe."""
    return _templates(package).get_template(template).render(values)


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def rendered_markdown(package: str, template: str, **values: object) -> str:
    """The same of a template of Markdown: of every value, what would be markup is escaped, but for
    what is `Markdown`."""
    return _templates(package, html=False).get_template(template).render(values)


def _escaped(value: object) -> str:
    if isinstance(value, Markdown):
        return value
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(value).split()))


@cache
def _templates(package: str, *, html: bool = True) -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("planter.plots")]),
        autoescape=html,
        finalize=None if html else _escaped,
        undefined=StrictUndefined,  # a name that is not given is a mistake, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
