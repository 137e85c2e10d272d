"""Which pairs are held out: whole prompts, by prompt and seed alone."""

import itertools
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from orpo_mlx.data.pairs.split import held_out_by_rule_1, prompt_hash, split_by_prompt
from tests.data.rows import call, pair, user


def hashes_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Pairs in a random order, `sizes` of each prompt."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(2**64, size=len(sizes), dtype=np.uint64)
    return rng.permutation(np.repeat(prompts, sizes))


def held_out(hashes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Those of a split in two, by the newest rule."""
    (mask,), _ = split_by_prompt(hashes, [fraction], seed)
    return mask


Rule = Callable[[np.ndarray, float, int], np.ndarray]
RULES: list[Rule] = [held_out, held_out_by_rule_1]


def reference_draw(prompt: int, seed: int) -> int:
    """splitmix64's finalizer in whole numbers (Steele, Lea and Flood 2014)."""
    z = prompt ^ (seed * 0x9E3779B97F4A7C15 % 2**64)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_prompt_is_held_out_if_its_draw_is_under_the_fraction(seed: int) -> None:
    hashes = hashes_of([1, 3, 2] * 100, seed)
    valid, test = (0.25, 0.125)  # exact in binary
    masks, filled = split_by_prompt(hashes, [valid, test], seed)
    draws = [reference_draw(int(prompt), seed) / 2**64 for prompt in hashes]
    assert masks[0].tolist() == [draw < valid for draw in draws]
    assert masks[1].tolist() == [valid <= draw < valid + test for draw in draws]
    assert masks[0].any() and masks[1].any() and not filled


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 0.9])
def test_over_many_seeds_the_share_is_the_fraction(fraction: float) -> None:
    prompts, seeds = 500, 200
    hashes = np.arange(prompts, dtype=np.uint64)  # as like each other as can be
    held = np.array([held_out(hashes, fraction, seed) for seed in range(seeds)])
    # Each draw is a coin: the deviation of a binomial count of all of them, and of each prompt's.
    coins = prompts * seeds
    assert abs(held.sum() - fraction * coins) < 4 * math.sqrt(coins * fraction * (1 - fraction))
    # Of 500 prompts the farthest: 5 deviations, and 1 as the count of a rare event is skewed.
    farthest = abs(held.sum(axis=0) - fraction * seeds).max()
    assert farthest < 5 * math.sqrt(seeds * fraction * (1 - fraction)) + 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("fractions", [[0.05], [0.05, 0.1]])
def test_a_set_that_grows_ten_times_moves_no_pair(seed: int, fractions: list[float]) -> None:
    rng = np.random.default_rng(seed)
    grown = hashes_of(rng.integers(1, 4, size=2000).tolist(), seed)
    few = np.isin(grown, np.unique(grown)[rng.permutation(2000)[:200]])
    masks, filled = split_by_prompt(grown[few], fractions, seed)
    later, _ = split_by_prompt(grown, fractions, seed)
    assert not filled
    for before, after in zip(masks, later, strict=True):
        assert before.any()
        np.testing.assert_array_equal(after[few], before)


@pytest.mark.parametrize("seed", range(20))
def test_valid_and_test_are_disjoint_and_valid_is_what_training_holds_out(seed: int) -> None:
    hashes = hashes_of(np.random.default_rng(seed).integers(1, 6, size=300).tolist(), seed)
    for valid, test in ((0.1, 0.2), (0.5, 0.4), (0.3, 0.01)):
        masks, _ = split_by_prompt(hashes, [valid, test], seed)
        parts = [set(hashes[mask]) for mask in (*masks, ~(masks[0] | masks[1]))]
        assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == 300
        np.testing.assert_array_equal(masks[0], held_out(hashes, valid, seed))


@pytest.mark.parametrize("seed", range(5))
def test_where_no_prompt_is_under_the_fraction_the_lowest_is_held_out(seed: int) -> None:
    hashes = hashes_of([3, 1, 2] * 5, seed)
    (mask,), filled = split_by_prompt(hashes, [1e-9], seed)
    lowest = min(set(hashes.tolist()), key=lambda prompt: reference_draw(prompt, seed))
    assert set(hashes[mask].tolist()) == {lowest}
    assert (mask == (hashes == lowest)).all()
    assert filled == [0]


@pytest.mark.parametrize("seed", range(5))
def test_where_every_prompt_is_under_the_fraction_the_highest_is_trained_on(seed: int) -> None:
    hashes = hashes_of([3, 1, 2], seed)
    (mask,), filled = split_by_prompt(hashes, [1 - 1e-9], seed)
    highest = max(set(hashes.tolist()), key=lambda prompt: reference_draw(prompt, seed))
    assert (~mask == (hashes == highest)).all()
    assert filled == [1]


