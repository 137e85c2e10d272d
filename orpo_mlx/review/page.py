"""Pages from the templates in `pages/`: one HTML file each, all text of the data escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from orpo_mlx.files import replacing


def render(template: str, **values: Any) -> str:
    """The HTML of a template."""
    environment = Environment(
        loader=PackageLoader("orpo_mlx.review", "pages"), undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]), trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def save(html: str, file: Path) -> None:
    """Write a page, whole or not at all."""
    with replacing(file) as made:
        made.write_text(html, encoding="utf-8")
