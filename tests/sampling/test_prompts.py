"""Prompts of text files, of rows without answers, and of pairs."""

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.judging import SampleConfig
from orpo_mlx.data.pairs.split import hash_prompt
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.sampling.prompts import AskedPrompt, load_prompts
from tests.training.runs import notices

TOOLS = [{"type": "function", "function": {"name": "track", "parameters": {}}}]
USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}


def save_rows(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def asked(*sources: Path, report: Any = lambda event: None, **changes: Any) -> list[AskedPrompt]:
    config = SampleConfig(model="m", prompts=[str(s) for s in sources], **changes)
    return load_prompts(config, report)


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    (file := tmp_path / "p.txt").write_text("one\n\n  two\n")
    assert [(p.prompt, p.location) for p in asked(file)] == [
        ("one", f"{file}:1"),
        ("  two", f"{file}:3"),
    ]


def test_rows_without_answers_keep_system_tools_and_group(tmp_path: Path) -> None:
    file = save_rows(
        tmp_path / "p.jsonl",
        {"prompt": "one", "topic": "a"},
        {"messages": [SYSTEM, USER], "tools": TOOLS, "topic": 3},
        {"prompt": "two", "system": "Be brief."},
        {"prompt": [{"from": "human", "value": "three"}]},
    )
    prompts = asked(file, group_by="topic")
    assert [p.prompt for p in prompts] == [
        "one",
        [SYSTEM, USER],
        [SYSTEM, {"role": "user", "content": "two"}],
        [{"role": "user", "content": "three"}],
    ]
    assert [p.group for p in prompts] == ["a", "3", None, None]
    assert prompts[1].tools == TOOLS
    assert prompts[1].hash == hash_prompt([SYSTEM, USER], TOOLS)


def test_pairs_of_any_row_format_are_asked_for_their_prompts(tmp_path: Path) -> None:
    pairs = save_rows(
        tmp_path / "pairs.jsonl",
        {"prompt": "one", "chosen": "a", "rejected": "b", "topic": 7},
        {"prompt": "two", "system": "Be brief.", "chosen": "a", "rejected": "b", "topic": 8},
    )
    answer = {"role": "assistant", "content": "a"}
    implicit = save_rows(
        tmp_path / "implicit.jsonl",
        {"chosen": [USER, answer], "rejected": [USER, {**answer, "content": "b"}], "topic": "x"},
    )
    labelled = save_rows(
        tmp_path / "kto.jsonl",
        {"prompt": "three", "completion": "a", "label": True, "topic": "y"},
        {"prompt": "three", "completion": "b", "label": False, "topic": "y"},
    )
    prompts = asked(pairs, implicit, labelled, group_by="topic")
    assert [p.messages[-1]["content"] for p in prompts] == ["one", "two", "Hi", "three"]
    assert prompts[1].messages[0] == SYSTEM
    assert [p.group for p in prompts] == ["7", "8", "x", "y"]


def test_columns_name_the_prompt_of_pairs(tmp_path: Path) -> None:
    file = save_rows(tmp_path / "p.jsonl", {"q": "one", "chosen": "a", "rejected": "b"})
    assert [p.prompt for p in asked(file, columns={"prompt": "q"})] == ["one"]


def test_equal_prompts_are_asked_once_and_counted_then_limited(tmp_path: Path) -> None:
    (text := tmp_path / "p.txt").write_text("one\ntwo\none\n")
    rows = save_rows(
        tmp_path / "p.jsonl",
        {"prompt": [{"role": "user", "content": "two"}]},
        {"prompt": "two", "tools": TOOLS},
        {"prompt": "three"},
    )
    events: list[Event] = []
    prompts = asked(text, rows, report=events.append, limit=3)
    assert [p.messages[0]["content"] for p in prompts] == ["one", "two", "two"]
    assert notices(events) == ["2 x prompt that was there before: each is asked once"]


def test_all_that_is_wrong_with_all_sources_is_named(tmp_path: Path) -> None:
    rows = save_rows(
        tmp_path / "p.jsonl",
        {"prompt": ""},
        {"messages": [USER, {"role": "assistant", "content": "x"}]},
        {"prompt": "good"},
        {"prompt": 3},
    )
    pairs = save_rows(tmp_path / "q.jsonl", {"prompt": "one", "chosen": "a", "rejected": 1})
    (empty := tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(OrpoError) as error:
        asked(rows, pairs, empty, tmp_path / "absent.txt")
    text = str(error.value)
    for part in (f"{rows}:1: ", f"{rows}:2: ", f"{rows}:4: ", f"{pairs}:1: ", f"{empty}: the file"):
        assert part in text
    assert f"--prompts {tmp_path / 'absent.txt'}" in text
    assert f"{rows}:3" not in text
    events: list[Event] = []
    assert [p.prompt for p in asked(rows, bad_rows="drop", report=events.append)] == ["good"]
    assert sum(int(t.split()[2]) for t in notices(events) if t.startswith("left out: ")) == 3


def test_a_row_without_a_prompt_among_others_is_named(tmp_path: Path) -> None:
    rows = save_rows(tmp_path / "p.jsonl", {"prompt": "one"}, {"promt": "two"})
    with pytest.raises(OrpoError, match=rf"{rows}:2: .*either \"prompt\" or \"messages\""):
        asked(rows)


def test_without_a_prompt_there_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(OrpoError, match="no prompt is left"):
        asked(save_rows(tmp_path / "p.jsonl", {"prompt": ""}), bad_rows="drop")


def test_rows_with_a_templates_markers_are_refused(tmp_path: Path) -> None:
    start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ends = ("a<|im_end|>", "b<|im_end|>")
    row = {"prompt": start, "chosen": ends[0], "rejected": ends[1]}
    file = save_rows(tmp_path / "p.jsonl", row, row | {"chosen": "c<|im_end|>"})
    with pytest.raises(OrpoError, match="carry a chat template's markers"):
        asked(file, format="rendered")


def test_a_group_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OrpoError, match="--group-by topic: no row has a value"):
        asked(save_rows(tmp_path / "p.jsonl", {"prompt": "one"}), group_by="topic")
