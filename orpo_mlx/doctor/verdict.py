"""One verdict of the doctor, and how it reads. Standard library only, and any Python from 3.9."""

from typing import NamedTuple

OK, FAILED, SKIPPED = "ok", "failed", "does not apply"
WORDS = {OK: "OK", FAILED: "FAILED", SKIPPED: SKIPPED}
COLORS = {OK: 32, FAILED: 31, SKIPPED: 90}  # of ANSI terminals: green, red, grey
WIDTH = len(SKIPPED) + 2
REPORT = "If that does not help, report it with the output of: orpo-mlx doctor --json"


class Check(NamedTuple):
    """What was checked, its status, what was found, and what to do if it failed."""

    name: str
    status: str  # OK, FAILED or SKIPPED
    detail: str
    remedy: str = ""


class Running(NamedTuple):
    """A check that has begun."""

    name: str


def render_check(check: Check, *, color: bool = False) -> str:
    """The lines of a check, unwrapped: a command that is shown can be copied."""
    word = WORDS[check.status].ljust(WIDTH)
    if color:
        word = f"\x1b[{COLORS[check.status]}m{word}\x1b[0m"
    lines = [f"{word}{check.name}: {check.detail}"]
    if check.remedy:
        lines.append(f"{'':{WIDTH}}What to do: {check.remedy}")
    return "\n".join(lines)


def passed(checks: "list[Check]") -> bool:
    """Whether nothing failed."""
    return all(check.status != FAILED for check in checks)


def render_summary(checks: "list[Check]", seconds: float) -> str:
    """The last line: how many checks passed, do not apply, and failed, and which."""
    counts = {status: sum(c.status == status for c in checks) for status in WORDS}
    failed = [check.name for check in checks if check.status == FAILED]
    names = f" ({'; '.join(failed)})" if failed else ""
    return (
        f"{len(checks)} checks in {seconds:.0f} s: {counts[OK]} OK, "
        f"{counts[SKIPPED]} not applicable, {counts[FAILED]} failed{names}."
    )
