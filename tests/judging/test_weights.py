"""What votes come to: weights against an independent count, edits, what is left out."""

import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest

from orpo_mlx.judging.answers import SampledAnswer, folded
from orpo_mlx.judging.to_pairs import Edits, PairsOfVotes, pairs_of_votes
from orpo_mlx.judging.votes import Choice, EditedAnswer, Vote, effective_votes
from tests.judging.sessions import answer, vote, votes_on

CHOICES: tuple[Choice, ...] = ("first", "second", "tie", "both_bad", "skip")

A, B, C = (answer(text, number=n) for n, text in enumerate(("One.", "Two.", "Three.")))

Weights = dict[tuple[str, str, str], Fraction]


def result_of(*votes: Vote, answers: Sequence[SampledAnswer] = (A, B, C), **more: Any) -> Any:
    return pairs_of_votes({a.id: a for a in answers}, votes, **more)


def weights(result: PairsOfVotes) -> dict[tuple[str, str], float]:
    return {(p.chosen["content"], p.rejected["content"]): p.weight for p in result.pairs}


@pytest.mark.parametrize(
    ("choices", "weight"),
    [
        (">", 1),
        ("<", -1),
        (">>>", 1),
        (">><", Fraction(1, 3)),
        ("><<", Fraction(-1, 3)),
        (">=", Fraction(1, 2)),
        (">!", Fraction(1, 2)),
        (">>=!", Fraction(1, 2)),
        (">-", 1),
        ("<<<>=", Fraction(-2, 5)),
        ("><", 0),
        ("=", 0),
        ("!", 0),
        ("-", 0),
    ],
)
def test_a_weight_is_for_less_against_of_all_votes_of_which_skipped_ones_are_none(
    choices: str, weight: Fraction
) -> None:
    result = weights(result_of(*votes_on(A, B, choices)))
    two = ("One.", "Two.") if weight > 0 else ("Two.", "One.")
    assert result == ({two: float(abs(weight))} if weight else {})


def repeat(choice: str, **changes: Any) -> Vote:
    """The item of `votes_on` again, its sides swapped."""
    return vote("again", B.id, A.id, choice, judge="judge 0", repeat_of="i", **changes)


@pytest.mark.parametrize(
    ("first", "again", "row", "contradicted"),
    [
        (">", "second", True, 0),
        (">", "first", False, 1),
        (">", "tie", True, 0),
        (">", "both_bad", True, 0),
        (">", "skip", True, 0),
        ("=", "first", False, 0),
        ("-", "first", False, 0),
    ],
)
def test_a_vote_that_its_swapped_repeat_contradicts_is_a_tie(
    first: str, again: str, row: bool, contradicted: int
) -> None:
    result = result_of(*votes_on(A, B, first), repeat(again))
    assert weights(result) == ({("One.", "Two."): 1} if row else {})
    counts = result.counts
    assert counts["contradicted"] == contradicted
    assert counts["repeats"] == (again != "skip" and first != "-")
    assert counts["ties"] == (first == "=" or contradicted)
    # Of another judge it says nothing.
    other = repeat("first").model_copy(update={"judge": "other"})
    assert weights(result_of(*votes_on(A, B, ">"), other)) == {("One.", "Two."): 1}


def test_a_contradicted_vote_weighs_as_a_tie_next_to_others() -> None:
    result = result_of(*votes_on(A, B, ">>"), repeat("first"))
    assert weights(result) == {("One.", "Two."): 0.5}


@pytest.mark.parametrize(
    ("choice", "rows"),
    [
        ("first", {("Mine.", "Two."): 1, ("One.", "Two."): 1}),
        ("second", {("Mine.", "Two."): 1, ("Two.", "One."): 1}),
        ("tie", {("Mine.", "Two."): 1}),
        ("skip", {("Mine.", "Two."): 1}),
        ("both_bad", {("Mine.", "Two."): 1, ("Mine.", "One."): 1}),
    ],
)
def test_an_edit_is_better_than_its_answer_and_than_the_other_if_both_were_bad(
    choice: str, rows: dict[tuple[str, str], float]
) -> None:
    edited = vote("i", A.id, B.id, choice, edit=EditedAnswer(of=B.id, text="Mine.\n"))
    result = result_of(edited)
    assert weights(result) == rows
    assert result.counts["pairs_of_edits"] == sum("Mine." in two for two in rows)
    dropped = result_of(edited, edits="drop")
    assert weights(dropped) == {two: w for two, w in rows.items() if "Mine." not in two}
    assert (dropped.counts["edits"], dropped.counts["edits_left_out"]) == (1, 1)


