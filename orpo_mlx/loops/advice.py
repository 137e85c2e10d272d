"""What the votes of a round advise: go on, judge otherwise, or stop. No mlx."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from orpo_mlx.judging.power import LEVEL, p_value

ENOUGH_REPEATS = 6  # with fewer, contradictions are chance


class RoundVotes(NamedTuple):
    """What is known of the votes of a round; `verdict` is verdict.json, None without one."""

    pairs: int
    repeats: int  # of the votes for pairs
    contradicted: int
    verdict: Mapping[str, Any] | None


def advice_on(votes: RoundVotes, name: str) -> list[str]:
    """Sentences, the most urgent first; the last one names the next command."""
    sentences = [*_on_contradictions(votes), *_on_verdict(votes.verdict)]
    if not votes.pairs:
        sentences.insert(
            0,
            "No pair came of this round's votes, so nothing was trained: ties, both-bad, skips and "
            "cut answers make none. Try a higher --temperature or --max-tokens, or other prompts.",
        )
    return [*sentences, f"The next round: orpo-mlx loop {name}"]


def _on_contradictions(votes: RoundVotes) -> list[str]:
    """A warning if votes are not better than chance by their repeats."""
    verdict = votes.verdict or {}
    repeats = votes.repeats + verdict.get("repeats", 0)
    contradicted = votes.contradicted + verdict.get("contradicted", 0)
    # Votes at random contradict half of them: clearly fewer show that votes mean something.
    if 2 * contradicted < repeats and p_value(contradicted, repeats) <= LEVEL:
        return []
    if repeats < ENOUGH_REPEATS:
        return []
    return [
        f"The votes contradict each other: {contradicted} of {repeats} repeats were judged "
        "otherwise the second time, and votes at random come to half. Stop here, or write down "
        "what is better (--guidelines) before you go on."
    ]


def _on_verdict(verdict: Mapping[str, Any] | None) -> list[str]:
    if verdict is None or verdict["stopped"] or verdict["claimed"]:
        return []
    decided, prompts = verdict["decided"], verdict["prompts"]
    if 2 * decided < prompts:
        return [
            f"Only {decided} of {prompts} prompts were decided: the two models answer alike, or "
            "alike badly. There is little left for votes to teach."
        ]
    return [
        f"Nothing more is to be seen at {decided} decided prompt{'s' * (decided != 1)}: smaller "
        "preferences are missed too often. Stop here, or ask about more prompts: --verdict-prompts."
    ]
