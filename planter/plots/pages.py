"""HTML pages, made of the templates beside the code that fills them."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def rendered(package: str, template: str, **values: object) -> str:
    """A template of a package's folder `templates`, filled in. Every value is escaped, but for what
    the template itself calls safe."""
    return _templates(package).get_template(template).render(values)


@cache
def _templates(package: str) -> Environment:
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,  # a name that is not given is a mistake, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
