"""Rows that no pair could be read from, by what is wrong with them."""

import re
from collections import Counter
from collections.abc import Sequence

from orpo_mlx.data.quality.findings import MAX_EXAMPLES, SEVERE, Example, Finding
from orpo_mlx.data.sources import Problem

MAX_REASONS = 3
_EMPTY = re.compile(r'" is (?:an )?empty')


def find_unreadable(problems: Sequence[Problem], pairs: int) -> list[Finding]:
    """The rows that cannot be read; `empty` and `equal` ones by the names that pairs have."""
    by_name: dict[str, list[Problem]] = {}
    for problem in problems:
        by_name.setdefault(_name(problem.fault), []).append(problem)
    total = pairs + len({problem.place for problem in problems})
    return [_finding(name, own, total) for name, own in by_name.items()]


def _name(fault: str) -> str:
    if fault.endswith("are the same"):
        return "equal"
    return "empty" if _EMPTY.search(fault) else "unreadable"


def _finding(name: str, problems: Sequence[Problem], total: int) -> Finding:
    reasons = Counter(problem.fault for problem in problems).most_common(MAX_REASONS)
    told = "; ".join(f"{count:,} x {fault}" for fault, count in reasons)
    return Finding(
        name=name,
        severity=SEVERE,
        rows=tuple(dict.fromkeys(problem.place for problem in problems)),
        total=total,
        what=f"the row cannot be read ({told})",
        advice="Mend these rows, or leave them out of a run with --bad-rows drop.",
        examples=tuple(
            Example(problem.place, problem.fault, "", "", "") for problem in problems[:MAX_EXAMPLES]
        ),
    )
