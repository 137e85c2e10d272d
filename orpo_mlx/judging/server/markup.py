"""Markdown of models as HTML that only formats: no tag, link or picture of theirs is one here."""

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

MAX_MARKDOWN = 100_000  # characters; longer texts are shown as they are
MAX_HIGHLIGHTED = 8_000  # characters of one block of code: some lexers take quadratic time
# Links and pictures stay as they were written, and a definition of a link's target is not hidden.
OFF = ("link", "autolink", "image", "html_inline", "html_block", "reference")


def render_markdown(text: str) -> str:
    """HTML of anybody's text; what is too long, or nested too deep, becomes preformatted text."""
    if len(text) > MAX_MARKDOWN:
        return render_plain(text)
    parser = _parser()
    tokens = parser.parse(text)
    # At this level the parser leaves out what is nested deeper.
    if any(token.level >= parser.options.maxNesting - 1 for token in tokens):
        return render_plain(text)
    for token in tokens:
        _soften_heading(token)
        _align_by_class(token)
    return str(parser.renderer.render(tokens, parser.options, {}))


def render_plain(text: str) -> str:
    """A text as it is, its lines kept."""
    return f'<pre class="plain">{escape(text)}</pre>\n'


def render_code(code: str, language: str) -> str:
    """A block of code with the classes of pygments, where it knows the language."""
    return f"<pre><code>{_highlighted(code, language, '') or escape(code)}</code></pre>\n"


@cache
def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "xhtmlOut": False, "highlight": _highlighted}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"]).disable(OFF)
    parser.inline.ruler.before("emphasis", "times", _times)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


def _times(state: StateInline, silent: bool) -> bool:
    """One star inside a word or product is text: 17*20+17*3 would lose its signs."""
    here = state.pos
    if not 0 < here < state.posMax - 1 or state.src[here] != "*":
        return False
    if not (state.src[here - 1].isalnum() and state.src[here + 1].isalnum()):
        return False
    if not silent:
        state.pending += "*"
    state.pos += 1
    return True


def _highlighted(code: str, language: str, _: str) -> str:
    """Escaped code in spans with classes; "" leaves the escaping to the caller."""
    if not language or len(code) > MAX_HIGHLIGHTED:
        return ""
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ValueError:  # pygments knows no such language
        return ""
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _soften_heading(token: Token) -> None:
    """A heading of an answer is none of the page's: its outline belongs to the page alone."""
    if token.type in ("heading_open", "heading_close"):
        if token.nesting == 1:
            token.attrJoin("class", token.tag)
        token.tag = "p"


def _align_by_class(token: Token) -> None:
    """A cell's alignment as a class: the page allows no style in a tag."""
    if style := token.attrs.pop("style", ""):
        token.attrJoin("class", str(style).rpartition(":")[2])


def _table_open(renderer: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return '<div class="table"><table>\n'


def _table_close(renderer: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return "</table></div>\n"