def test_what_an_edit_writes_goes_before_votes_on_the_same_two_texts() -> None:
    edit = EditedAnswer(of=A.id, text="two.")
    edited = vote("i", A.id, B.id, "skip", edit=edit, judge="editor")
    assert weights(result_of(*votes_on(A, B, ">>>"), edited)) == {("two.", "One."): 1}
    assert weights(result_of(*votes_on(A, B, "<<>"), edited)) == {("two.", "One."): 1}
    back = vote("i", A.id, B.id, "skip", edit=EditedAnswer(of=B.id, text="ONE."), judge="other")
    result = result_of(edited, back)
    assert (weights(result), result.counts["even"]) == ({}, 1)


@pytest.mark.parametrize("text", ["one. ", " \n", "<think></think>"])
def test_an_edit_that_changes_nothing_is_left_out(text: str) -> None:
    result = result_of(vote("i", A.id, B.id, "tie", edit=EditedAnswer(of=A.id, text=text)))
    assert (result.pairs, result.counts["edits_left_out"]) == ([], 1)


@pytest.mark.parametrize("changes", [{"finish": "length"}, {"finish": "thought"}, {"text": " "}])
def test_a_cut_or_empty_answer_is_neither_chosen_nor_rejected(changes: dict[str, Any]) -> None:
    cut = answer("Cut", number=7).model_copy(update=changes)
    own = (A, B, cut)
    for choice in ("first", "second"):
        result = result_of(vote("i", A.id, cut.id, choice), answers=own)
        assert (result.pairs, result.counts["votes"], result.counts["unusable"]) == ([], 1, 1)
    edit = EditedAnswer(of=cut.id, text="Mine.")
    begun = result_of(vote("i", A.id, cut.id, "first", edit=edit), answers=own)
    assert (begun.pairs, begun.counts["edits_left_out"]) == ([], 1)
    both = result_of(vote("i", A.id, cut.id, "both_bad", edit=edit), answers=own)
    assert weights(both) == {("Mine.", "One."): 1}


def test_equal_texts_are_one_answer_and_a_judges_first_vote_on_them_counts() -> None:
    same = answer("  ONE.", number=5, thought="Later.")
    result = result_of(
        vote("i", A.id, B.id, "first"),
        vote("j", B.id, same.id, "first"),
        vote("k", A.id, same.id, "first"),
        vote("j", B.id, same.id, "second", judge="ann"),
        answers=(A, B, same),
    )
    assert weights(result) == {("One.", "Two."): 1}
    counts = result.counts
    assert (counts["votes"], counts["further"], counts["unusable"]) == (3, 1, 1)


def slow_count(answers: Sequence[SampledAnswer], rows: Sequence[Vote], keep: bool) -> Weights:
    """The weight of each two texts, each looked for in all votes."""
    undone = [row.undo for row in rows]
    votes: list[Vote] = []
    for row in rows:
        earlier = [v for v in votes if (v.judge, v.item) == (row.judge, row.item)]
        if row.undo is None and row.vote not in undone and not earlier:
            votes.append(row)
    by_id = {a.id: a for a in answers}

    def text(i: str) -> str:
        return " ".join(by_id[i].text.lower().split())

    def good(i: str) -> bool:
        return by_id[i].finish == "stop" and text(i) != ""

    def edits(better: str, worse: str, prompt: object) -> int:
        return sum(
            " ".join(v.edit.text.lower().split()) == better != ""
            and any(
                good(i) and text(i) == worse
                for i in (v.first, v.second)
                if v.choice == "both_bad" or i == v.edit.of
            )
            for v in votes
            if v.edit and by_id[v.first].prompt == prompt and keep
        )

    def judged(judge: str, better: str, worse: str, prompt: object) -> str:
        for v in votes:
            two = [text(v.first), text(v.second)]
            if (v.judge, by_id[v.first].prompt) != (judge, prompt) or v.repeat_of:
                continue
            if v.choice == "skip" or sorted(two) != sorted([better, worse]):
                continue
            if not good(v.first) or not good(v.second):
                continue
            if v.choice not in ("first", "second"):
                return "tie"
            liked, other = (v.first, v.second) if v.choice == "first" else (v.second, v.first)
            again = [r for r in votes if (r.judge, r.repeat_of) == (judge, v.item)]
            if any({"first": r.first, "second": r.second}.get(r.choice) == other for r in again):
                return "tie"
            return "for" if text(liked) == better else "against"
        return "none"

    result: Weights = {}
    for prompt in {a.prompt for a in answers if isinstance(a.prompt, str)}:
        texts = {text(a.id) for a in answers if a.prompt == prompt}
        texts |= {" ".join(v.edit.text.lower().split()) for v in votes if v.edit}
        for better, worse in permutations(sorted(texts), 2):
            own = Counter(judged(judge, better, worse, prompt) for judge in ("ann", "bob", "cid"))
            of_edits = edits(better, worse, prompt), edits(worse, better, prompt)
            if any(of_edits):
                own = Counter({"for": of_edits[0], "against": of_edits[1]})
            if own["for"] > own["against"]:
                of = own["for"] + own["against"] + own["tie"]
                result[prompt, better, worse] = Fraction(own["for"] - own["against"], of)
    return result


