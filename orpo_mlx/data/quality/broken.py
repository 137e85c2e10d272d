"""Rows that teach nothing or damage: empty, equal, echoing, marked, out of turn, misencoded."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile

from orpo_mlx.data.pairs.message_parts.content import is_invisible
from orpo_mlx.data.pairs.messages import PreferencePair
from orpo_mlx.data.quality.findings import MAX_EXAMPLES, SEVERE, Example, Finding, Hit, rows_finding
from orpo_mlx.data.quality.texts import Texts, normalize, text_of, width
from orpo_mlx.data.quality.thresholds import Thresholds, describe_threshold
from orpo_mlx.data.reading.report import Problem
from orpo_mlx.extras import import_extra

_SPEAKER = r"(?:Human|User|Assistant|AI|Bot|USER|ASSISTANT|Instruction|Response|Input|System)"
MARKERS = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_]{1,30}\|>|<｜[^｜\n]{2,40}｜>|\[/?INST\]|<</?SYS>>|</?start_of_turn>"
    r"|<end_of_turn>|<(?:bos|eos|pad|unk)>|\A\s*<s>|</s>\s*$"
    rf"|^#{{2,3}} ?{_SPEAKER}:|\n\n{_SPEAKER}: |\n\n(?:Human|Assistant):|\A\s*{_SPEAKER}: "
    r"|^(?:USER|ASSISTANT): ",
    re.MULTILINE,
)
_MARKER_SIGNS = ("<", "INST]", "##", "\n\n", "USER: ", "ASSISTANT: ")
_SYSTEM = ("system", "developer")


def find_broken(rows: Sequence[Texts], thresholds: Thresholds) -> list[Finding]:
    """Everything in a row that is wrong by itself."""
    return [
        *find_empty(rows),
        *find_equal(rows),
        *find_near_equal(rows),
        *find_echoes(rows, thresholds),
        *find_markers(rows),
        *find_alternation(rows),
        *find_mojibake(rows),
    ]


def find_empty(rows: Sequence[Texts]) -> list[Finding]:
    """Prompts and answers without a single character to see."""
    hits = [
        Hit(row, f"{' and '.join(names)} empty")
        for row in rows
        if (names := [n for n, text in _all_texts(row) if is_invisible(text)])
    ]
    return rows_finding(
        "empty",
        SEVERE,
        hits,
        len(rows),
        what="prompt or answer is empty",
        advice="Remove these rows, or find where the text was lost.",
    )


def _all_texts(row: Texts) -> tuple[tuple[str, str], ...]:
    return ("prompt", row.prompt), *row.answers


def find_equal(rows: Sequence[Texts]) -> list[Finding]:
    """Pairs whose answers are the same text."""
    hits = [Hit(row) for row in rows if is_equal(row)]
    return rows_finding(
        "equal",
        SEVERE,
        hits,
        len(rows),
        what="chosen and rejected are the same text",
        advice="Remove these rows: there is nothing to prefer.",
    )


def is_equal(row: Texts) -> bool:
    """Whether both answers are one text, white space around it aside."""
    return row.chosen.strip() == row.rejected.strip() != ""


def find_near_equal(rows: Sequence[Texts]) -> list[Finding]:
    """Pairs whose answers differ in trivia alone."""
    hits = [
        Hit(row, "differ in case, punctuation or white space")
        for row in rows
        if row.chosen_key == row.rejected_key and row.chosen.strip() and not is_equal(row)
    ]
    return rows_finding(
        "near_equal",
        SEVERE,
        hits,
        len(rows),
        what="chosen and rejected differ only in case, punctuation or white space",
        advice="Remove these rows, unless punctuation is what you want to teach.",
    )


def find_echoes(rows: Sequence[Texts], thresholds: Thresholds) -> list[Finding]:
    """Answers that hold all of the user's last message."""
    hits = []
    for row in rows:
        question = _last_question(row.pair)
        asked = normalize(question)
        if width(asked) >= thresholds["echo"]:
            # An answer with code in it is compared as it is.
            forms = (f" {asked} ", f" {' '.join(question.split())} ")
            keys = (("chosen", row.chosen_key), ("rejected", row.rejected_key))
            names = [n for n, key in keys if any(form in f" {key} " for form in forms)]
            if names:
                hits.append(Hit(row, f"{' and '.join(names)} repeats the prompt"))
    return rows_finding(
        "echo",
        SEVERE,
        hits,
        len(rows),
        what="an answer repeats the prompt",
        advice="Cut the prompt off these answers: the model would learn to repeat what was asked.",
        threshold=describe_threshold("echo", thresholds),
    )


def _last_question(pair: PreferencePair) -> str:
    return next((text_of(m) for m in reversed(pair.messages) if m["role"] == "user"), "")


def find_markers(rows: Sequence[Texts]) -> list[Finding]:
    """Answers that hold the markers with which chat templates separate turns."""
    hits = [
        Hit(row, f"{name} holds {marker[0].strip()}")
        for row in rows
        for name, text in row.answers
        if (marker := _marker(text)) and not _is_rendered(row, marker)
    ]
    return rows_finding(
        "markers",
        SEVERE,
        hits,
        len(rows),
        what="an answer holds the markers of a chat template",
        advice="Cut the answers at the first marker; text that was rendered before is read with "
        "--format rendered.",
    )


