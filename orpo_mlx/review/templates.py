"""Pages as one HTML file each: templates whose values are escaped, on a common page.html."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape


def page_environment(package: str) -> Environment:
    """The templates in the folder `pages` of a package, which may extend page.html."""
    packages = dict.fromkeys([package, "orpo_mlx.review.pairs"])
    return Environment(
        loader=ChoiceLoader([PackageLoader(name, "pages") for name in packages]),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
