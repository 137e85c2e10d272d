"""Which prompts are grouped by what they begin with, against a quadratic search."""

import numpy as np
import pytest

from tests.data.rows import groups_of


def tokens(*parts: str) -> np.ndarray:
    """Ids of parts such as "a100": 100 tokens of part a."""
    return np.concatenate(
        [np.arange(int(p[1:]), dtype=np.int32) + 10_000 * ord(p[0]) for p in parts]
    )


def partition(groups: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups == g).tolist()) for g in set(groups.tolist()) - {-1}}


@pytest.mark.parametrize(
    ("prompts", "length", "wanted"),
    [
        ([["a100", "b9"], ["x9"], ["a100", "c9"]], 400, [{0, 2}]),
        ([["a64"], ["x9"], ["a64", "c9"]], 100, [{0, 2}]),
        ([["a63", "b9"], ["x9"], ["a63", "c9"]], 100, []),  # fewer than 64 tokens
        ([["a99", "b9"], ["x9"], ["a99", "c9"]], 400, []),  # less than a quarter of a pair
        ([["s500", "b9"], ["s500", "c9"]], 600, []),  # all share it
        ([["a100"]] * 4, 400, []),  # all are the same
        ([["a100"]] * 3 + [["b100"]], 100, [{0, 1, 2}]),  # the same prompt in several pairs
        # Five hundred shared by all say nothing of the two tool lists under them.
        ([["s500", t, q] for t in ("t90", "u90") for q in ("a9", "b9")], 300, [{0, 1}, {2, 3}]),
        # Two prompts under a system prompt that one pair lacks.
        ([["x1"]] + [["s200", t] for t in ("t70", "u70") * 2], 280, [{1, 3}, {2, 4}]),
        ([["x1"]] + [["s200", t] for t in ("t60", "u60") * 2], 280, [{1, 2, 3, 4}]),
        # Turns of a conversation, each prompt begins with the one before. Three pairs of one unit
        # of two: two thirds of 80 tokens are too few.
        ([["x1"], ["a80"], ["a80", "b80"], ["a80", "b80", "c80"]], 200, [{2, 3}]),
        ([["x1"], *(["a80", "b80", "c80", "d80"][:n] for n in range(1, 5))], 200, [{1, 2}, {3, 4}]),
    ],
)
def test_groups_are_the_prompts_whose_own_shared_beginning_pays(
    prompts: list[list[str]], length: int, wanted: list[set[int]]
) -> None:
    ids = [tokens(*parts) for parts in prompts]
    groups = groups_of(ids, np.full(len(ids), length))
    assert partition(groups) == {frozenset(pairs) for pairs in wanted}


def test_pairs_of_one_prompt_stay_with_their_system_prompt_where_they_fill_no_unit() -> None:
    names = [f"{chr(200 + n // 3)}200" for n in range(24)]  # eight prompts, three pairs each
    prompts = [tokens("x1"), *(tokens("s200", name) for name in names)]
    lengths = np.full(25, 500)
    threes = {frozenset(range(1 + 3 * n, 4 + 3 * n)) for n in range(8)}
    for size, wanted in [(3, threes), (4, {frozenset(range(1, 25))})]:
        assert partition(groups_of(prompts, lengths, micro_batch_size=size)) == wanted


def test_beginnings_are_compared_after_what_all_share_however_long() -> None:
    prompts = [tokens("s3000", name) for name in ("t100", "u100", "t100", "u100")]
    assert partition(groups_of(prompts, np.full(4, 400))) == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }


def test_a_group_of_fewer_than_a_micro_batch_only_where_none_is_around_it() -> None:
    threes = [tokens("s200", f"{chr(200 + n // 3)}200") for n in range(9)]
    prompts = [tokens("x1"), *[tokens("a100")] * 3, *threes]
    lengths = np.full(len(prompts), 300)
    a, s = frozenset({1, 2, 3}), frozenset(range(4, 13))
    for smallest, wanted in [(2, {a, s}), (None, {s})]:
        groups = groups_of(prompts, lengths, micro_batch_size=4, smallest=smallest)
        assert partition(groups) == wanted


def by_brute_force(
    prompts: list[np.ndarray], lengths: np.ndarray, size: int, smallest: int
) -> set[frozenset]:
    """Each pair walks its own prompt, token by token, and counts who goes along."""
    along = [[shared_tokens(a, b) for b in prompts] for a in prompts]
    common = min(map(min, along))
    by_group: dict[frozenset[int], set[int]] = {}
    for pair, prompt in enumerate(prompts):
        group, saved = frozenset[int](), 0
        for length in range(common + 1, len(prompt) + 1):
            who = frozenset(np.flatnonzero(np.array(along[pair]) >= length).tolist())
            tokens = min(along[pair][other] for other in who) - common
            own = sum(int(lengths[other]) for other in who) / len(who)
            in_units = len(who) // size * size / len(who) if len(who) >= size else 1
            least = size if saved else smallest
            if len(who) >= least and in_units * tokens - saved >= max(64, own / 4):
                group, saved = who, tokens
        if group:
            by_group.setdefault(group, set()).add(pair)
    return {frozenset(pairs) for pairs in by_group.values()}


def shared_tokens(first: np.ndarray, second: np.ndarray) -> int:
    count = 0
    for a, b in zip(first.tolist(), second.tolist(), strict=False):
        if a != b:
            break
        count += 1
    return count


def test_groups_are_those_of_a_quadratic_search() -> None:
    rng = np.random.default_rng(6)
    seen: dict[int, int] = {}
    for trial in range(100):
        parts = [np.append(np.full(n, 7), k) for k, n in enumerate(rng.integers(1, 120, 4))]
        prompts = [
            np.concatenate([parts[k] for k in rng.integers(0, 4, rng.integers(1, 5))])
            for _ in range(rng.integers(1, 25))
        ]
        if trial % 3 == 0:
            prompts = [np.concatenate([np.arange(trial), prompt]) for prompt in prompts]
        prompts = [prompt.astype(np.int32) for prompt in prompts]
        lengths, size = rng.integers(50, 900, len(prompts)), int(rng.integers(2, 5))
        smallest = size if trial % 2 else 2
        groups = partition(groups_of(prompts, lengths, size, smallest))
        assert groups == by_brute_force(prompts, lengths, size, smallest)
        seen[len(groups)] = seen.get(len(groups), 0) + 1
    assert min(seen.get(n, 0) for n in (0, 1, 2, 3)) >= 3  # the sets are of many kinds