def _marker(text: str) -> re.Match[str] | None:
    # Most texts hold no sign of a marker, and looking for signs is quicker.
    likely = ":" in text[:20] or any(sign in text for sign in _MARKER_SIGNS)
    return MARKERS.search(text) if likely else None


def _is_rendered(row: Texts, marker: re.Match[str]) -> bool:
    """Whether the row is text with markers of its own, and this one ends the answer."""
    return row.pair.raw and not marker.string[marker.end() :].strip()


def find_alternation(rows: Sequence[Texts]) -> list[Finding]:
    """Prompts whose turns do not alternate between user and assistant."""
    hits = [Hit(row, fault) for row in rows if (fault := turn_fault(row.pair))]
    return rows_finding(
        "alternation",
        SEVERE,
        hits,
        len(rows),
        what="turns of the prompt do not alternate",
        advice="Join or remove the messages that are out of turn; many templates refuse such rows.",
    )


def turn_fault(pair: PreferencePair) -> str:
    """What is wrong with the order of the roles, or nothing. A prefill at the end is right."""
    if isinstance(pair.prompt, str):
        return ""
    roles = [message["role"] for message in pair.prompt]
    spoken = [role for role in roles if role not in _SYSTEM]
    if any(role in _SYSTEM for role in roles[len(roles) - len(spoken) :]):
        return "a system message follows other messages"
    if not spoken:
        return "the conversation has no user message"
    if spoken[0] != "user":
        return f"the conversation begins with {spoken[0]}"
    for before, role in pairwise(spoken):
        if before == role and role in ("user", "assistant"):
            return f"two {role} messages in a row"
        if role == "user" and before == "tool":
            return "the user speaks before a tool's result is answered"
    return ""


def find_mojibake(rows: Sequence[Texts]) -> list[Finding]:
    """Texts that were decoded with the wrong encoding, or have lost characters to it."""
    import_extra("ftfy", "check")
    hits = [
        Hit(row, f"{name}: {seen}")
        for row in rows
        for name, text in _all_texts(row)
        if not text.isascii() and (seen := damage(text))
    ]
    return rows_finding(
        "mojibake",
        SEVERE,
        hits,
        len(rows),
        what="text is damaged by a wrong encoding",
        advice="Read the source again as UTF-8, or repair it with ftfy.fix_encoding.",
    )


def damage(text: str) -> str:
    """The first damaged piece of a text and what it should be, or nothing."""
    if "\ufffd" in text:
        at = text.index("\ufffd")
        return f"{_excerpt(text, at)} has lost characters"
    from ftfy.badness import is_bad

    if not is_bad(text):
        return ""
    for piece in _pieces(text):
        if is_bad(piece) and (repaired := _repair(piece)) != piece:
            alike = takewhile(lambda both: both[0] == both[1], zip(piece, repaired, strict=False))
            at = len(list(alike))
            return f"{_excerpt(piece, at)} should be {_excerpt(repaired, at)}"
    return ""


def _excerpt(text: str, at: int) -> str:
    """What is around a position of a text."""
    start, end = max(at - 15, 0), at + 25
    before, after = "..." * (start > 0), "..." * (end < len(text))
    return f"{before}{text[start:end]!r}{after}"


def _pieces(text: str) -> Iterator[str]:
    """Lines and then words: one character that fits no encoding hides the damage of a line."""
    yield from text.splitlines()
    yield from text.split()


def _repair(piece: str) -> str:
    from ftfy import fix_encoding

    return str(fix_encoding(piece))


MAX_REASONS = 3
_EMPTY = re.compile(r'" is (?:an )?empty')


def find_unreadable(problems: Sequence[Problem], pairs: int) -> list[Finding]:
    """The rows that cannot be read; `empty` and `equal` ones by the names that pairs have."""
    by_name: dict[str, list[Problem]] = {}
    for problem in problems:
        by_name.setdefault(_name(problem.fault), []).append(problem)
    total = pairs + len({problem.location for problem in problems})
    return [_finding(name, own, total) for name, own in by_name.items()]


def _name(fault: str) -> str:
    if fault.endswith("are the same"):
        return "equal"
    return "empty" if _EMPTY.search(fault) else "unreadable"


def _finding(name: str, problems: Sequence[Problem], total: int) -> Finding:
    reasons = Counter(problem.fault for problem in problems).most_common(MAX_REASONS)
    listed = "; ".join(f"{count:,} x {fault}" for fault, count in reasons)
    return Finding(
        name=name,
        severity=SEVERE,
        rows=tuple(dict.fromkeys(problem.location for problem in problems)),
        total=total,
        what=f"the row cannot be read ({listed})",
        advice="Fix these rows, or leave them out of a run with --bad-rows drop.",
        examples=tuple(
            Example(problem.location, problem.fault, "", "", "")
            for problem in problems[:MAX_EXAMPLES]
        ),
    )
