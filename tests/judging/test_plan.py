"""What is planned to be shown: which answers, sides, repeats, and nothing of who answered."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.answers import SampledAnswer
from orpo_mlx.judging.plan import SessionPlan, plan_pairs, plan_verdict, repeats_of
from tests.judging.sessions import answer, several, source, two_models


def texts_of(plan: SessionPlan, answers: Sequence[SampledAnswer]) -> list[tuple[str, ...]]:
    """All that a judge sees of a plan, in order."""
    by_id = {a.id: a for a in answers}
    return [
        (item.id, item.repeat_of or "", by_id[item.first].text, by_id[item.second].text)
        for item in plan.items
    ]


def swapped(answers: Sequence[SampledAnswer]) -> list[SampledAnswer]:
    """The same texts, of two models each by the other one."""
    one, other = dict.fromkeys(a.source.name for a in answers)
    names = {one: other, other: one}
    return [
        answer(a.text, str(a.prompt), a.number, names[a.source.name], finish=a.finish)
        for a in answers
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("purpose", ["pairs", "verdict"])
def test_a_plan_is_the_same_when_two_models_swap_their_answers(purpose: str, seed: int) -> None:
    drawn = random.Random(seed)
    answers = two_models(30) if purpose == "verdict" else several(20, "one") + several(9, "two")
    drawn.shuffle(answers)
    others = swapped(answers)

    def shown(own: Sequence[SampledAnswer]) -> list[tuple[str, ...]]:
        if purpose == "verdict":
            return texts_of(plan_verdict(own, seed=seed), own)
        return texts_of(plan_pairs(own, per_prompt=1, seed=seed), own)

    assert shown(answers) == shown(others) == shown(others[::-1])
    assert shown(answers) != []


def test_another_seed_gives_another_order_and_other_sides() -> None:
    answers = two_models(30)
    plans = [texts_of(plan_verdict(answers, seed=seed), answers) for seed in range(3)]
    orders = [[frozenset(row[2:]) for row in plan] for plan in plans]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(row[2] for row in plan) for plan in plans}) == 3


@pytest.mark.parametrize("seed", range(20))
def test_sides_are_balanced_in_every_block_of_four(seed: int) -> None:
    answers = two_models(42)
    plan = plan_verdict(answers, seed=seed)
    models = {a.id: a.source.name for a in answers}
    left = [models[item.first] for item in plan.items if not item.repeat_of]
    blocks = [Counter(left[n : n + 4]) for n in range(0, 40, 4)]
    assert all(block == {"one": 2, "two": 2} for block in blocks)


def test_every_way_to_balance_four_occurs_and_first_items_are_on_both_sides() -> None:
    answers, ways, firsts = two_models(4), set[str](), Counter[str]()
    models = {a.id: a.source.name for a in answers}
    for seed in range(100):
        left = [models[item.first] for item in plan_verdict(answers, seed=seed).items]
        ways.add("".join(name[0] for name in left))
        firsts[left[0]] += 1
    assert ways == set(map("".join, itertools.permutations("oott")))
    # 100 fair draws: outside 25 to 75 in less than one of a million tries.
    assert 25 < firsts["one"] < 75


@pytest.mark.parametrize("items", [1, 7, 23, 24, 25, 47, 48, 60, 120])
def test_one_in_six_is_shown_again_at_least_eight_or_none_five_items_apart(items: int) -> None:
    for seed in range(10):
        plan = plan_verdict(two_models(items), seed=seed).items
        location = {item.id: n for n, item in enumerate(plan)}
        originals = {item.id: item for item in plan if not item.repeat_of}
        repeats = [item for item in plan if item.repeat_of]
        assert len(originals) == items
        assert len(location) == len(plan)
        assert len(repeats) == repeats_of(items) == (0 if items < 24 else max(8, items // 6))
        assert len({item.repeat_of for item in repeats}) == len(repeats)
        for item in repeats:
            original = originals[item.repeat_of or ""]
            assert (item.first, item.second) == (original.second, original.first)
            assert location[item.id] - location[original.id] > 5


def test_pairs_are_of_the_two_answers_that_differ_most_then_of_others() -> None:
    texts = [
        "The cat sat on the mat today.",
        "The cat sat on the mat again.",
        "A dog sat on the mat today.",
        "Seven ships left harbor at dawn.",
    ]
    answers = [answer(text, number=n) for n, text in enumerate(texts)]

    def shared(two: frozenset[str]) -> int:
        """Words in the same order in both, by trying all."""
        one, other = (text.lower().split() for text in two)
        subsequences = (set(itertools.combinations(words, n)) for n in range(8) for words in (one,))
        return max(
            len(part)
            for parts in subsequences
            for part in parts
            if part in set(itertools.combinations(other, len(part)))
        )

    plan = texts_of(plan_pairs(answers, per_prompt=5, seed=0), answers)
    twos = [frozenset(row[2:]) for row in plan]
    # Disjoint: two of four answers.
    assert len(twos) == 2
    assert frozenset.union(*twos) == set(texts)
    fewest = min(shared(frozenset(two)) for two in itertools.combinations(texts, 2))
    first = texts_of(plan_pairs(answers, per_prompt=1, seed=0), answers)
    assert [shared(frozenset(row[2:])) for row in first] == [fewest]


def test_cut_empty_and_equal_answers_are_left_out_of_pairs_and_counted() -> None:
    answers = [
        answer("One way."),
        answer("  one   WAY.", number=1, thought="Why one"),
        answer("Another", number=2, finish="length"),
        answer("", number=3, finish="thought"),
        answer(" \n", number=4),
        answer("Other way.", number=5),
        answer("\u200b\u200b", number=6),
        answer("Alone.", prompt="Second?"),
    ]
    plan = plan_pairs(answers, per_prompt=3, seed=0)
    assert [{item.first, item.second} for item in plan.items] == [
        {"base/Prompt?/0", "base/Prompt?/5"}
    ]
    assert plan.prompts == 1
    assert plan.left_out == {
        "answer that was cut": 2,
        "empty answer": 2,
        "answer equal to another of its model": 1,
        "prompt without two whole, unlike answers": 1,
    }


def test_equal_answers_of_two_models_stay_two_and_each_pair_is_of_one_model() -> None:
    answers = several(4, "one") + several(4, "two")
    plan = plan_pairs(answers, per_prompt=1, seed=0)
    models = {a.id: a.source.name for a in answers}
    pairs = Counter((models[item.first], models[item.second]) for item in plan.items)
    assert pairs == {("one", "one"): 4, ("two", "two"): 4}
    assert plan.prompts == 4


def test_without_two_answers_to_compare_it_is_said_what_to_sample() -> None:
    with pytest.raises(OrpoError) as error:
        plan_pairs([answer("One."), answer("two", number=1, finish="length")], per_prompt=1, seed=0)
    assert str(error.value) == (
        "There are no two answers of one model to compare (1 x answer that was cut; 1 x prompt "
        "without two whole, unlike answers). Sample more with -n, a higher --temperature, or a "
        "higher --max-tokens where answers were cut."
    )


def test_a_verdict_has_the_first_answers_of_both_models_and_counts_what_is_left() -> None:
    answers = [
        answer("a", "Both?", name="one"),
        answer("later", "Both?", 1, name="one"),
        answer("b", "Both?", name="two", finish="length"),
        answer("Same  text", "Equal?", name="one"),
        answer("same text", "Equal?", name="two", thought="Hm."),
        answer("alone", "Only?", name="one"),
    ]
    plan = plan_verdict(answers, seed=0)
    assert [{item.first, item.second} for item in plan.items] == [{"one/Both?/0", "two/Both?/0"}]
    assert plan.equal == [("one/Equal?/0", "two/Equal?/0")]
    assert plan.prompts == 2
    assert plan.left_out == {
        "prompt that only one model answered": 1,
        "further answer of a model to a prompt": 1,
    }


def test_a_verdict_needs_two_models_and_names_what_it_has() -> None:
    with pytest.raises(OrpoError, match=r"found 1: one\. Give answers of both: orpo-mlx sample"):
        plan_verdict([answer("a", name="one")], seed=0)
    warm = source("base", temperature=1.0)
    answers = [
        answer("a", name="one"),
        answer("b"),
        answer("c", id="third", source=warm),
    ]
    with pytest.raises(OrpoError, match=r"found 3: one, base, base \(temperature: 0\.8, 0\.8, 1"):
        plan_verdict(answers, seed=0)
    with pytest.raises(OrpoError, match="No prompt was answered by both models"):
        plan_verdict([answer("a", "A?", name="one"), answer("b", "B?", name="two")], seed=0)
