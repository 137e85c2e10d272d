"""Rows that are refused, or read by columns named by hand: unknown and mixed formats, bad rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import Reading, load_pairs, read_row, recognize
from orpo_mlx.data.reading.report import Problem, ReadReport
from orpo_mlx.data.reading.sources import Row
from orpo_mlx.errors import OrpoError
from tests.data.pairs.recognized import (
    PAIR,
    TALK,
    TURNS,
    ReadRows,
    pair_texts,
    read,
    refusal,
    rows,
    sentence,
)
from tests.data.row_files import write_rows
from tests.data.rows import system, user


def test_a_list_prompt_that_the_conversations_do_not_repeat_is_a_fault() -> None:
    result = ReadRows({**TALK, "prompt": [user("p")]}, {**TALK, "prompt": [system("s"), user("p")]})
    assert result.report.problems == [
        Problem("f:2", '"chosen" and "rejected" do not begin with "prompt"'),
    ]


BLANK = ["<think> </think>", "<think>\n\n</think>\n\n", " </think>\n", "<think>"]


@pytest.mark.parametrize("blank", BLANK)
def test_an_answer_of_a_thought_without_a_word_is_empty(blank: str) -> None:
    marked = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"
    spoken = {"role": "assistant", "content": [{"type": "text", "text": blank}]}
    turns = {**TURNS, "rejected": f"\n\nHuman: p\n\nAssistant: {blank}"}
    for values, fault in (
        ({**PAIR, "rejected": blank}, '"rejected" is empty'),
        ({**PAIR, "prompt": marked, "rejected": blank}, '"rejected" is empty'),
        ({**PAIR, "rejected": [spoken]}, '"rejected[0]" is an empty answer'),
        (turns, '"rejected[1]" is an empty answer'),
    ):
        good = {name: value for name, value in values.items() if name != "rejected"}
        result = ReadRows({**good, "rejected": values["chosen"].replace("good", "bad")}, values)
        assert result.report.problems == [Problem("f:2", fault)]
    for text in (f"{blank}good", f"good{blank}", "<think>why</think>"):
        read({**PAIR, "chosen": text})
    read({**PAIR, "prompt": blank})  # what is asked about


def test_a_row_without_markers_among_rendered_ones_is_bad() -> None:
    rendered = {**PAIR, "prompt": "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"}
    result = ReadRows(rendered, rendered, PAIR)
    assert (len(result.pairs), result.report.rows_left_out) == (2, {})
    assert result.report.problems == [Problem("f:3", "row of another format (prompt)")]


def test_every_row_of_another_format_is_a_bad_row() -> None:
    other = {"prompt": "p", "completion": "good", "label": True}
    values = [PAIR, PAIR, TALK, PAIR, PAIR, PAIR, other, other, TALK]
    result = ReadRows(*values)
    assert (len(result.pairs), result.report.rows_left_out) == (5, {})
    assert result.report.problems == [
        Problem(f"f:{line}", f"row of another format ({row_format})")
        for line, row_format in ((3, "implicit"), (7, "kto"), (8, "kto"), (9, "implicit"))
    ]
    assert sentence(*values) == "texts, explicit prompt"


def test_rows_of_the_same_format_with_other_columns_are_bad_too() -> None:
    other = {"prompt": "p", "chosen_response": "good", "rejected_response": "bad"}
    result = ReadRows(PAIR, PAIR, other)
    assert (len(result.pairs), result.report.rows_left_out) == (2, {})
    columns = "columns chosen_response, rejected_response, prompt"
    assert result.report.problems == [Problem("f:3", f"row of another format ({columns})")]


def test_two_formats_of_which_none_has_most_rows_are_refused() -> None:
    assert refusal(PAIR, TALK) == (
        "f: the rows have several formats, none of them in the majority: 1 row as prompt (chosen, "
        "rejected, prompt); 1 row as implicit (chosen, rejected). Choose with --format prompt, or "
        "put them into separate files."
    )
    result = ReadRows(PAIR, TALK, format="implicit")
    assert [pair_texts(pair) for pair in result.pairs] == [([user("p")], "good", "bad")]
    assert result.report.problems == [Problem("f:1", "row of another format (prompt)")]


def test_nulls_and_wrong_types_are_faults_of_their_row() -> None:
    result = ReadRows(
        TALK,
        TALK,
        {"chosen": None, "rejected": TALK["rejected"]},
        {"chosen": TALK["chosen"]},
        {"chosen": 7, "rejected": TALK["rejected"]},
    )
    assert len(result.pairs) == 2
    assert result.report.rows_left_out == {}
    assert result.report.problems == [
        Problem("f:3", 'column "chosen" is null'),
        Problem("f:4", 'column "rejected" is missing (found: chosen)'),
        Problem("f:5", '"chosen" must be text or a list of messages, found int'),
    ]


def test_texts_without_a_prompt_ask_for_one() -> None:
    assert refusal({"chosen": "good", "rejected": "bad", "topic": "x"}) == (
        "f: chosen and rejected have no prompt, and hold no turns: name the prompt's "
        "column with --columns prompt=NAME (columns: chosen, rejected, topic)."
    )


def test_unknown_rows_are_refused_with_their_columns() -> None:
    assert refusal({"text": "a"}, {"text": "b", "id": 1}) == (
        "f: no known row format (columns: text, id). Name them with --columns "
        "prompt=NAME,chosen=NAME,rejected=NAME; docs/data.md shows every row format."
    )


def test_columns_are_named_by_hand() -> None:
    row = {"q": "p", "better": "good", "worse": "bad", "prompt": "another", "from": "de"}
    columns = {"prompt": "q", "chosen": "better", "rejected": "worse", "system": "from"}
    (pair,) = read(row, columns=columns)
    assert pair_texts(pair) == ([system("de"), user("p")], "good", "bad")
    assert pair.labels == {"prompt": "another"}
    assert sentence(row, columns=columns) == (
        'texts, explicit prompt; the prompt is "q"; system message in "from"'
    )
    result = ReadRows(row, {"q": "p", "better": "good"}, columns=columns)
    assert result.report.problems == [
        Problem("f:2", 'column "worse" is missing (found: q, better)'),
    ]


def test_mapped_columns_that_are_not_there_are_reported_with_those_that_are() -> None:
    assert refusal(PAIR, columns={"prompt": "question", "answer": "chosen"}) == (
        "--columns answer=chosen: answer is not a column role (allowed: prompt, "
        "chosen, rejected, system, tools, input, history, completion, label, score, answers, "
        "scores, first, second, verdict, weight).\n"
        '--columns prompt=question: f has no column "question" (found: prompt, chosen, rejected).'
    )


def test_two_columns_that_could_be_the_prompt_ask_for_a_choice() -> None:
    row = {"question": "p", "query": "q", "chosen": "good", "rejected": "bad"}
    assert refusal(row) == (
        'f: "question" and "query" could each be the prompt: name one with --columns '
        "prompt=question."
    )
    assert [pair_texts(pair) for pair in read(row, columns={"prompt": "query"})] == [
        ("q", "good", "bad")
    ]


def test_a_verdict_next_to_a_list_of_scores_asks_for_a_format() -> None:
    row = {
        "prompt": "p",
        "response_a": "good",
        "response_b": "bad",
        "winner": "a",
        "responses": ["good", "bad"],
        "scores": [1, 2],
    }
    assert refusal(row) == "f: the rows can be read as ab and as ranked: choose with --format ab."
    assert [pair_texts(pair) for pair in read(row, format="ab")] == [("p", "good", "bad")]
    assert [pair_texts(pair) for pair in read(row, format="ranked")] == [("p", "bad", "good")]


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_lists_written_as_text_are_refused(write: Callable[[Any], str]) -> None:
    assert refusal({"prompt": "p", **{name: write(value) for name, value in TALK.items()}}) == (
        'f: "chosen", "rejected" hold lists of messages written as text. Save them as lists, in '
        "JSON Lines or Parquet."
    )


def test_bad_rows_only_are_reported_one_by_one_and_later_ones_too() -> None:
    bad = {"prompt": "p", "chosen": "good"}
    row_format = recognize(rows(bad), Reading(), "f")
    report = ReadReport()
    for row in rows(bad, {**PAIR, "chosen": ""}):
        assert read_row(row, row_format, report) == []
    assert report.problems == [
        Problem("f:1", 'column "rejected" is missing (found: prompt, chosen)'),
        Problem("f:2", '"chosen" is empty'),
    ]


def test_a_forced_format_that_no_row_has_is_refused() -> None:
    assert refusal(PAIR, format="kto") == (
        "f: no row can be read as --format kto (columns: prompt, chosen, rejected)."
    )
    assert refusal(PAIR, format="dpo") == (
        "--format dpo: no such row format (allowed: prompt, implicit, hh, orca, alpaca, sharegpt, "
        "ab, ranked, scored, kto, rendered)."
    )


def test_options_for_scores_are_refused_where_there_are_none() -> None:
    assert refusal(PAIR, min_margin=1.0, higher_is_better=True) == (
        "f: --min-margin and --higher-is-better are for scored answers; the row format is prompt."
    )


@pytest.mark.parametrize("column", ["images", "audio"])
def test_images_and_sound_are_refused_by_name(column: str) -> None:
    assert refusal(PAIR, {**PAIR, column: ["x.png"]}) == (
        f'f: "{column}" hold images or sound, which are not read (f:2).'
    )
    (pair,) = read({**PAIR, column: []})
    assert pair_texts(pair) == ("p", "good", "bad")
    row_format = recognize(rows(PAIR), Reading(), "f")
    report = ReadReport()
    late = Row("f:9", {**PAIR, column: "x.png"})
    assert read_row(late, row_format, report) == []
    assert report.problems == [
        Problem("f:9", f'"{column}" holds images or sound, which are not read')
    ]


def test_two_different_system_messages_are_a_fault() -> None:
    row = {**PAIR, "prompt": [system("s"), user("p")], "system": "s"}
    (pair,) = read(row)
    assert pair.prompt == [system("s"), user("p")]
    assert ReadRows({**row, "system": "t"}).report.problems == [
        Problem("f:1", '"system" and the conversation have a system message each'),
    ]


def test_bad_rows_are_dropped_and_counted_if_that_is_asked(tmp_path: Path) -> None:
    bad = [{**PAIR, "chosen": ""}, {"prompt": "p"}, {**PAIR, "chosen": 7, "rejected": None}, TALK]
    file = write_rows(tmp_path / "a.jsonl", [PAIR, PAIR, *bad, {**PAIR, "chosen": " "}])
    messages: list[str] = []
    pairs = load_pairs(file, drop_bad=True, log=messages.append)
    assert [pair.location for pair in pairs] == [f"{file}:1", f"{file}:2"]
    assert messages[1:] == [
        'left out: 2 x bad row: "chosen" is empty',
        "left out: 1 x bad row: row of another format",
        'left out: 1 x bad row: column "rejected" is null',
        'left out: 1 x bad row: column "chosen" and "rejected" are missing',
    ]


def test_sources_of_unknown_format_and_bad_rows_are_reported_in_one_error(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [{"text": "x"}])
    second = write_rows(tmp_path / "b.jsonl", [PAIR, {**PAIR, "chosen": None}])
    with pytest.raises(OrpoError) as error:
        load_pairs([first, second])
    unknown, heading, bad, _ = str(error.value).split("\n")
    assert unknown.startswith(f"{first}: no known row format (columns: text).")
    assert heading == "1 bad line in the data:"
    assert bad == f'  {second}:2: column "chosen" is null'
