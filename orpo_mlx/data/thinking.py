"""Whether the chat template's reasoning is on: as asked, or as the responses show."""

from collections.abc import Iterable

from orpo_mlx.data.formats import PreferencePair
from orpo_mlx.data.template import split_reasoning


def resolve_thinking(mode: str, pairs: Iterable[PreferencePair]) -> tuple[bool, str | None]:
    """Whether the template's reasoning is on, and a sentence if the data hold both kinds."""
    pairs = list(pairs)
    return thinking_for_counts(mode, count_reasoned(pairs), 2 * len(pairs))


def count_reasoned(pairs: Iterable[PreferencePair]) -> int:
    """How many responses hold reasoning."""
    return sum(bool(split_reasoning(r)[0]) for p in pairs for r in (p.chosen, p.rejected))


def thinking_for_counts(mode: str, reasoned: int, responses: int) -> tuple[bool, str | None]:
    """`resolve_thinking` from how many responses there are and how many of them hold reasoning."""
    on = bool(reasoned) if mode == "auto" else mode == "on"
    if 0 < reasoned < responses:
        plain, switch = responses - reasoned, "on" if on else "off"
        return on, (
            f"{reasoned:,} responses hold reasoning, {plain:,} do not: rendered with --thinking "
            f"{switch}."
        )
    return on, None