def random_session(drawn: random.Random) -> tuple[list[SampledAnswer], list[Vote]]:
    """Answers, some equal, cut or empty, and votes of three judges with all that can happen."""
    pool = ("Yes.", "yes. ", "No.", "no.", "Perhaps.", "It depends.", "  ")
    answers = [
        answer(
            drawn.choice(pool), prompt, number, name, finish=drawn.choice(["stop"] * 5 + ["length"])
        )
        for prompt in ("P?", "Q?")
        for name in ("base", "tuned")
        for number in range(3)
    ]
    items: list[tuple[str, str, str, str | None]] = []
    for number in range(7):
        first, second = drawn.sample(answers[:6] if drawn.random() < 0.6 else answers[6:], 2)
        items.append((f"i{number}", first.id, second.id, None))
        if drawn.random() < 0.4:
            items.append((f"r{number}", second.id, first.id, f"i{number}"))
    rows: list[Vote] = []
    for judge in ("ann", "bob", "cid"):
        for item, first_id, second_id, original in items:
            for attempt in range(drawn.choice([0, 1, 1, 1, 2, 2])):
                of, text = (
                    drawn.choice([first_id, second_id]),
                    drawn.choice([*pool, "Edited.", "E"]),
                )
                edit = EditedAnswer(of=of, text=text) if drawn.random() < 0.2 else None
                row = vote(
                    item,
                    first_id,
                    second_id,
                    drawn.choice(CHOICES),
                    judge=judge,
                    vote=f"{judge}-{item}-{attempt}",
                    edit=edit,
                    repeat_of=original,
                )
                rows.append(row)
                if drawn.random() < 0.2:
                    changes = {"vote": f"undo-{row.vote}", "undo": row.vote, "edit": None}
                    rows.append(row.model_copy(update=changes))
    drawn.shuffle(rows)
    return answers, rows


def test_weights_are_those_of_a_slow_count_over_random_votes() -> None:
    kinds = Counter[str]()
    for seed in range(80):
        answers, rows = random_session(random.Random(seed))
        by_id = {a.id: a for a in answers}
        both: tuple[Edits, Edits] = ("keep", "drop")
        for edits in both:
            result = pairs_of_votes(by_id, effective_votes(rows), edits=edits)
            own = {
                (
                    str(p.prompt),
                    folded(p.chosen["content"]),
                    folded(p.rejected["content"]),
                ): p.weight
                for p in result.pairs
            }
            assert len(own) == len(result.pairs) == result.counts["pairs"]
            expected = slow_count(answers, rows, keep=edits == "keep")
            assert own == {two: float(weight) for two, weight in expected.items()}, seed
            counts = result.counts
            assert counts["votes"] == sum(
                counts[name] for name in ("preferred", "ties", "both_bad", "unusable")
            )
            kinds += Counter({name: 1 for name, count in counts.items() if count})
            kinds.update(weight.denominator.__str__() for weight in expected.values())
    # What the cases are about occurs in many of them.
    assert min(kinds[name] for name in result.counts) > 10, kinds
    assert min(kinds[name] for name in "123") > 10, kinds
