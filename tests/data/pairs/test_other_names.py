"""Rows of other tools, by the names that they give their columns."""

from typing import Any

import pytest

from tests.data.pairs.recognized import ReadRows, pair_texts, read, refusal, sentence
from tests.data.rows import assistant, system, user

ASKED, MORE = [user("p")], [system("s"), user("a"), assistant("b"), user("p")]
GOOD, BAD = assistant("good"), assistant("bad")
Row = dict[str, Any]


@pytest.mark.parametrize("prompt", [ASKED, MORE])
@pytest.mark.parametrize("rejected", ["bad", BAD, [BAD], {"messages": [BAD]}])
@pytest.mark.parametrize("column", ["rejected_response", "rejected_messages"])
def test_an_answer_alone_replaces_the_last_of_a_conversation(
    prompt: list[Row], rejected: Any, column: str
) -> None:
    row = {"messages": [*prompt, GOOD], column: rejected}
    (pair,) = read(row)
    assert pair_texts(pair) == (prompt, "good", "bad")
    columns = {"chosen": "messages", "rejected": column}
    assert read(row, columns=columns) == [pair]
    assert read(row, columns=columns | {"prompt": "messages"}) == [pair]
    assert read({"conversations": row["messages"], "rejected_response": rejected}) == [pair]
    mirrored = {"chosen": GOOD, "rejected": [*prompt, BAD]}
    assert pair_texts(read(mirrored)[0]) == (prompt, "good", "bad")


@pytest.mark.parametrize(
    "names",
    [
        ("chosen_messages", "rejected_messages"),
        ("messages", "rejected_messages"),
        ("preferred_output", "non_preferred_output"),
    ],
)
def test_two_conversations_are_read_by_their_names(names: tuple[str, str]) -> None:
    answers = ([*MORE, GOOD], [*MORE, BAD])
    row = dict(zip(names, answers, strict=True))
    assert [pair_texts(pair) for pair in read(row)] == [(MORE, "good", "bad")]
    mapped = dict(zip(("chosen", "rejected"), names, strict=True))
    assert read(row, columns=mapped) == read(row)
    spoken = {
        name: [{"from": m["role"], "value": m["content"]} for m in own] for name, own in row.items()
    }
    assert read(spoken) == read(row)
    parts = {
        name: [{**m, "content": [{"type": "text", "value": m["content"]}]} for m in own]
        for name, own in row.items()
    }
    assert read(parts) == read(row)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "p", "accepted": "good", "rejected": "bad"}, "p"),
        ({"query": "p", "response": "good", "rejected_response": "bad"}, "p"),
        (
            {"query": "p", "response": "good", "rejected_response": "bad", "history": [["a", "b"]]},
            [user("a"), assistant("b"), user("p")],
        ),
        (
            {"system": "s", "query": "p", "response": "good", "rejected_response": "bad"},
            [system("s"), user("p")],
        ),
        (
            {
                "input": {"messages": MORE},
                "preferred_output": [GOOD],
                "non_preferred_output": [BAD],
            },
            MORE,
        ),
        ({"input": ASKED, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, ASKED),
        ({"messages": ASKED, "chosen": GOOD, "rejected": BAD}, ASKED),
        ({"prompt": "p", "chosen_messages": [GOOD], "rejected_messages": [BAD]}, "p"),
    ],
)
def test_a_prompt_and_two_answers_are_read_by_their_names(row: Row, prompt: Any) -> None:
    assert [pair_texts(pair) for pair in read(row)] == [(prompt, "good", "bad")]


def test_usual_names_go_before_others() -> None:
    row = {
        "prompt": "p",
        "chosen": "good",
        "rejected": "bad",
        "response": "x",
        "rejected_response": "y",
        "accepted": "z",
    }
    assert [pair_texts(pair) for pair in read(row)] == [("p", "good", "bad")]
    assert sentence(row) == "texts, explicit prompt"


def test_a_conversation_without_a_last_answer_is_a_fault() -> None:
    row = {"messages": [*ASKED, GOOD], "rejected_response": "bad"}
    result = ReadRows(row, row, row | {"messages": MORE}, row | {"rejected_response": ""})
    assert [problem.fault for problem in result.report.problems] == [
        '"messages" does not end with an answer to a prompt',
        '"rejected_response" is empty',
    ]


def test_a_column_that_no_row_has_is_to_be_named() -> None:
    row = {"prompt": "p", "good": "good", "rejected": "bad"}
    assert refusal(row, row) == (
        'f: no column "chosen" in any row (columns: prompt, good, rejected): name it with '
        "--columns chosen=NAME."
    )
    assert [pair_texts(pair) for pair in read(row, columns={"chosen": "good"})] == [
        ("p", "good", "bad")
    ]
