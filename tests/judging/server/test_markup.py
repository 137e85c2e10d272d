import re
from html import unescape
from html.parser import HTMLParser

import pytest

from orpo_mlx.judging.server.markup import MAX_HIGHLIGHTED, MAX_MARKDOWN, render_markdown

# What formats a text; everything else would be the model's own markup.
TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "span", "div"),
    *("ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"class", "start"}
HOSTILE = [
    "<script>alert(1)</script>",
    "a <script src='//x/y.js'></script> b",
    "<style>body{display:none}</style>",
    "<img src=x onerror=alert(1)>",
    "![x](http://example.com/x.png)",
    "![x][r]\n\n[r]: http://example.com/x.png",
    "<svg onload=alert(1)>",
    "<iframe srcdoc='<script>1</script>'>",
    "[click](javascript:alert(1))",
    "[click](https://example.com \"title\")",
    "<javascript:alert(1)>",
    "<https://example.com>",
    "[click][r]\n\n[r]: javascript:alert(1)",
    "<div style='position:fixed'>\n\nover all\n\n</div>",
    "<!-- hidden -->",
    "<form action=/api/end method=post><button>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "# <b onclick=alert(1)>x</b>",
    "| <script>1</script> |\n|---|\n| <img src=x> |",
    "```html\n<script>alert(1)</script>\n```",
    "```\"><script>alert(1)</script>\nx\n```",
    "```python\"onmouseover=alert(1)\nx\n```",
    "    <script>indented</script>",
    "`<script>`",
    "</div></article><script>alert(1)</script>",
]  # fmt: skip


class Reader(HTMLParser):
    """The tags, attributes and text of HTML, as a browser reads them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), set[str](), ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def squeezed(text: str) -> str:
    """A text without white space."""
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_writes_is_text_or_formatting_and_nothing_else(text: str) -> None:
    read = Reader(render_markdown(text))
    assert read.tags <= TAGS
    assert read.attributes <= ATTRIBUTES


@pytest.mark.parametrize("text", [text for text in HOSTILE if not re.match(r"[#|`& ]", text)])
def test_tags_links_and_pictures_are_shown_as_they_were_written(text: str) -> None:
    assert squeezed(text) in squeezed(Reader(render_markdown(text)).text)


def test_the_reader_of_these_tests_sees_markup() -> None:
    read = Reader("<p onclick=x>a<script>b</script></p>")
    assert (read.tags, read.attributes) == ({"p", "script"}, {"onclick"})


@pytest.mark.parametrize(
    "text",
    [
        "> " * 5000 + "deep",
        "\n".join("  " * n + "- item" for n in range(300)),
        "1. " * 3000 + "deep",
        "x" * (MAX_MARKDOWN + 1),
    ],
)
def test_what_is_nested_too_deep_or_too_long_is_shown_whole_as_text(text: str) -> None:
    html = render_markdown(text)
    assert html == f'<pre class="plain">{html[19:-7]}</pre>\n'
    assert unescape(html[19:-7]) == text


@pytest.mark.parametrize("depth", range(1, 25))
def test_no_depth_loses_the_text(depth: int) -> None:
    for text in ("> " * depth + "kept", "- " * depth + "kept", "*" * depth + "kept" + "*" * depth):
        assert "kept" in render_markdown(text)


def test_markdown_formats() -> None:
    html = render_markdown(
        "# Head\n\none\ntwo **b** `c`\n\n1. x\n\n| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n~~s~~"
    )
    assert '<p class="h1">Head</p>' in html  # no heading: those are the page's own
    assert "<p>one<br>\ntwo <strong>b</strong> <code>c</code></p>" in html
    assert '<div class="table"><table>' in html
    assert '<td class="center">1</td>\n<td class="right">2</td>' in html
    assert "<s>s</s>" in html


def test_signs_of_a_product_are_shown() -> None:
    text = "17*23 = 391, since 17*20=340 and 17*3=51; **2*3** is *six*"
    assert render_markdown(text) == (
        "<p>17*23 = 391, since 17*20=340 and 17*3=51; <strong>2*3</strong> is <em>six</em></p>\n"
    )


def test_code_is_highlighted_by_classes_where_its_language_is_known_and_it_is_short() -> None:
    code = 'def f():\n    return "<x>"\n'
    html = render_markdown(f"```python\n{code}```")
    assert '<span class="k">def</span>' in html
    assert Reader(html).text.rstrip() == code.rstrip()
    for fence in (f"```nosuchlanguage\n{code}```", f"```python\n{code * MAX_HIGHLIGHTED}```"):
        assert "<span" not in render_markdown(fence)
        assert "return &quot;&lt;x&gt;&quot;" in render_markdown(fence)
