"""What a check reports: findings, the rows they name, examples, and what to do."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orpo_mlx.data.quality.texts import Texts

SEVERE, WARNING, NOTE = "severe", "warning", "note"
SEVERITIES = (SEVERE, WARNING, NOTE)
MAX_EXAMPLES = 3
MAX_CHARACTERS = 400


class Example(NamedTuple):
    """A row that a finding names, its texts cut to MAX_CHARACTERS."""

    location: str
    detail: str  # what was seen in this row
    prompt: str
    chosen: str
    rejected: str


class Finding(NamedTuple):
    """One kind of thing that is wrong, or that should be known."""

    name: str
    severity: str  # SEVERE, WARNING or NOTE
    rows: tuple[str, ...]  # the location of every row that is named
    total: int  # rows that were looked at
    what: str
    advice: str
    threshold: str = ""  # "" where none is set
    examples: tuple[Example, ...] = ()
    figures: Mapping[str, float] = {}


class Hit(NamedTuple):
    """A row that shows something, and what is seen in it."""

    row: Texts
    detail: str = ""


def rows_finding(
    name: str,
    severity: str,
    hits: Sequence[Hit],
    total: int,
    *,
    what: str,
    advice: str,
    threshold: str = "",
    figures: Mapping[str, float] | None = None,
) -> list[Finding]:
    """The finding that names the rows of `hits`, each once; none without hits."""
    if not hits:
        return []
    rows = tuple(dict.fromkeys(hit.row.location for hit in hits))
    examples = tuple(example_of(hit) for hit in hits[:MAX_EXAMPLES])
    return [Finding(name, severity, rows, total, what, advice, threshold, examples, figures or {})]


def example_of(hit: Hit) -> Example:
    """The row of a hit as it is shown."""
    row = hit.row
    texts = (row.question, row.chosen, row.rejected)
    return Example(row.location, hit.detail, *(shorten(text) for text in texts))


def shorten(text: str) -> str:
    """The beginning and the end of a text, MAX_CHARACTERS at most."""
    if len(text) <= MAX_CHARACTERS:
        return text
    half = (MAX_CHARACTERS - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def merge_by_name(findings: Sequence[Finding]) -> list[Finding]:
    """One finding a name: its rows and examples together, the words of the first."""
    by_name: dict[str, Finding] = {}
    for finding in findings:
        first = by_name.get(finding.name)
        if first is None:
            by_name[finding.name] = finding
            continue
        by_name[finding.name] = first._replace(
            rows=tuple(dict.fromkeys([*first.rows, *finding.rows])),
            total=max(first.total, finding.total),
            what=f"{first.what}; {finding.what}",
            examples=(*first.examples, *finding.examples)[:MAX_EXAMPLES],
        )
    return list(by_name.values())


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """By severity, then by the number of rows."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -len(f.rows)))
