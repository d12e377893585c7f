"""HTML from the templates of this package, by Jinja."""

from typing import Any


def render(name: str, **values: Any) -> str:
    """Fill in a template, such as "results/report.html"; what is put in is escaped."""
    from jinja2 import Environment, PackageLoader  # not at the top: few commands need it

    environment = Environment(loader=PackageLoader("captioning", "."), autoescape=True)
    return environment.get_template(name).render(values)
