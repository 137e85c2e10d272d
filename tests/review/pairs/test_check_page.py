import re
from html.parser import HTMLParser
from pathlib import Path

from orpo_mlx.data.quality.by_model import BaseLogps, RenderedFacts
from orpo_mlx.data.quality.check import Report, Seen, check_pairs
from orpo_mlx.review.pairs.check_page import render_check_page, save_check_page
from tests.data.quality.rows import pair

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=x onerror=y>"


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def report_of_evil_text() -> Report:
    pairs = [
        pair(f"prompt {i} {EVIL}", f"{EVIL} {i}!", f"{EVIL} {i}", f"{EVIL}:{i}") for i in range(30)
    ]
    logps = [BaseLogps(-1.0 - i / 30, -1.5) for i in range(30)]
    return check_pairs({"all": pairs}, seen=Seen([RenderedFacts()] * 30, logps, 128))


def test_text_of_the_data_is_escaped_wherever_it_is() -> None:
    page = render_check_page(report_of_evil_text(), [EVIL])
    tags = Tags()
    tags.feed(page)
    names = {name for name, _ in tags.seen}
    assert "near_equal" in page
    assert not names & {"script", "img", "iframe", "link", "object"}
    assert not [a for _, attributes in tags.seen for a in attributes if a.startswith("on")]


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = render_check_page(report_of_evil_text(), ["a.jsonl"])
    tags = Tags()
    tags.feed(page)
    links = [
        v
        for _, attributes in tags.seen
        for k, v in attributes.items()
        if k in ("src", "href", "xlink:href", "data")
    ]
    assert all(link and link.startswith("#") for link in links)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_plots_take_the_colors_of_the_page() -> None:
    report = report_of_evil_text()
    languages = report.diversity._replace(languages=(("en", 30),))
    page = render_check_page(report._replace(diversity=languages), ["a.jsonl"])
    assert page.count("<svg") == 5
    assert "English" in page
    for label in (
        "Length of chosen",
        "Accuracy of shallow",
        "Edit similarity",
        "Languages",
        "Margins",
    ):
        assert f'aria-label="{label}' in page
    assert "var(--ink)" in page
    assert "prefers-color-scheme: dark" in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert not [svg for svg in svgs if re.search(r'<svg[^>]* width="', svg)]


def test_the_page_of_no_pairs_reports_nothing(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    save_check_page(check_pairs({"all": []}), ["a.jsonl"], file)
    page = file.read_text()
    assert "Nothing was found." in page
    assert "<svg" not in page
