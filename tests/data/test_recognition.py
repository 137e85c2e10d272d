"""The shape of rows, decided from columns and values, told, forced, or refused."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.formats import (
    PreferencePair,
    Reading,
    iter_pairs,
    load_pairs,
    read_row,
    recognise,
)
from orpo_mlx.data.shapes import SHAPES
from orpo_mlx.data.sources import Problem, Row, find_sources
from orpo_mlx.errors import OrpoError
from tests.data.rows import assistant, system, user
from tests.data.written import write_rows

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
TURNS = {
    "chosen": "\n\nHuman: p\n\nAssistant: good", "rejected": "\n\nHuman: p\n\nAssistant: bad",
}  # fmt: skip
TALK = {"chosen": [user("p"), assistant("good")], "rejected": [user("p"), assistant("bad")]}


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"f:{number}", row) for number, row in enumerate(values, start=1)]


def sentence(*values: dict[str, Any], **reading: Any) -> str:
    return recognise(rows(*values), Reading(**reading), "f").sentence


def refusal(*values: dict[str, Any], **reading: Any) -> str:
    with pytest.raises(OrpoError) as error:
        recognise(rows(*values), Reading(**reading), "f")
    return str(error.value)


class Found:
    """All that becomes of rows."""

    def __init__(self, *values: dict[str, Any], **reading: Any):
        self.problems: list[Problem] = []
        self.drops: Counter[str] = Counter()
        shape = recognise(rows(*values), Reading(**reading), "f")
        self.pairs = [
            pair for row in rows(*values)
            for pair in read_row(row, shape, self.problems, self.drops)
        ]  # fmt: skip


def read(*values: dict[str, Any], **reading: Any) -> list[PreferencePair]:
    found = Found(*values, **reading)
    assert (found.problems, found.drops) == ([], {})
    return found.pairs


def said(pair: PreferencePair) -> tuple[Any, str, str]:
    return pair.prompt, pair.chosen["content"], pair.rejected["content"]


def test_a_text_prompt_beside_whole_conversations_is_a_copy() -> None:
    (pair,) = read({**TALK, "prompt": "as it was asked"})
    assert said(pair) == ([user("p")], "good", "bad")
    assert pair.labels == {}


def test_a_prompt_that_the_conversations_repeat_is_stripped_from_them() -> None:
    (pair,) = read({**TALK, "prompt": [user("p")]})
    assert said(pair) == ([user("p")], "good", "bad")


def test_a_list_prompt_that_the_conversations_do_not_repeat_is_a_fault() -> None:
    found = Found({**TALK, "prompt": [user("p")]}, {**TALK, "prompt": [system("s"), user("p")]})
    assert found.problems == [
        Problem("f:2", '"chosen" and "rejected" do not begin with "prompt"'),
    ]


def test_texts_in_turns_are_conversations_even_beside_a_prompt() -> None:
    expected = ([user("p")], "good", "bad")
    assert [said(pair) for pair in read(TURNS, {**TURNS})] == [expected] * 2
    assert [said(pair) for pair in read({**TURNS, "prompt": "\n\nHuman: p"})] == [expected]


def test_an_opening_for_an_answer_at_a_prompts_end_is_no_message() -> None:
    asked = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    (pair,) = read({**PAIR, "prompt": asked})
    assert said(pair) == ([user("a"), assistant("b"), user("c")], "good", "bad")
    (pair,) = read({**PAIR, "prompt": f"{asked} Well"})
    assert pair.prompt == [user("a"), assistant("b"), user("c"), assistant("Well")]


def test_answers_that_all_repeat_the_prompt_lose_it() -> None:
    whole = {"prompt": "The sky is", "chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert [said(pair) for pair in read(whole)] == [("The sky is", "blue.", "green.")]
    assert sentence(whole) == "texts, explicit prompt; answers without the prompt that they repeat"


def test_one_row_that_does_not_repeat_its_prompt_leaves_all_as_they_are() -> None:
    repeated = {"prompt": "2+2", "chosen": "2+2=4", "rejected": "2+2=5"}
    assert [said(pair) for pair in read(repeated, PAIR)] == [
        ("2+2", "2+2=4", "2+2=5"), ("p", "good", "bad"),
    ]  # fmt: skip


def test_a_row_past_those_looked_at_that_does_not_repeat_its_prompt_is_counted() -> None:
    shape = recognise(rows({"prompt": "a", "chosen": "a b", "rejected": "a c"}), Reading(), "f")
    problems: list[Problem] = []
    drops: Counter[str] = Counter()
    assert read_row(Row("f:1001", PAIR), shape, problems, drops) == []
    assert drops == {"pair whose answers do not repeat the prompt, as the others do": 1}
    assert problems == []


def test_a_pair_wins_over_scored_answers_beside_it_and_that_is_told() -> None:
    beside = {**PAIR, "completions": ["good", "bad", "worse"], "scores": [1, 2, 3]}
    assert [said(pair) for pair in read(beside)] == [("p", "good", "bad")]
    assert sentence(beside) == 'texts, explicit prompt; the scores in "scores" are not used'
    assert [said(pair) for pair in read(beside, format="ranked")] == [("p", "worse", "good")]


def test_bool_labels_are_kto_and_int_labels_with_two_texts_are_a_verdict() -> None:
    kto = recognise(
        rows({"prompt": "p", "completion": "good", "label": True}), Reading(), "f"
    )  # fmt: skip
    either = {"history": "p", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0}
    assert (kto.name, kto.grouped) == ("kto", True)
    assert [said(pair) for pair in read(either)] == [("p", "good", "bad")]


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
def test_a_prompt_that_begins_as_a_templates_does_is_taken_as_it_stands(prompt: str) -> None:
    (pair,) = read({**PAIR, "prompt": prompt})
    assert (pair.raw, *said(pair)) == (True, prompt, "good", "bad")
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
    assert (pair.raw, *said(pair)) == (True, start, "good<|eot_id|>", "gone<|eot_id|>")


def test_a_row_without_markers_among_rendered_ones_is_bad() -> None:
    rendered = {**PAIR, "prompt": "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"}
    found = Found(rendered, rendered, PAIR)
    assert (len(found.pairs), found.drops) == (2, {})
    assert found.problems == [Problem("f:3", "row of another shape (prompt)")]


def test_every_row_of_another_shape_is_a_bad_row() -> None:
    other = {"prompt": "p", "completion": "good", "label": True}
    values = [PAIR, PAIR, TALK, PAIR, PAIR, PAIR, other, other, TALK]
    found = Found(*values)
    assert (len(found.pairs), found.drops) == (5, {})
    assert found.problems == [
        Problem(f"f:{line}", f"row of another shape ({shape})")
        for line, shape in ((3, "implicit"), (7, "kto"), (8, "kto"), (9, "implicit"))
    ]
    assert sentence(*values) == "texts, explicit prompt"


def test_rows_of_the_same_shape_with_other_columns_are_bad_too() -> None:
    other = {"prompt": "p", "chosen_response": "good", "rejected_response": "bad"}
    found = Found(PAIR, PAIR, other)
    assert (len(found.pairs), found.drops) == (2, {})
    columns = "columns chosen_response, rejected_response, prompt"
    assert found.problems == [Problem("f:3", f"row of another shape ({columns})")]


def test_two_shapes_of_which_none_has_most_rows_are_refused() -> None:
    assert refusal(PAIR, TALK) == (
        "f: rows of several shapes, none with most of them: 1 row as prompt (chosen, rejected, "
        "prompt); 1 row as implicit (chosen, rejected). Choose with --format prompt, or put them "
        "into files of their own."
    )
    found = Found(PAIR, TALK, format="implicit")
    assert [said(pair) for pair in found.pairs] == [([user("p")], "good", "bad")]
    assert found.problems == [Problem("f:1", "row of another shape (prompt)")]


def test_nulls_and_wrong_types_are_faults_of_their_row() -> None:
    found = Found(
        TALK, TALK, {"chosen": None, "rejected": TALK["rejected"]},
        {"chosen": TALK["chosen"]}, {"chosen": 7, "rejected": TALK["rejected"]},
    )  # fmt: skip
    assert len(found.pairs) == 2
    assert found.drops == {}
    assert found.problems == [
        Problem("f:3", 'column "chosen" is null'),
        Problem("f:4", 'column "rejected" is missing (found: chosen)'),
        Problem("f:5", '"chosen" must be text or a list of messages, found int'),
    ]


def test_texts_without_a_prompt_ask_for_one() -> None:
    assert refusal({"chosen": "good", "rejected": "bad", "topic": "x"}) == (
        "f: chosen and rejected stand without a prompt, and hold no turns: name the prompt's "
        "column with --columns prompt=NAME (columns: chosen, rejected, topic)."
    )


def test_unknown_rows_are_refused_with_their_columns() -> None:
    assert refusal({"text": "a"}, {"text": "b", "id": 1}) == (
        "f: no known shape of rows (columns: text, id). Say what they are with --columns "
        "prompt=NAME,chosen=NAME,rejected=NAME; docs/data.md shows every shape."
    )


def test_columns_are_named_by_hand() -> None:
    row = {"q": "p", "better": "good", "worse": "bad", "prompt": "another", "from": "de"}
    columns = {"prompt": "q", "chosen": "better", "rejected": "worse", "system": "from"}
    (pair,) = read(row, columns=columns)
    assert said(pair) == ([system("de"), user("p")], "good", "bad")
    assert pair.labels == {"prompt": "another"}
    assert sentence(row, columns=columns) == (
        'texts, explicit prompt; the prompt is "q"; system message in "from"'
    )
    found = Found(row, {"q": "p", "better": "good"}, columns=columns)
    assert found.problems == [
        Problem("f:2", 'column "worse" is missing (found: q, better)'),
    ]


def test_mapped_columns_that_are_not_there_are_told_with_those_found() -> None:
    assert refusal(PAIR, columns={"prompt": "question", "answer": "chosen"}) == (
        "--columns answer=chosen: answer is no name of a column's meaning (allowed: prompt, "
        "chosen, rejected, system, tools, input, history, completion, label, score, answers, "
        "scores, first, second, verdict).\n"
        '--columns prompt=question: f has no column "question" (found: prompt, chosen, rejected).'
    )


def test_two_columns_that_could_be_the_prompt_ask_for_a_choice() -> None:
    row = {"question": "p", "query": "q", "chosen": "good", "rejected": "bad"}
    assert refusal(row) == (
        'f: "question" and "query" could each be the prompt: name one with --columns '
        "prompt=question."
    )
    assert [said(pair) for pair in read(row, columns={"prompt": "query"})] == [("q", "good", "bad")]


def test_a_verdict_beside_a_list_of_scores_asks_for_a_format() -> None:
    row = {
        "prompt": "p", "response_a": "good", "response_b": "bad", "winner": "a",
        "responses": ["good", "bad"], "scores": [1, 2],
    }  # fmt: skip
    assert refusal(row) == "f: the rows can be read as ab and as ranked: choose with --format ab."
    assert [said(pair) for pair in read(row, format="ab")] == [("p", "good", "bad")]
    assert [said(pair) for pair in read(row, format="ranked")] == [("p", "bad", "good")]


def test_a_column_that_often_is_of_the_prompt_and_is_not_taken_is_told() -> None:
    row = {"context": "c" * 300, "question": "p", "chosen": "good", "rejected": "bad"}
    assert sentence(row) == (
        'texts, explicit prompt; the prompt is "question"; "context" is not used'
    )


def test_conversations_that_the_assistant_opens_have_an_implicit_prompt() -> None:
    start = [assistant("hello"), user("p")]
    row = {"chosen": [*start, assistant("good")], "rejected": [*start, assistant("bad")]}
    assert [said(pair) for pair in read(row)] == [(start, "good", "bad")]


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_lists_written_as_text_are_refused(write: Callable[[Any], str]) -> None:
    assert refusal({"prompt": "p", **{name: write(value) for name, value in TALK.items()}}) == (
        'f: "chosen", "rejected" hold lists of messages written as text. Save them as lists, in '
        "JSON Lines or Parquet."
    )


def test_bad_rows_only_are_told_one_by_one_and_later_ones_too() -> None:
    bad = {"prompt": "p", "chosen": "good"}
    shape = recognise(rows(bad), Reading(), "f")
    problems: list[Problem] = []
    for row in rows(bad, {**PAIR, "chosen": ""}):
        assert read_row(row, shape, problems, Counter()) == []
    assert problems == [
        Problem("f:1", 'column "rejected" is missing (found: prompt, chosen)'),
        Problem("f:2", '"chosen" is empty'),
    ]


def test_a_forced_shape_that_no_row_has_is_refused() -> None:
    assert refusal(PAIR, format="kto") == (
        "f: no row can be read as --format kto (columns: prompt, chosen, rejected)."
    )
    assert refusal(PAIR, format="dpo") == (
        "--format dpo: no such shape (allowed: prompt, implicit, hh, orca, alpaca, sharegpt, ab, "
        "ranked, scored, kto, rendered)."
    )


@pytest.mark.parametrize("forced", ["prompt", "orca", "alpaca", "sharegpt"])
def test_any_name_of_a_prompt_beside_two_answers_may_be_forced(forced: str) -> None:
    row = {"question": "p", "chosen": "good", "rejected": "bad"}
    assert [said(pair) for pair in read(row, format=forced)] == [("p", "good", "bad")]


def test_options_for_scores_are_refused_where_there_are_none() -> None:
    assert refusal(PAIR, min_margin=1.0, higher_is_better=True) == (
        "f: --min-margin and --higher-is-better are for scored answers; the rows are prompt."
    )


@pytest.mark.parametrize("column", ["images", "audio"])
def test_images_and_sound_are_refused_by_name(column: str) -> None:
    assert refusal(PAIR, {**PAIR, column: ["x.png"]}) == (
        f'f: "{column}" hold images or sound, which are not read (f:2).'
    )
    (pair,) = read({**PAIR, column: []})
    assert said(pair) == ("p", "good", "bad")
    shape = recognise(rows(PAIR), Reading(), "f")
    problems: list[Problem] = []
    late = Row("f:9", {**PAIR, column: "x.png"})
    assert read_row(late, shape, problems, Counter()) == []
    assert problems == [Problem("f:9", f'"{column}" holds images or sound, which are not read')]


def test_tools_that_only_a_later_row_has_are_read() -> None:
    shape = recognise(rows(PAIR), Reading(), "f")
    tool = {"function": {"name": "now"}}
    (pair,) = read_row(Row("f:9", {**PAIR, "tools": [tool]}), shape, [], Counter())
    assert pair.tools == [tool]
    (pair,) = read_row(Row("f:9", {**PAIR, "system": "s"}), shape, [], Counter())
    assert pair.prompt == [system("s"), user("p")]


def test_two_different_system_messages_are_a_fault() -> None:
    row = {**PAIR, "prompt": [system("s"), user("p")], "system": "s"}
    (pair,) = read(row)
    assert pair.prompt == [system("s"), user("p")]
    assert Found({**row, "system": "t"}).problems == [
        Problem("f:1", '"system" and the conversation have a system message each'),
    ]


def test_a_shape_is_pickled_as_it_is() -> None:
    values = [PAIR, TALK, TURNS]
    for value in values:
        shape = recognise(rows(value), Reading(columns={}), "f")
        assert pickle.loads(pickle.dumps(shape)) == shape
        assert shape.name in SHAPES


def test_what_a_source_is_read_as_is_told_first(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [TALK])
    (source,) = find_sources([str(file)], splits=["train"])
    told: list[str] = []
    assert len(list(iter_pairs(source, Reading(), [], Counter(), told.append))) == 1
    assert told == [f"{file}: read as: conversational, implicit prompt."]


def test_bad_rows_are_dropped_and_counted_if_that_is_asked(tmp_path: Path) -> None:
    bad = [{**PAIR, "chosen": ""}, {"prompt": "p"}, {**PAIR, "chosen": 7, "rejected": None}, TALK]
    file = write_rows(tmp_path / "a.jsonl", [PAIR, PAIR, *bad, {**PAIR, "chosen": " "}])
    told: list[str] = []
    pairs = load_pairs(file, drop_bad=True, tell=told.append)
    assert [pair.place for pair in pairs] == [f"{file}:1", f"{file}:2"]
    assert told[1:] == [
        'left out: 2 x bad row: "chosen" is empty',
        "left out: 1 x bad row: row of another shape",
        'left out: 1 x bad row: column "rejected" is null',
        'left out: 1 x bad row: column "chosen" and "rejected" are missing',
    ]


def test_sources_of_unknown_shape_and_bad_rows_are_told_in_one_error(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [{"text": "x"}])
    second = write_rows(tmp_path / "b.jsonl", [PAIR, {**PAIR, "chosen": None}])
    with pytest.raises(OrpoError) as error:
        load_pairs([first, second])
    unknown, heading, bad, _ = str(error.value).split("\n")
    assert unknown.startswith(f"{first}: no known shape of rows (columns: text).")
    assert heading == "1 bad line in the data:"
    assert bad == f'  {second}:2: column "chosen" is null'
