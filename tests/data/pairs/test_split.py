"""Which pairs are held out: whole prompts, as many as asked, by prompt and seed alone."""

import itertools
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from orpo_mlx.data.pairs.split import prompt_hash, split_by_prompt
from tests.data.rows import call, pair, user


def hashes_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Pairs in a random order, `sizes` of each prompt."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(2**64, size=len(sizes), dtype=np.uint64)
    return rng.permutation(np.repeat(prompts, sizes))


def nearest_total(sizes: list[int], target: float) -> set[int]:
    """The totals of some, not all, prompts that are nearest to a target, by trying all."""
    totals = {sum(some) for n in range(1, len(sizes)) for some in itertools.combinations(sizes, n)}
    best = min(abs(total - target) for total in totals)
    return {total for total in totals if abs(total - target) == best}


@pytest.mark.parametrize("seed", range(40))
def test_as_many_pairs_are_held_out_as_whole_prompts_allow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, size=rng.integers(2, 11)).tolist()
    hashes = hashes_of(sizes, seed)
    for fraction in (0.01, 0.1, 0.33, 0.5, 0.9):
        held = split_by_prompt(hashes, fraction, seed)
        target = min(max(round(fraction * len(hashes)), 1), len(hashes) - 1)
        assert int(held.sum()) in nearest_total(sizes, target)
        assert not set(hashes[held]) & set(hashes[~held])


def test_prompts_of_one_pair_give_the_very_number() -> None:
    for count in (2, 7, 100, 12_345):
        held = split_by_prompt(hashes_of([1] * count), 0.05, 0)
        assert held.sum() == max(round(0.05 * count), 1)


def test_two_prompts_leave_a_pair_on_both_sides() -> None:
    for fraction in (1e-9, 0.5, 0.999):
        assert 0 < split_by_prompt(hashes_of([3, 5]), fraction, 0).sum() < 8


def test_nothing_is_held_out_of_one_prompt_of_no_pair_or_for_a_fraction_of_0() -> None:
    for hashes, fraction in ((hashes_of([9]), 0.5), (hashes_of([]), 0.5), (hashes_of([1, 2]), 0)):
        held = split_by_prompt(hashes, fraction, 0)
        assert held.shape == hashes.shape
        assert not held.any()


def test_the_order_of_the_pairs_changes_nothing() -> None:
    hashes = hashes_of([1, 4, 2] * 50)
    order = np.random.default_rng(1).permutation(len(hashes))
    held = split_by_prompt(hashes, 0.2, 7)
    np.testing.assert_array_equal(split_by_prompt(hashes[order], 0.2, 7), held[order])


def test_a_seed_draws_once_and_another_draws_others() -> None:
    hashes = hashes_of([1] * 2000)
    draws = [split_by_prompt(hashes, 0.25, seed) for seed in (0, 1, 2, 0)]
    np.testing.assert_array_equal(draws[0], draws[3])
    for one, other in itertools.combinations(draws[:3], 2):
        both = (one & other).sum()
        assert abs(both - 125) < 50  # independent draws share 125; the deviation is under 10


def test_every_prompt_is_as_likely_whatever_its_hash() -> None:
    hashes = np.arange(1000, dtype=np.uint64)  # as like each other as can be
    counts = sum(split_by_prompt(hashes, 0.5, seed).astype(int) for seed in range(200))
    assert abs(counts - 100).max() < 40  # the deviation is 7


def test_memory_is_at_most_23_bytes_a_pair() -> None:
    hashes = hashes_of([1] * 500_000)
    split_by_prompt(hashes[:10], 0.05, 0)
    tracemalloc.start()
    try:
        split_by_prompt(hashes, 0.05, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 23 * len(hashes)


def test_a_prompt_is_its_messages_and_tools() -> None:
    tools = [{"function": {"name": "f"}}]
    same = [pair("hi"), pair([user("hi")], chosen="other"), pair("hi", place="g:2", tools=[])]
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
