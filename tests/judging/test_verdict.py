"""The verdict: what is counted, and the sentence with its condition."""

from typing import Any

import pytest
from scipy.stats import binomtest

from orpo_mlx.judging.answers import AnswerSource
from orpo_mlx.judging.plan import PlannedItem
from orpo_mlx.judging.verdict import Verdict, build_verdict, verdict_facts, verdict_sentences
from orpo_mlx.judging.votes import Vote
from tests.judging.sessions import answer, source, vote
from tests.judging.verdicts import (
    ADAPTER,
    BASE,
    answers_of,
    choice_for,
    ids_of,
    session_facts,
    votes_of,
)


def outcomes(adapter: int, base: int, tie: int = 0, bad: int = 0, skip: int = 0) -> list[str]:
    counts = {"adapter": adapter, "base": base, "tie": tie, "bad": bad, "skip": skip}
    return [name for name, count in counts.items() for _ in range(count)]


def verdict_on(wanted: list[str], *, missing: int = 0, equal: int = 0, **changes: Any) -> Verdict:
    judges = changes.pop("judges", ("you",))
    facts = session_facts(len(wanted) + missing + equal, equal=equal, **changes)
    return build_verdict(answers_of(facts.prompts), votes_of(facts, wanted, judges), facts)


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (
            verdict_on(outcomes(31, 13, 9, 3)),
            "You preferred the adapter in 31 of 44 decided prompts (70 %, 56 to 82); 9 ties and 3 "
            "both-bad apart.",
        ),
        (
            verdict_on(outcomes(24, 20)),
            "You preferred the adapter in 24 of 44 decided prompts (55 %, 40 to 68): too few to "
            "say; 0 ties and 0 both-bad apart. 44 would show 71:29 in four tries of five; 60:40 "
            "needs about 200.",
        ),
        (
            verdict_on(outcomes(4, 26, 1), equal=2, judges=("ann", "bob")),
            "Two judges preferred the base in 26 of 30 decided prompts (87 %, 70 to 95); 3 ties "
            "(2 of equal answers) and 0 both-bad apart.",
        ),
        (
            verdict_on(outcomes(25, 3, 2), missing=29, equal=1),
            "You preferred the adapter in 25 of 28 decided prompts (89 %, 73 to 96); 3 ties (1 of "
            "equal answers) and 0 both-bad apart; stopped at 31 of 60 by choice: not a test.",
        ),
        (
            verdict_on(outcomes(25, 3, 3), missing=29, ended=False),
            "You preferred the adapter in 25 of 28 decided prompts (89 %, 73 to 96); 3 ties and 0 "
            "both-bad apart; so far 31 of 60: not a test.",
        ),
        (
            verdict_on(outcomes(0, 0, 3, 1), equal=1),
            "No prompt was decided: too few to say; 4 ties (1 of equal answers) and 1 both-bad "
            "apart. So few cannot show any difference; 60:40 needs about 200.",
        ),
        (
            verdict_on([], equal=3),
            "No prompt was decided: too few to say; 3 ties (3 of equal answers) and 0 both-bad "
            "apart. So few cannot show any difference; 60:40 needs about 200.",
        ),
        (
            verdict_on([], missing=8, ended=False),
            "No prompt was decided; 0 ties and 0 both-bad apart; so far 0 of 8: not a test.",
        ),
        (
            verdict_on(outcomes(0, 1)),
            "You preferred the base in 1 of 1 decided prompt (100 %, 21 to 100): too few to say; 0 "
            "ties and 0 both-bad apart. So few cannot show any difference; 60:40 needs about 200.",
        ),
        (
            verdict_on(outcomes(0, 30), judges=[f"judge {n}" for n in range(12)]),
            "12 judges preferred the base in 30 of 30 decided prompts (100 %, 89 to 100); 0 ties "
            "and 0 both-bad apart.",
        ),
    ],
)  # fmt: skip
def test_the_sentence_carries_its_condition(verdict: Verdict, sentence: str) -> None:
    assert verdict_sentences(verdict)[0] == sentence


@pytest.mark.parametrize(
    ("wins", "decided"), [(21, 30), (22, 30), (9, 30), (8, 30), (5, 5), (6, 6)]
)
def test_a_difference_is_claimed_where_scipys_exact_test_finds_one(wins: int, decided: int) -> None:
    verdict = verdict_on(outcomes(wins, decided - wins))
    test = binomtest(wins, decided)
    assert verdict.claimed == (test.pvalue <= 0.05)
    assert verdict_facts(verdict)["p_value"] == test.pvalue


def test_a_session_that_was_stopped_claims_nothing_however_clear_it_is() -> None:
    stopped = verdict_on(outcomes(30, 0), missing=1)
    assert stopped.p_value < 1e-8
    assert not stopped.claimed


def test_skipped_prompts_are_not_missing_and_not_decided() -> None:
    verdict = verdict_on(outcomes(12, 2, 0, 0, 3))
    assert (verdict.skipped, verdict.missing, verdict.share) == (3, 0, (12, 14))
    assert verdict.claimed
    assert "3 prompts skipped." in verdict_sentences(verdict)


