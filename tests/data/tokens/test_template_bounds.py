"""Chat templates that would take for ever, or all memory, end with one message."""

import datetime as dt
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.tokens.rendering import budget
from orpo_mlx.data.tokens.rendering.budget import MAX_CHARACTERS, MAX_TURNS
from orpo_mlx.data.tokens.rendering.template import ChatTemplate, RefusedError
from orpo_mlx.errors import OrpoError
from tests import tiny
from tests.data.rows import user

GIGABYTE = 2**30


def render(text: str, messages: list[Any] | None = None, tools: list[Any] | None = None) -> str:
    template = ChatTemplate(tiny.build_tokenizer(text), False, {}, dt.date(2026, 1, 2))
    return template.render(messages or [user("hi")], tools)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Two gigabytes more than there are now: a template that wants them fails at once."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        yield
        return
    used = int(pages.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIGABYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


LOOP = "{% for i in range(99999) %}"
END = "{% endfor %}"
NESTED = LOOP + LOOP + "{% set x = 1 %}" + END + END


@pytest.mark.parametrize(
    "text",
    [
        NESTED,
        "{% for a in range(999) %}{% for b in range(999) %}{% for c in 'ab' %}" + END * 3,
        LOOP + "{% for x in range(99999) if x < 0 %}" + END * 2,
        "{% for x in [[[[]] * 999] * 999] recursive %}{{ loop(x) }}" + END,
        "{% macro m(n) %}{% if n %}{{ m(n - 1) + m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% macro m() %}" + NESTED + "{% endmacro %}{{ m() }}",
        "{% set x %}" + NESTED + "{% endset %}",
        "{% block b scoped %}" + NESTED + "{% endblock %}",
        LOOP + "{{ range(99999)|map('abs')|sum }}" + END,
        LOOP + "{% for x in range(99999)|select %}" + END * 2,
        LOOP + "{{ messages|map('length')|list|length }}" + END,
    ],
)
def test_loops_end(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_TURNS", 20_000)  # the same in less time
    for tools in (None, [{"name": "x"}]):  # by transformers' own rendering, too
        with pytest.raises(OrpoError, match="more than 20,000 turns.*--chat-template FILE"):
            render(text, tools=tools)


def test_loops_end_after_a_million_turns() -> None:
    inner = "{% for j in range(999) %}{% endfor %}"
    assert render("{% for i in range(999) %}" + inner + END + "done") == "done"
    with pytest.raises(OrpoError, match=f"more than {MAX_TURNS:,} turns"):
        render("{% for i in range(1001) %}" + inner + END)


BIG = "{% set s = 'x' * 3000000 %}"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 100000000 }}",
        "{{ 10000000000 * 'x' }}",
        "{{ ['x'] * 100000000 }}",
        "{{ 'x' * (10 ** 10) }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(n=3) %}" + LOOP + "{% set ns.n = ns.n * ns.n %}" + END,
        "{% set ns = namespace(s='x') %}" + LOOP + "{% set ns.s = ns.s + ns.s %}" + END,
        "{% set ns = namespace(s='x') %}"
        + LOOP
        + "{% set ns.s = ns.s ~ 'some more of it' %}"
        + END,
        "{% set ns = namespace(s=['x']) %}" + LOOP + "{% set ns.s = ns.s + ns.s %}" + END,
        "{% set ns = namespace(s='x') %}"
        + LOOP
        + "{% set ns.s = [ns.s, ns.s] %}"
        + END
        + "{{ ns.s }}",
        "{% set ns = namespace(s='x') %}" + LOOP + "{% set ns.s = {'a': ns.s, 'b': ns.s} %}" + END,
        BIG + "{{ " + " + ".join(["s"] * 100) + " }}",
        BIG + "{{ " + " ~ ".join(["s"] * 100) + " }}",
        BIG + "{{ s }}{{ s }}",
        BIG + "{% set t %}{{ s }}{{ s }}{% endset %}",
        BIG + "{% macro m() %}{{ s }}{{ s }}{% endmacro %}{{ m()|length }}",
        "{% set t %}" + LOOP * 2 + "{{ i|string|center(9999) }}" + END * 2 + "{% endset %}",
        "{{ range(99999)|join('x' * 10000) }}",
        "{{ range(99999)|map('center', 9999)|join }}",
        "{{ range(99999)|map('string')|map('center', 9999)|list|length }}",
        "{{ ('x' * 100000).join(range(99999)|map('string')|list) }}",
        "{{ ('x' * 3000000)|replace('x', 'y' * 1000) }}",
        "{{ ('x' * 3000000).replace('x', 'y' * 1000) }}",
        "{{ 'x'|center(10000000000) }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ '1'.zfill(10000000000) }}",
        "{{ ('\t' * 1000000).expandtabs(4000000) }}",
        "{{ 'x'.encode().center(10000000000) }}",
        "{{ (1).to_bytes(10000000000, 'big') }}",
        "{{ ('x' * 100000).translate({120: 'y' * 1000000}) }}",
        "{{ ('\n' * 1000000)|indent(1000000) }}",
        "{{ ('x' * 1000000)|wordwrap(1, true, 'y' * 1000) }}",
        "{{ messages|batch(10000000000, 'x')|list }}",
        "{{ messages|slice(10000000000)|list }}",
        "{{ [[[1]]]|tojson(indent=10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ '%10000000000d'|format(1) }}",
        "{{ ('%s' * 100000) % (range(99999)|list) }}",
        "{{ '{:10000000000}'.format('x') }}",
        "{{ '{:{}}'.format('x', 10000000000) }}",
        "{{ '{:{w}}'.format_map({'w': 10000000000}) }}",
        BIG + "{{ ('{0}' * 100000).format(s) }}",
        "{% filter center(10000000000) %}x{% endfilter %}",
        "{% autoescape true %}{{ ('<' * 3000000) ~ '<' }}{% endautoescape %}",
    ],
)
def test_texts_end_at_four_megabytes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_COPIED", 10 * MAX_CHARACTERS)  # in less time
    with pytest.raises(RefusedError, match="it writes more than 4 MB for one text"):
        render(text)


