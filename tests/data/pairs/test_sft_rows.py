"""Rows of a prompt and one answer: which columns are read as what, and what is refused."""

from typing import Any

import pytest

from tests.data.pairs.recognized import PAIR, ReadRows, read, refusal, sentence
from tests.data.rows import assistant, system, user

TALK = [system("be kind"), user("q"), assistant("r")]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]


@pytest.mark.parametrize(
    ("row", "prompt", "text"),
    [
        ({"prompt": "q", "chosen": "r"}, "q", '"chosen" is learned'),
        ({"prompt": "q", "completion": "r"}, "q", '"completion" is learned'),
        ({"prompt": [user("q")], "completion": [assistant("r")]}, [user("q")],
         '"completion" is learned'),
        ({"prompt": "q", "response": "r"}, "q", '"response" is learned'),
        ({"question": "q", "answer": "r"}, "q", '"answer" is learned; the prompt is "question"'),
        ({"instruction": "a", "input": "b", "output": "r"}, "a\nb",
         '"output" is learned; the prompt is "instruction" and "input"'),
        ({"messages": TALK}, TALK[:2], 'the last answer of "messages" is learned'),
        ({"messages": TALK[1:], "system": "be kind"}, TALK[:2],
         'the last answer of "messages" is learned; system message in "system"'),
        ({"conversations": SHAREGPT}, [user("q")],
         'the last answer of "conversations" is learned'),
        ({"chosen": TALK, "rejected": TALK[:2], "prompt": "q"}, TALK[:2],
         'the last answer of "chosen" is learned; "rejected" is not used; "prompt" repeats the '
         "prompt"),
        ({"prompt": "q", "chosen": "r", "rejected": "s"}, "q",
         '"chosen" is learned; "rejected" is not used'),
        ({"chosen": "\n\nHuman: q\n\nAssistant: r"}, [user("q")],
         'the last answer of "chosen" is learned'),
    ],
)  # fmt: skip
def test_a_prompt_and_an_answer_are_read_from_the_usual_columns(
    row: dict[str, Any], prompt: Any, text: str
) -> None:
    assert sentence(row, sft=True) == f"SFT rows, {text}"
    (pair,) = read(row, sft=True)
    assert (pair.prompt, pair.responses, pair.is_sft) == (prompt, (assistant("r"),), True)


def test_columns_named_for_pairs_count_where_the_source_has_them() -> None:
    named = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    (pair,) = read({"q": "a", "good": "b"}, sft=True, columns=named)
    assert (pair.prompt, pair.chosen["content"]) == ("a", "b")
    (pair,) = read({"prompt": "a", "completion": "b"}, sft=True, columns=named)
    assert (pair.prompt, pair.chosen["content"]) == ("a", "b")


def test_options_on_scores_and_formats_of_pairs_do_not_concern_them() -> None:
    given = {"format": "ranked", "min_margin": 1.0, "higher_is_better": True}
    (pair,) = read({"prompt": "q", "chosen": "r", "weight": 2}, sft=True, **given)
    assert (pair.is_sft, pair.weight) == (True, 2.0)


def test_messages_after_the_first_answer_are_counted() -> None:
    (pair,) = read({"prompt": "q", "chosen": [assistant("r"), user("more")]}, sft=True)
    assert (pair.chosen, pair.extra_messages) == (assistant("r"), 1)


def test_a_row_without_an_answer_is_a_fault_and_so_is_a_source_without_any() -> None:
    rows = [{"prompt": "q", "chosen": "r"}, {"prompt": "q", "chosen": None}, {"prompt": "q"}]
    result = ReadRows(*rows, {"prompt": "", "chosen": "r"}, sft=True)
    assert len(result.pairs) == 1
    assert list(map(str, result.report.problems)) == [
        'f:2: column "chosen" is null',
        'f:3: column "chosen" is missing (found: prompt)',
        'f:4: "prompt" is empty',
    ]
    unanswered = ReadRows({"messages": [user("q")]}, sft=True)
    assert list(map(str, unanswered.report.problems)) == [
        'f:1: "messages" does not end with an answer to a prompt'
    ]
    assert refusal({"text": "abc"}, sft=True) == (
        "f: no prompt with an answer (columns: text). Name its columns with --columns "
        "prompt=NAME,chosen=NAME; docs/data.md shows what --sft-data reads."
    )


def test_two_columns_that_could_be_the_prompt_are_ambiguous() -> None:
    assert refusal({"question": "a", "query": "b", "response": "c"}, sft=True) == (
        'f: "question" and "query" could each be the prompt: name one with --columns '
        "prompt=question."
    )


def test_pairs_are_read_as_before() -> None:
    (pair,) = read(PAIR)
    assert (pair.is_sft, len(pair.responses)) == (False, 2)