@pytest.mark.parametrize("fractions", [[1e-9, 1e-9], [0.98, 0.01], [0.01, 0.98], [0.4, 0.4]])
@pytest.mark.parametrize("prompts", [3, 4, 7])
def test_three_prompts_are_enough_for_three_parts(fractions: list[float], prompts: int) -> None:
    for seed in range(10):
        hashes = hashes_of([2] * prompts, seed)
        (valid, test), filled = split_by_prompt(hashes, fractions, seed)
        assert valid.any() and test.any() and not (valid & test).any()
        assert not (valid | test).all()
        draws = [reference_draw(int(prompt), seed) for prompt in hashes]
        sides = [0 if v else 1 if t else 2 for v, t in zip(valid, test, strict=True)]
        assert [side for _, side in sorted(zip(draws, sides, strict=True))] == sorted(sides)
        ends = list(itertools.accumulate(fractions))
        fell = {sum(draw / 2**64 >= end for end in ends) for draw in draws}
        assert set(filled) == {0, 1, 2} - fell


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 0.99])
def test_two_prompts_leave_a_pair_on_both_sides(fraction: float) -> None:
    for seed in range(10):
        assert held_out(hashes_of([3, 5]), fraction, seed).sum() in (3, 5)


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 0.99])
def test_one_prompt_is_trained_on(fraction: float) -> None:
    for seed in range(10):
        assert not held_out(hashes_of([9]), fraction, seed).any()


def nearest_total(sizes: list[int], target: float) -> set[int]:
    """The totals of some, not all, prompts that are nearest to a target, by trying all."""
    totals = {sum(some) for n in range(1, len(sizes)) for some in itertools.combinations(sizes, n)}
    best = min(abs(total - target) for total in totals)
    return {total for total in totals if abs(total - target) == best}


@pytest.mark.parametrize("seed", range(40))
def test_rule_1_holds_out_as_many_pairs_as_complete_prompts_allow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, size=rng.integers(2, 11)).tolist()
    hashes = hashes_of(sizes, seed)
    for fraction in (0.01, 0.1, 0.33, 0.5, 0.9):
        held = held_out_by_rule_1(hashes, fraction, seed)
        target = min(max(round(fraction * len(hashes)), 1), len(hashes) - 1)
        assert int(held.sum()) in nearest_total(sizes, target)
        assert not set(hashes[held]) & set(hashes[~held])


def test_rule_1_gives_the_very_number_of_prompts_of_one_pair() -> None:
    for count in (2, 7, 100, 12_345):
        held = held_out_by_rule_1(hashes_of([1] * count), 0.05, 0)
        assert held.sum() == max(round(0.05 * count), 1)


def test_rule_1_is_what_version_0_1_did() -> None:
    hashes = np.arange(60, dtype=np.uint64) * 4 // 7  # one or two pairs of each prompt
    held = {f: np.flatnonzero(held_out_by_rule_1(hashes, f, 3)).tolist() for f in (0.05, 0.2)}
    assert held == {
        0.05: [0, 1, 20],
        0.2: [0, 1, 14, 15, 16, 17, 28, 29, 35, 36, 53, 54],
    }


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_held_out_of_one_prompt_of_no_pair_or_for_a_fraction_of_0(rule: Rule) -> None:
    for hashes, fraction in ((hashes_of([9]), 0.5), (hashes_of([]), 0.5), (hashes_of([1, 2]), 0)):
        held = rule(hashes, fraction, 0)
        assert held.shape == hashes.shape
        assert not held.any()


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_pairs_changes_nothing(rule: Rule) -> None:
    hashes = hashes_of([1, 4, 2] * 50)
    order = np.random.default_rng(1).permutation(len(hashes))
    held = rule(hashes, 0.2, 7)
    np.testing.assert_array_equal(rule(hashes[order], 0.2, 7), held[order])


@pytest.mark.parametrize("rule", RULES)
def test_a_seed_draws_once_and_another_draws_others(rule: Rule) -> None:
    hashes = hashes_of([1] * 2000)
    draws = [rule(hashes, 0.25, seed) for seed in (0, 1, 2, 0)]
    np.testing.assert_array_equal(draws[0], draws[3])
    for one, other in itertools.combinations(draws[:3], 2):
        both = (one & other).sum()
        assert abs(both - 125) < 50  # independent draws share 125; the deviation is under 11


@pytest.mark.parametrize(("fraction", "bytes_a_pair"), [(0.05, 5), (1e-12, 26)])
def test_memory_for_a_pair_is_bounded(fraction: float, bytes_a_pair: int) -> None:
    hashes = hashes_of([1] * 500_000)
    held_out(hashes[:10], fraction, 0)
    tracemalloc.start()
    try:
        held_out(hashes, fraction, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < bytes_a_pair * len(hashes)


def test_a_prompt_is_its_messages_and_tools() -> None:
    tools = [{"function": {"name": "f"}}]
    same = [pair("hi"), pair([user("hi")], chosen="other"), pair("hi", location="g:2", tools=[])]
    assert len({prompt_hash(p) for p in same}) == 1
    others = [
        pair("hi "),
        pair("hi", tools=tools),
        pair([user("hi"), user("hi")]),
        pair([{"role": "assistant", "content": "", "tool_calls": call("f", a=1)}]),
        pair([{"role": "assistant", "content": "", "tool_calls": call("f", a=2)}]),
    ]
    assert len({prompt_hash(p) for p in [*same, *others]}) == 6


@pytest.mark.touchy
def test_a_hash_is_the_same_in_every_process() -> None:
    code = (
        "from orpo_mlx.data.pairs.split import prompt_hash; from tests.data.rows import pair; "
        "print(prompt_hash(pair('Grüße 你好')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(shown.stdout) == prompt_hash(pair("Grüße 你好")) == 3286471485829311867