@pytest.mark.parametrize("text", ["{{ 'x' * 10 ** 10 }}", BIG + "{{ s + s }}", BIG + "{{ s }}" * 9])
def test_texts_with_tools_end_there_too(text: str) -> None:
    """Transformers' own rendering."""
    with pytest.raises(RefusedError, match="it writes more than 4 MB for one text"):
        render(text, tools=[{"name": "x"}])


def test_the_largest_text_is_rendered() -> None:
    content = "x" * (MAX_CHARACTERS - 1000)
    assert render("{% for m in messages %}{{ m.content }}{% endfor %}", [user(content)]) == content
    many = [user("y") for _ in range(5000)]
    assert render("{% for m in messages %}{{ m['content'] }}{% endfor %}", many) == "y" * 5000
    assert render(
        "{% for i in range(99999) %}{% if i == 2 %}{% break %}{% endif %}x{% endfor %}" * 11
    )


def test_every_text_begins_at_zero() -> None:
    text = LOOP * 1 + END + "{{ messages[0].content }}"
    template = ChatTemplate(tiny.build_tokenizer(text), False, {}, dt.date(2026, 1, 2))
    for _ in range(12):
        assert template.render([user("hi")]) == "hi"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ 1 + 2 }} {{ [1] + [2] }} {{ 'a' + 'b' ~ 3 }}", "3 [1, 2] ab3"),
        ("{% for a, b in [(1, 2), (3, 4)] %}{{ loop.index }}{{ a + b }}{{ loop.last }}{% endfor %}",
         "13False27True"),
        ("{% for x in [] %}a{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}", "a2b1"),
        ("{% for t in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ t.n }}{{ loop(t.c) }}"
         "{% endfor %}", "12"),
        ("{% macro m(x, y='d') %}<{{ x }}{{ y }}{{ caller() if caller }}>{% endmacro %}{{ m(1) }}"
         "{% call m(2, y='e') %}!{% endcall %}", "<1d><2e!>"),
        ("{{ '%s-%05.1f' % ('a', 2) }} {{ '{:>4}|{b}'.format('x', b=1700000000000) }}",
         "a-002.0    x|1700000000000"),
        ("{{ {'items': 1, 'k': 2}.k }}{{ {'items': 1}['items'] }}{{ {'k': 1}.missing }}", "21"),
        ("{{ messages|map(attribute='content')|join(', ') }} {{ 'a b'.split(' ')|last }}", "hi b"),
        ("{{ {'a': [{'b': 'é'}]}|tojson(indent=1) }}",
         '{\n "a": [\n  {\n   "b": "é"\n  }\n ]\n}'),
        ("{% set ns = namespace(x=1) %}{% set ns.x = ns.x + 1 %}{{ ns.x }}{{ none }}", "2None"),
        ("{% set t %}{{ 1 }}{{ 'two' }}{% endset %}{{ t|upper|replace('T', 'w')|trim }}", "1wWO"),
        ("{{ 2 ** 10 }} {{ 7 % 3 }} {{ 'ab' * 2 }} {{ -1 * 3 }} {{ 2.5 * 2 }}",
         "1024 1 abab -3 5.0"),
    ],
)  # fmt: skip
def test_other_templates_are_rendered_as_jinja_does(text: str, expected: str) -> None:
    assert render(text) == expected
    assert render(text, tools=[{"name": "x"}]) == expected
