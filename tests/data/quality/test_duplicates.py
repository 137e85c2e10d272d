from random import Random

import pytest

from orpo_mlx.data.pairs.messages import PreferencePair
from orpo_mlx.data.quality.duplicates import boilerplate, find_duplicates
from orpo_mlx.data.quality.thresholds import build_thresholds
from tests.data.quality.rows import named, pair, rows

DEFAULTS = build_thresholds()
RNG = Random(0)


def text(words: int) -> str:
    return " ".join(f"w{RNG.randrange(10**6)}" for _ in range(words))


def some(prompt: int = 30, answer: int = 30) -> PreferencePair:
    return pair(text(prompt), text(answer), text(answer))


def changed(text: str) -> str:
    """The text with its last word replaced."""
    return " ".join([*text.split()[:-1], "other"])


def reworded(p: PreferencePair) -> PreferencePair:
    return p._replace(chosen={"role": "assistant", "content": changed(p.chosen["content"])})


def test_rows_that_occur_twice_are_named_whatever_their_trivia() -> None:
    first, second = some(), some()
    again = first._replace(prompt=str(first.prompt).upper() + "!")
    findings = find_duplicates(rows(first, second, again), DEFAULTS)
    assert [(f.name, f.rows) for f in findings] == [("duplicate", ("a.jsonl:1", "a.jsonl:3"))]
    assert findings[0].figures == {"groups": 1, "surplus": 1}


def test_rows_that_are_nearly_the_same_are_named() -> None:
    first = some()
    findings = find_duplicates(rows(first, some(), reworded(first)), DEFAULTS)
    assert [(f.name, f.rows) for f in findings] == [("near_duplicate", ("a.jsonl:3", "a.jsonl:1"))]
    assert findings[0].examples[0].detail == "98% like a.jsonl:1"


def test_the_threshold_decides_what_is_nearly_the_same() -> None:
    first = some(prompt=10, answer=10)
    data = rows(first, reworded(first))
    assert named(find_duplicates(data, DEFAULTS), "near_duplicate")
    strict = build_thresholds({"near_duplicate": 0.99})
    assert not find_duplicates(data, strict)


def test_a_swapped_pair_is_not_a_duplicate() -> None:
    first = some()
    swapped = first._replace(chosen=first.rejected, rejected=first.chosen)
    assert not find_duplicates(rows(first, swapped), DEFAULTS)


@pytest.mark.parametrize("how", ["same", "prompt", "near prompt", "near row"])
def test_what_is_in_two_splits_leaks(how: str) -> None:
    first, other = some(), some()
    held_out = {
        "same": first,
        "prompt": first._replace(chosen=other.chosen, rejected=other.rejected),
        "near prompt": other._replace(prompt=changed(str(first.prompt))),
        "near row": reworded(first),
    }[how]
    data = rows(train=[some(), first], test=[some(), held_out])
    findings = find_duplicates(data, DEFAULTS)
    assert [f.name for f in findings] == ["leak"]
    assert set(findings[0].rows) == {"train.jsonl:2", "test.jsonl:2"}
    assert findings[0].severity == "severe"


def test_short_prompts_with_another_word_are_other_questions() -> None:
    asked = "What is the opposite of a word like {} in this language of ours?"
    data = rows(
        train=[pair(asked.format("hot"), "cold", "hot")],
        test=[pair(asked.format("big"), "small", "tall")],
    )
    assert not find_duplicates(data, DEFAULTS)


def test_a_template_that_many_prompts_share_makes_none_of_them_a_duplicate() -> None:
    template = text(60)
    texts = [f"{template} {text(6)}" for _ in range(40)]
    data = rows(
        train=[pair(t, "yes", "no") for t in texts[:20]],
        test=[pair(t, "yes", "no") for t in texts[20:]],
    )
    assert not find_duplicates(data, DEFAULTS)
    assert len(boilerplate(texts, 0.05)) == 58


def test_a_hundred_rows_that_are_alike_are_all_named() -> None:
    first = some(prompt=60, answer=60)
    alike = [
        first._replace(
            rejected={
                "role": "assistant",
                "content": changed(text(5) + " " + str(first.rejected["content"])),
            }
        )
        for _ in range(100)
    ]
    findings = find_duplicates(rows(*alike, some()), DEFAULTS)
    assert len(named(findings, "near_duplicate")) == 100
