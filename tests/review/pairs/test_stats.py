"""Counts and lengths of pairs, against counting by hand."""

import itertools
import statistics

import numpy as np
import pytest

from orpo_mlx.review.pairs.stats import Lengths, Stats, histogram, length_summary
from tests.data.rows import assistant, call, pair, system, user

TOOLS = [{"function": {"name": "f"}}]


def test_pairs_prompts_turns_and_what_pairs_hold_are_counted() -> None:
    stats = Stats()
    rows = [
        pair("hello"),
        pair("hello", "other"),
        pair([system("be kind"), user("hi"), assistant("yes?"), user("my card")]),
        pair([user("hi"), assistant("It")], assistant("", tool_calls=call("f")), tools=TOOLS),
        pair(chosen=assistant("2", reasoning="1 + 1")),
        pair("<|im_start|>", raw=True),
    ]
    for row in rows:
        stats.add(row)
    facts = stats.as_dict(100)
    assert (facts["pairs"], facts["prompts"]) == (6, 4)
    assert facts["turns"] == {"1": 5, "2": 1}
    assert facts["features"] == {
        "system message": 1,
        "several turns": 1,
        "tools": 1,
        "tool calls": 1,
        "prompt that ends with the assistant": 1,
        "reasoning in a response": 1,
        "template's markers": 1,
    }
    assert "tokens" not in facts


def test_lengths_are_those_of_the_texts() -> None:
    stats = Stats()
    stats.add(pair([system("abc"), user("de")], "fghi", "j"))
    stats.add(pair("ab", "c", "defghijklm"))
    lengths = stats.characters.summaries()
    assert lengths["prompt"] == Lengths(3.5, 3.5, pytest.approx(4.85), 5)
    assert [lengths[name].max for name in ("chosen", "rejected", "together")] == [4, 10, 12]
    assert stats.characters.totals().tolist() == [9, 12]


def test_pairs_longer_than_the_limit_are_counted() -> None:
    stats = Stats()
    for prompt, chosen, rejected in ((5, 5, 1), (5, 6, 1), (5, 1, 9)):
        stats.tokens.add(prompt, chosen, rejected)
    assert stats.as_dict(10)["over_max_seq_length"] == 2


def test_a_summary_is_mean_median_percentile_and_maximum() -> None:
    values = list(np.random.default_rng(0).integers(1, 1000, 501))
    lengths = length_summary(np.asarray(values))
    assert lengths.mean == pytest.approx(statistics.mean(map(int, values)))
    assert lengths.median == statistics.median(values)
    assert lengths.p95 == sorted(values)[475]
    assert lengths.max == max(values)
    assert length_summary(np.asarray([], int)) == (0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_every_length_is_in_one_bin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(rng.uniform(0, 9), rng.uniform(0, 2), rng.integers(1, 500)).astype(int)
    bins = histogram(lengths)
    assert len(bins) <= 12
    for start, end, count in bins:
        assert count == sum(start <= n < end for n in lengths)
    assert sum(b.pairs for b in bins) == len(lengths)
    assert all(a.end == b.start for a, b in itertools.pairwise(bins))


def test_bins_are_round_and_the_last_holds_the_longest() -> None:
    lengths = np.asarray([*range(100, 180), 9_999])
    assert [tuple(b) for b in histogram(lengths)][:2] == [(100, 110, 10), (110, 120, 10)]
    assert histogram(lengths)[-1].end == 10_000
    assert histogram(np.asarray([7, 7])) == [(7, 8, 2)]
    assert histogram(np.asarray([], int)) == []