def test_only_the_first_vote_on_a_prompt_counts() -> None:
    facts = session_facts(3)
    first = votes_of(facts, ["skip", "adapter", "base"], ("ann",))
    later = votes_of(facts, ["base", "base", "base"], ("bob",))
    verdict = build_verdict(answers_of(3), [*first, *later], facts)
    assert verdict.share == (1, 3)
    assert verdict.judges == ["ann", "bob"]
    assert (verdict.further, verdict.skipped) == (2, 0)
    assert "2 further votes on prompts that had a first vote, not counted." in verdict_sentences(
        verdict
    )


def repeat(original: Vote, choice: str) -> Vote:
    return vote(
        f"again-{original.item}", original.second, original.first, choice,
        repeat_of=original.item, judge=original.judge,
    )  # fmt: skip


def test_repeats_add_nothing_to_the_number_and_are_counted_if_they_contradict() -> None:
    facts = session_facts(4)
    votes = votes_of(facts, ["adapter", "adapter", "tie", "base"])
    again = [repeat(old, old.choice) for old in votes]  # the same side: the other answer
    facts = facts.model_copy(update={"items": [*facts.items, *map(as_item, again)]})
    verdict = build_verdict(answers_of(4), [*votes, *again], facts)
    assert verdict.share == (2, 3)
    assert (verdict.repeats, verdict.contradicted) == (4, 3)
    assert "You contradicted yourself in 3 of 4 repeats." in verdict_sentences(verdict)
    assert verdict.prompts == 4


def as_item(row: Vote) -> PlannedItem:
    return PlannedItem(id=row.item, first=row.first, second=row.second, repeat_of=row.repeat_of)


def test_a_repeat_alone_is_not_a_vote_on_its_prompt() -> None:
    facts = session_facts(2)
    votes = votes_of(facts, ["adapter", "adapter"])
    again = repeat(votes[1], "first")
    facts = facts.model_copy(update={"items": [*facts.items, as_item(again)]})
    verdict = build_verdict(answers_of(2), [votes[0], again], facts)
    assert (verdict.share, verdict.missing, verdict.repeats) == ((1, 1), 1, 0)


def test_who_stopped_and_went_on_is_named_so() -> None:
    sentences = verdict_sentences(
        verdict_on(outcomes(5, 5), equal=1, stops=[4, 7], went_on=["2000-01-02T00:00:00+00:00"])
    )
    assert sentences[1:] == [
        "The session was stopped at 5, 8 of 11 prompts, and gone on with.",
        "Votes were added or taken back after the end.",
    ]


def test_cut_answers_and_unlike_settings_are_named() -> None:
    facts = session_facts(2)
    answers = answers_of(2, temperature=0.2)
    first = ids_of(0)[0]
    answers[first] = answers[first].model_copy(update={"finish": "length"})
    sentences = verdict_sentences(build_verdict(answers, votes_of(facts, ["base", "base"]), facts))
    assert sentences[1:] == [
        "1 prompt with an answer that was cut, judged as it is.",
        "The two models were sampled with unlike settings: temperature 0.2 and 0.8. A difference "
        "may be due to that.",
    ]


def named(one: AnswerSource, other: AnswerSource) -> tuple[str, str]:
    """What a verdict calls two models of which the first one was sampled first."""
    rows = [answer(who.name, name=f"{n}", source=who) for n, who in enumerate((one, other))]
    facts = session_facts(1, equal=1).model_copy(update={"equal": [(rows[1].id, rows[0].id)]})
    return build_verdict({row.id: row for row in rows}, [], facts).names


def test_two_models_never_have_one_name() -> None:
    base, one, two = source("base"), source("one", adapter="a/one"), source("two", adapter="a/two")
    assert named(base, one) == ("the adapter", "the base")
    assert named(two, one) == ("two", "one")
    assert named(base, source("base", model="other")) == ("base (first)", "base (second)")
    assert named(source("base", model="other"), one) == ("one", "base")


def test_parts_are_shown_from_15_decided_prompts_on() -> None:
    wanted = outcomes(20, 11, 4)
    facts = session_facts(len(wanted))
    answers = answers_of(len(wanted))
    for number in range(len(wanted)):
        for row in ids_of(number):
            group = "math" if number < 16 else "code" if number < 30 else "poem"
            # the base writes 15 characters, the adapter 18 (within a fifth), 19, or 12
            length = 15 if row.startswith(f"{BASE}/") else 18 if number < 16 else 19
            changes = {"group": group, "text": "x" * length}
            answers[row] = answers[row].model_copy(update=changes)
    verdict = build_verdict(answers, votes_of(facts, wanted), facts)
    assert verdict.by_group == [("math", (16, 16))]
    assert verdict.by_length == [("longer", (4, 15)), ("within 20 %", (16, 16))]
    assert verdict_facts(verdict)["by_length"] == [["longer", 4, 15], ["within 20 %", 16, 16]]


def test_one_part_is_the_whole_and_not_shown_again() -> None:
    assert verdict_on(outcomes(20, 0)).by_length == []


def test_votes_are_counted_for_the_model_whatever_its_side() -> None:
    facts = session_facts(2)
    left = [item.first.startswith(ADAPTER) for item in facts.items]
    assert left == [True, False]
    choices = [choice_for("adapter", item) for item in facts.items]
    assert choices == ["first", "second"]
    verdict = build_verdict(answers_of(2), votes_of(facts, ["adapter", "adapter"]), facts)
    assert verdict.share == (2, 2)
    assert [j.preferred for j in verdict.judged] == [0, 0]
    assert all(j.first.source.name == ADAPTER for j in verdict.judged)
