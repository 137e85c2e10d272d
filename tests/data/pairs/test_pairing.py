"""Pairs of scored, judged and labelled answers: which two, in which direction, what is left out."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import PreferencePair, Reading, pair_rows, read_row, recognize
from orpo_mlx.data.pairs.scores import best_pairs
from orpo_mlx.data.reading.report import Problem, ReadReport
from orpo_mlx.data.reading.sources import Row
from tests.data.rows import assistant, user

TIE = "answers that are equally good (a tie)"
APART = "answers less than --min-margin apart"
ALONE = "answer without another to the same prompt in the rows next to it"
SAME = "two answers that are the same text"


class ReadRows:
    """What becomes of rows."""

    def __init__(self, *values: dict[str, Any], **reading: Any):
        rows = [Row(f"f:{number}", row) for number, row in enumerate(values, start=1)]
        self.report = ReadReport()
        row_format = recognize(rows, Reading(**reading), "f")
        self.sentence = row_format.sentence
        self.pairs: list[PreferencePair] = []
        if row_format.grouped:
            self.pairs += pair_rows(rows, row_format, self.report)
        else:
            for row in rows:
                self.pairs += read_row(row, row_format, self.report)

    @property
    def texts(self) -> list[tuple[str, str]]:
        return [(p.chosen["content"], p.rejected["content"]) for p in self.pairs]

    @property
    def locations(self) -> list[str]:
        return [pair.location for pair in self.pairs]


def ranked(scores: list[Any], texts: str = "abcdefgh", **more: Any) -> dict[str, Any]:
    answers = [{"answer": t, "score": s} for t, s in zip(texts, scores, strict=False)]
    return {"prompt": "p", "answers": answers, **more}


def test_the_best_meets_the_worst_and_the_log_names_the_direction() -> None:
    result = ReadRows(ranked([3, 9, 1, 5]))
    assert result.texts == [("b", "c")]
    assert result.sentence == '"answers", best against worst by "score" (greater is better)'


def test_smaller_ranks_are_better_unless_the_other_way_is_forced() -> None:
    row = {"prompt": "p", "responses": ["x", "y", "z"], "ranks": [2, 1, 3]}
    assert ReadRows(row).texts == [("y", "z")]
    assert (
        ReadRows(row).sentence == '"responses", best against worst by "ranks" (smaller is better)'
    )
    forced = ReadRows(row, higher_is_better=True)
    assert forced.texts == [("z", "y")]
    assert forced.sentence == '"responses", best against worst by "ranks" (greater is better)'
    assert ReadRows(ranked([3, 9, 1]), higher_is_better=False).texts == [("c", "b")]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("higher", [True, False])
def test_a_margin_makes_every_pair_at_least_so_far_apart(seed: int, higher: bool) -> None:
    draw = random.Random(seed)
    scores = [draw.randrange(6) for _ in range(draw.randrange(2, 8))]
    margin = draw.randrange(4)
    report = ReadReport()
    result = best_pairs(scores, higher, margin, report)
    two = list(itertools.permutations(range(len(scores)), 2))
    better = [
        (i, j) for i, j in two if (scores[i] > scores[j] if higher else scores[i] < scores[j])
    ]
    kept = [(i, j) for i, j in better if abs(scores[i] - scores[j]) >= margin]
    assert sorted(result) == sorted(kept)
    ties = sum(scores[i] == scores[j] for i, j in two) // 2
    assert (report.rows_left_out[TIE], report.rows_left_out[APART]) == (
        ties,
        len(better) - len(kept),
    )


def test_a_margin_is_reported() -> None:
    result = ReadRows(ranked([3, 9, 1]), min_margin=5)
    assert result.texts == [("b", "a"), ("b", "c")]
    assert result.report.rows_left_out == {APART: 1}
    assert result.sentence == '"answers", every two at least 5 apart by "score" (greater is better)'


def test_ties_of_the_best_and_the_worst_take_the_first_and_equal_answers_none() -> None:
    assert ReadRows(ranked([9, 1, 9, 1])).texts == [("a", "b")]
    result = ReadRows(ranked([4, 4, 4]), ranked([1, 2]))
    assert (result.texts, result.report.rows_left_out) == ([("b", "a")], {TIE: 1})
    result = ReadRows(ranked([1, 2], "xx"))
    assert (result.texts, result.report.rows_left_out) == ([], {SAME: 1})


def test_ratings_in_text_are_numbers_and_those_that_are_none_leave_their_answer_out() -> None:
    result = ReadRows(ranked(["4", "N/A", "10", None, "2.5"]))
    assert result.texts == [("c", "e")]
    assert result.report.rows_left_out == {'answer without a number in "score"': 2}
    result = ReadRows(ranked(["4", "5"]), ranked(["N/A", "3"]))
    assert result.texts == [("b", "a")]
    assert result.report.rows_left_out == {
        'answer without a number in "score"': 1,
        "row with fewer than two answers that can be compared": 1,
    }


def test_answers_without_text_are_left_out_and_others_than_text_are_faults() -> None:
    row = ranked([1, 2, 3, 4])
    row["answers"][3]["answer"] = " "
    row["answers"][0]["answer"] = None
    result = ReadRows(row)
    assert (result.texts, result.report.rows_left_out) == ([("c", "b")], {"answer without text": 2})
    wrong = ranked([1, 2])
    wrong["answers"][1]["answer"] = 7
    result = ReadRows(row, wrong, {**row, "answers": "none"}, {"prompt": "p", "answers": None})
    assert result.report.problems == [
        Problem("f:2", 'an answer in "answers" must be text, found int'),
        Problem("f:3", '"answers" must be a list of answers with scores'),
        Problem("f:4", 'column "answers" is null'),
    ]


def test_lists_of_answers_and_scores_must_be_of_one_length() -> None:
    row = {"prompt": "p", "responses": ["x", "y"], "scores": [1, 2]}
    result = ReadRows(row, {**row, "scores": [1]})
    assert result.texts == [("y", "x")]
    assert result.report.problems == [
        Problem("f:2", '"responses" and "scores" must be lists of one length')
    ]


def test_ratings_by_aspect_are_averaged_and_one_that_is_missing_leaves_the_answer_out() -> None:
    def rated(text: str, *ratings: str) -> dict[str, Any]:
        aspects = zip(("honesty", "truth"), ratings, strict=True)
        return {"response": text, "annotations": {a: {"Rating": r} for a, r in aspects}}

    answers = [rated("low", "1", "3"), rated("high", "5", "2"), rated("unrated", "5", "N/A")]
    result = ReadRows({"instruction": "p", "completions": answers})
    assert result.texts == [("high", "low")]
    assert result.report.rows_left_out == {'answer without a number in "annotations"': 1}


def scored(prompt: str, response: str, helpfulness: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **more}


def test_adjacent_rows_of_one_prompt_are_compared_and_those_alone_counted() -> None:
    result = ReadRows(
        scored("p", "a", 1),
        scored("p", "b", 4),
        scored("p", "c", 2),
        scored("q", "d", 3),
        scored("p", "e", 0),
        scored("r", "f", 2),
        scored("r", "g", 2),
    )
    assert (result.texts, result.locations) == ([("b", "a")], ["f:2+1"])
    assert result.report.rows_left_out == {ALONE: 2, TIE: 1}
    assert result.report.problems == []


def test_a_column_can_be_named_as_the_score() -> None:
    rows = [scored("p", "a", 1, verbosity=3), scored("p", "b", 4, verbosity=1)]
    result = ReadRows(*rows, columns={"score": "verbosity"})
    assert result.texts == [("a", "b")]
    assert result.sentence == (
        '"response" of consecutive rows, best against worst by "verbosity" (greater is better)'
    )


def test_faults_of_scored_rows_are_reported_and_those_without_a_number_counted() -> None:
    result = ReadRows(
        scored("p", "a", 1),
        scored("p", "b", "N/A"),
        scored("p", "c", 2),
        scored("p", "", 2),
        scored("p", "d", None),
    )
    assert result.texts == [("c", "a")]
    assert result.report.rows_left_out == {'answer without a number in "helpfulness"': 1}
    assert result.report.problems == [
        Problem("f:4", '"response" is empty'),
        Problem("f:5", 'column "helpfulness" is null'),
    ]


def labelled(prompt: Any, completion: Any, label: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_good_meets_bad_of_its_prompt_wherever_they_are() -> None:
    result = ReadRows(
        labelled("p", "good 1", True),
        labelled("q", "bad 1", False),
        labelled("p", "good 2", True),
        labelled("q", "good 3", True),
        labelled("p", "bad 2", False),
        labelled("r", "good 4", True),
        labelled("s", "bad 3", False),
        labelled("s", "bad 4", False),
    )
    assert result.texts == [("good 3", "bad 1"), ("good 1", "bad 2")]
    assert result.locations == ["f:4+2", "f:1+5"]
    assert result.report.rows_left_out == {
        "good answer without a bad one to the same prompt": 2,
        "bad answer without a good one to the same prompt": 2,
    }


@pytest.mark.parametrize("seed", range(20))
def test_as_many_pairs_are_made_as_each_prompt_has_of_its_rarer_label(seed: int) -> None:
    draw = random.Random(seed)
    rows = [labelled(draw.choice("pqr"), f"answer {n}", draw.random() < 0.6) for n in range(30)]
    result = ReadRows(*rows)
    counts = Counter((row["prompt"], row["label"]) for row in rows)
    rarer = sum(min(counts[p, True], counts[p, False]) for p in "pqr")
    assert len(result.pairs) == rarer
    assert result.report.rows_left_out.total() == len(rows) - 2 * rarer
    by_text = {row["completion"]: row for row in rows}
    for pair, (good, bad) in zip(result.pairs, result.texts, strict=True):
        assert (by_text[good]["label"], by_text[bad]["label"]) == (True, False)
        assert by_text[good]["prompt"] == by_text[bad]["prompt"] == pair.prompt


def test_prompts_differ_by_what_the_system_or_the_tools_say() -> None:
    rows = [
        {**labelled("p", "good", True), "system": "s"},
        labelled("p", "bad", False),
        {**labelled("q", "good", True), "tools": [{"name": "now"}]},
        labelled("q", "bad", False),
    ]
    result = ReadRows(*rows)
    assert (result.pairs, result.report.rows_left_out.total()) == ([], 4)


def test_a_complete_conversation_in_the_completion_holds_its_prompt() -> None:
    def talk(answer: str) -> list[dict[str, Any]]:
        return [user("a"), assistant("b"), user("c"), assistant(answer)]

    result = ReadRows(
        labelled("a", talk("good"), True),
        labelled("a", talk("bad"), False),
        labelled("a", talk("good")[:3], True),
    )
    (pair,) = result.pairs
    assert pair.prompt == [user("a"), assistant("b"), user("c")]
    assert (pair.chosen, pair.rejected) == (assistant("good"), assistant("bad"))
    assert result.report.problems == [
        Problem("f:3", '"completion" does not end with an answer to a prompt')
    ]


def test_labels_in_text_are_read_as_csv_writes_them() -> None:
    result = ReadRows(
        labelled("p", "good", "True"),
        labelled("p", "bad", "false"),
        labelled("p", "worse", "perhaps"),
    )
    assert result.texts == [("good", "bad")]
    assert result.report.problems == [
        Problem("f:3", "\"label\" must be true or false (or 1 or 0), found 'perhaps'")
    ]


def test_labels_of_1_and_0_are_read_and_that_is_logged() -> None:
    result = ReadRows(labelled("p", "good", 1), labelled("p", "bad", 0), labelled("p", "worse", 2))
    assert result.texts == [("good", "bad")]
    assert result.sentence == (
        'unpaired, "completion" with "label" true or 1 against false or 0 of the same prompt'
    )
    assert result.report.problems == [
        Problem("f:3", '"label" must be true or false (or 1 or 0), found 2')
    ]


def test_good_and_bad_answers_that_are_the_same_are_counted() -> None:
    result = ReadRows(labelled("p", "so", True), labelled("p", "so", False))
    assert (result.pairs, result.report.rows_left_out) == ([], {SAME: 1})


def either(verdict: Any, column: str, names: tuple[str, str], **more: Any) -> dict[str, Any]:
    first, second = names
    return {"prompt": "p", first: "x", second: "y", column: verdict, **more}


@pytest.mark.parametrize(
    ("column", "names", "first", "second", "ties"),
    [
        ("labels", ("human_ref_A", "human_ref_B"), [1, "1"], [0, "0"], []),
        ("overall_preference", ("response1", "response2"), [-3, -1, "-2"], [1, 3, "2"], [0, "0"]),
        ("better_response_id", ("response_0", "response_1"), [0], [1], []),
        ("preference", ("output_1", "output_2"), [1, "1", "output_1"], [2, "2"], ["tie"]),
        (
            "winner",
            ("response_a", "response_b"),
            ["a", "A", "model_a", "response_a"],
            ["b", "B", "model_b"],
            ["tie", "tie (bothbad)"],
        ),
    ],
)
def test_a_verdict_names_the_better_of_two(
    column: str, names: tuple[str, str], first: list[Any], second: list[Any], ties: list[Any]
) -> None:
    result = ReadRows(*(either(verdict, column, names) for verdict in (*first, *second, *ties)))
    assert result.texts == [("x", "y")] * len(first) + [("y", "x")] * len(second)
    assert result.report.rows_left_out == Counter({TIE: len(ties)} if ties else {})
    assert result.report.problems == []


def test_verdicts_that_say_nothing_are_faults() -> None:
    names = ("human_ref_A", "human_ref_B")
    result = ReadRows(*(either(verdict, "labels", names) for verdict in (1, 2, "yes", None)))
    assert result.report.problems == [
        Problem("f:2", '"labels" must be 0 or 1, found 2'),
        Problem("f:3", "\"labels\" must be 0 or 1, found 'yes'"),
        Problem(
            "f:4",
            'column "labels" is null',
        ),
    ]
    result = ReadRows(*(either(v, "winner", ("answer_a", "answer_b")) for v in ("a", "c")))
    assert result.report.problems == [
        Problem(
            "f:2",
            "\"winner\" names no answer: 'c' (allowed: a, b, 1, 2, model_a, model_b, "
            '"answer_a", "answer_b", tie)',
        )
    ]


def test_a_verdict_weaker_than_the_margin_is_counted() -> None:
    names = ("response1", "response2")
    rows = [either(v, "overall_preference", names) for v in (-1, 2, 0, -3)]
    result = ReadRows(*rows, min_margin=2)
    assert result.texts == [("y", "x"), ("x", "y")]
    assert result.report.rows_left_out == {APART: 1, TIE: 1}
