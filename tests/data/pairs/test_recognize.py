"""The format of rows, decided from columns and values, and logged."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.pairs.format_names import FORMAT_NAMES
from orpo_mlx.data.pairs.load import Reading, iter_pairs, read_row, recognize
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row, find_sources
from tests.data.pairs.recognized import PAIR, TALK, TURNS, pair_texts, read, rows, sentence
from tests.data.row_files import write_rows
from tests.data.rows import assistant, system, user


def test_a_text_prompt_next_to_complete_conversations_is_a_copy() -> None:
    (pair,) = read({**TALK, "prompt": "as it was asked"})
    assert pair_texts(pair) == ([user("p")], "good", "bad")
    assert pair.labels == {}


def test_a_prompt_that_the_conversations_repeat_is_stripped_from_them() -> None:
    (pair,) = read({**TALK, "prompt": [user("p")]})
    assert pair_texts(pair) == ([user("p")], "good", "bad")


def test_texts_in_turns_are_conversations_even_next_to_a_prompt() -> None:
    expected = ([user("p")], "good", "bad")
    assert [pair_texts(pair) for pair in read(TURNS, {**TURNS})] == [expected] * 2
    assert [pair_texts(pair) for pair in read({**TURNS, "prompt": "\n\nHuman: p"})] == [expected]


def test_an_opening_for_an_answer_at_a_prompts_end_is_not_a_message() -> None:
    asked = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    (pair,) = read({**PAIR, "prompt": asked})
    assert pair_texts(pair) == ([user("a"), assistant("b"), user("c")], "good", "bad")
    (pair,) = read({**PAIR, "prompt": f"{asked} Well"})
    assert pair.prompt == [user("a"), assistant("b"), user("c"), assistant("Well")]


def test_answers_that_all_repeat_the_prompt_lose_it() -> None:
    whole = {"prompt": "The sky is", "chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert [pair_texts(pair) for pair in read(whole)] == [("The sky is", "blue.", "green.")]
    assert sentence(whole) == "texts, explicit prompt; answers without the prompt that they repeat"


def test_one_row_that_does_not_repeat_its_prompt_leaves_all_as_they_are() -> None:
    repeated = {"prompt": "2+2", "chosen": "2+2=4", "rejected": "2+2=5"}
    assert [pair_texts(pair) for pair in read(repeated, PAIR)] == [
        ("2+2", "2+2=4", "2+2=5"),
        ("p", "good", "bad"),
    ]


def test_a_row_past_those_looked_at_that_does_not_repeat_its_prompt_is_counted() -> None:
    row_format = recognize(
        rows({"prompt": "a", "chosen": "a b", "rejected": "a c"}), Reading(), "f"
    )
    report = ReadReport()
    assert read_row(Row("f:1001", PAIR), row_format, report) == []
    assert report.rows_left_out == {
        "pair whose answers do not repeat the prompt, as the others do": 1
    }
    assert report.problems == []


def test_a_pair_wins_over_scored_answers_next_to_it_and_that_is_logged() -> None:
    scored = {**PAIR, "completions": ["good", "bad", "worse"], "scores": [1, 2, 3]}
    assert [pair_texts(pair) for pair in read(scored)] == [("p", "good", "bad")]
    assert sentence(scored) == 'texts, explicit prompt; the scores in "scores" are not used'
    assert [pair_texts(pair) for pair in read(scored, format="ranked")] == [("p", "worse", "good")]


def test_bool_labels_are_kto_and_int_labels_with_two_texts_are_a_verdict() -> None:
    kto = recognize(rows({"prompt": "p", "completion": "good", "label": True}), Reading(), "f")
    either = {"history": "p", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0}
    assert (kto.name, kto.grouped) == ("kto", True)
    assert [pair_texts(pair) for pair in read(either)] == [("p", "good", "bad")]


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\np<|eot_id|>",
        "<s>[INST] p [/INST]",
        "<bos><start_of_turn>user\np<end_of_turn>\n<start_of_turn>model\n",
        "<|system|>\n</s>\n<|user|>\np</s>\n<|assistant|>\n",
        "<|user|>\np<|end|>\n<|assistant|>\n",
    ],
)
def test_a_prompt_that_begins_as_a_templates_does_is_used_as_it_is(prompt: str) -> None:
    (pair,) = read({**PAIR, "prompt": prompt})
    assert (pair.raw, *pair_texts(pair)) == (True, prompt, "good", "bad")
    (plain,) = read({**PAIR, "prompt": prompt}, format="prompt")
    assert not plain.raw


def test_a_prompt_about_a_templates_markers_is_a_plain_prompt() -> None:
    (pair,) = read({**PAIR, "prompt": "What does <|im_start|> mean?"})
    assert not pair.raw


def test_rendered_conversations_are_parted_where_their_last_answer_opens() -> None:
    start = "<|start_header_id|>user<|end_header_id|>\n\np<|eot_id|>" + (
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    (pair,) = read({"chosen": f"{start}good<|eot_id|>", "rejected": f"{start}gone<|eot_id|>"})
    assert (pair.raw, *pair_texts(pair)) == (True, start, "good<|eot_id|>", "gone<|eot_id|>")


def test_columns_next_to_rendered_texts_are_not_said_to_be_used() -> None:
    prompt = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"
    tools = [{"type": "function", "function": {"name": "find"}}]
    row = {**PAIR, "prompt": prompt, "system": "Be brief.", "tools": tools, "history": [["a", "b"]]}
    assert pair_texts(read(row)[0])[0] == prompt
    assert sentence(row) == (
        'texts with a template\'s markers, used as they are; "system" is not used; "tools" is not '
        'used; "history" is not used'
    )


def test_a_column_that_often_is_of_the_prompt_and_is_not_used_is_logged() -> None:
    row = {"context": "c" * 300, "question": "p", "chosen": "good", "rejected": "bad"}
    assert sentence(row) == (
        'texts, explicit prompt; the prompt is "question"; "context" is not used'
    )


@pytest.mark.parametrize("history", ["h", [["a", "b"]], {"messages": [user("h")]}, {"a": "b"}])
def test_a_history_of_whatever_form_that_is_not_read_is_logged(history: Any) -> None:
    row = {**PAIR, "question": "p", "history": history}
    del row["prompt"]
    assert sentence(row) == (
        'texts, explicit prompt; the prompt is "question"; "history" is not used'
    )


def test_conversations_that_the_assistant_opens_have_an_implicit_prompt() -> None:
    start = [assistant("hello"), user("p")]
    row = {"chosen": [*start, assistant("good")], "rejected": [*start, assistant("bad")]}
    assert [pair_texts(pair) for pair in read(row)] == [(start, "good", "bad")]


@pytest.mark.parametrize("forced", ["prompt", "orca", "alpaca", "sharegpt"])
def test_any_name_of_a_prompt_next_to_two_answers_may_be_forced(forced: str) -> None:
    row = {"question": "p", "chosen": "good", "rejected": "bad"}
    assert [pair_texts(pair) for pair in read(row, format=forced)] == [("p", "good", "bad")]


def test_tools_that_only_a_later_row_has_are_read() -> None:
    row_format = recognize(rows(PAIR), Reading(), "f")
    tool = {"function": {"name": "now"}}
    (pair,) = read_row(Row("f:9", {**PAIR, "tools": [tool]}), row_format, ReadReport())
    assert pair.tools == [tool]
    (pair,) = read_row(Row("f:9", {**PAIR, "system": "s"}), row_format, ReadReport())
    assert pair.prompt == [system("s"), user("p")]


def test_a_row_format_is_pickled_as_it_is() -> None:
    values = [PAIR, TALK, TURNS]
    for value in values:
        row_format = recognize(rows(value), Reading(columns={}), "f")
        assert pickle.loads(pickle.dumps(row_format)) == row_format
        assert row_format.name in FORMAT_NAMES


def test_what_a_source_is_read_as_is_logged_first(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [TALK])
    (source,) = find_sources([str(file)], splits=["train"])
    messages: list[str] = []
    assert len(list(iter_pairs(source, Reading(), ReadReport(), messages.append))) == 1
    assert messages == [f"{file}: read as: conversational, implicit prompt."]
