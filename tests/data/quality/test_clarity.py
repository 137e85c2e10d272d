from random import Random

import pytest

from orpo_mlx.data.quality.clarity import edit_similarity, find_unclear, sequence_similarity
from orpo_mlx.data.quality.thresholds import build_thresholds
from tests.data.quality.rows import named, pair, rows


def by_table(a: str, b: str) -> int:
    """Longest common subsequence by dynamic programming."""
    before = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
        before = row
    return before[-1]


def test_similarity_counts_the_longest_common_subsequence() -> None:
    rng = Random(0)
    for _ in range(200):
        a, b = ("".join(rng.choices("abcd", k=rng.randint(1, 150))) for _ in range(2))
        expected = 2 * by_table(a, b) / (len(a) + len(b))
        assert sequence_similarity(a, b) == expected
        # As words: equal by their letters, not by their hashes or first ones.
        assert sequence_similarity([f"word {x}" for x in a], [f"word {x}" for x in b]) == expected


def test_similarity_runs_from_nothing_in_common_to_the_same() -> None:
    assert sequence_similarity("", "") == 1
    assert sequence_similarity("abc", "xyz") == 0
    assert sequence_similarity("abcd", "abc") == pytest.approx(6 / 7)


def test_long_answers_are_compared_by_words_and_short_ones_by_letters() -> None:
    words = [f"word{i}" for i in range(13)]
    other = [*words[:6], "other", *words[7:]]
    (long,) = rows(pair(chosen=" ".join(words), rejected=" ".join(other)))
    assert edit_similarity(long) == pytest.approx(12 / 13)
    (short,) = rows(pair(chosen="Paris", rejected="Pariss"))
    assert edit_similarity(short) == pytest.approx(10 / 11)


def test_a_pair_with_one_word_changed_in_many_shows_little_difference() -> None:
    text = " ".join(f"word{i}" for i in range(60))
    data = rows(pair(chosen=text, rejected=text.replace("word7 ", "seven ")), pair())
    similarities = [edit_similarity(row) for row in data]
    findings = find_unclear(data, similarities, build_thresholds())
    assert named(findings, "alike") == ["a.jsonl:1"]
    lax = build_thresholds({"alike": 0.99})
    assert named(find_unclear(data, similarities, lax), "alike") == []
