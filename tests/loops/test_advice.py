"""What a round's votes advise; whether they are at random, by scipy's binomial test."""

from typing import Any

import pytest
from scipy.stats import binomtest

from orpo_mlx.loops.advice import RoundVotes, advice_on

NEXT = "The next round: orpo-mlx loop evening"


def verdict(**changes: Any) -> dict[str, Any]:
    facts = {"repeats": 8, "contradicted": 0, "stopped": False, "claimed": True}
    return facts | {"decided": 30, "prompts": 40} | changes


def advice(pairs: int = 30, repeats: int = 8, contradicted: int = 0, **changes: Any) -> list[str]:
    return advice_on(RoundVotes(pairs, repeats, contradicted, verdict(**changes)), "evening")


def test_a_difference_that_was_shown_by_steady_votes_goes_on() -> None:
    assert advice() == [NEXT]


@pytest.mark.parametrize("contradicted", range(9))
def test_contradictions_warn_where_votes_at_random_would_have_them(contradicted: int) -> None:
    total = 2 * contradicted
    fewer_than_at_random = total < 8 and binomtest(total, 16).pvalue <= 0.05
    lines = advice_on(
        RoundVotes(30, 8, contradicted, verdict(contradicted=contradicted)), "evening"
    )
    assert (len(lines) == 1) == fewer_than_at_random
    assert lines[-1] == NEXT
    if not fewer_than_at_random:
        assert lines[0].startswith(
            f"The votes contradict each other: {total} of 16 repeats were judged otherwise"
        )


def test_a_few_repeats_warn_of_nothing() -> None:
    facts = RoundVotes(30, 2, 2, verdict(repeats=3, contradicted=3))
    assert advice_on(facts, "evening") == [NEXT]


def test_no_difference_at_this_n_advises_to_stop_or_to_ask_more() -> None:
    (line, last) = advice(claimed=False, decided=30)
    assert line.startswith("Nothing more is to be seen at 30 decided prompts")
    assert "--verdict-prompts" in line
    assert last == NEXT


def test_mostly_undecided_prompts_leave_little_to_teach() -> None:
    assert advice(claimed=False, decided=12)[0].startswith("Only 12 of 40 prompts were decided")


def test_a_verdict_that_was_stopped_advises_nothing_about_n() -> None:
    assert advice(claimed=False, stopped=True, decided=12) == [NEXT]


def test_without_a_pair_nothing_was_trained() -> None:
    lines = advice_on(RoundVotes(0, 0, 0, None), "evening")
    assert lines[0].startswith("No pair came of this round's votes")
    assert lines[1:] == [NEXT]
