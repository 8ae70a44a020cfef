"""HTML pages and Markdown, made of the templates beside the code that fills them."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def rendered(package: str, template: str, **values: object) -> str:
    """A template of a package's folder `templates`, filled in. Every value is escaped, but for what
    the template itself calls safe."""
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
        loader=PackageLoader(package),
        autoescape=html,
        finalize=None if html else _escaped,
        undefined=StrictUndefined,  # a name that is not given is a mistake, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
