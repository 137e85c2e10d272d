"""Micro-batches as calls: every context right, every token once, every response weighed."""

from collections import defaultdict

import numpy as np
import pytest

from orpo_mlx.data.batching import prefix_tree
from orpo_mlx.data.batching.prefix_tree import Batch, build_batch
from orpo_mlx.data.tokens.encoder import EncodedPair

LAYOUTS = ("tree", "padded", "rows")
ROUNDINGS = (0, 8, 4, 2, 1)


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> EncodedPair:
    return EncodedPair(*(np.array(ids, np.int32) for ids in (prompt, chosen, rejected)), "f:1")


def random_pairs(seed: int, count: int = 5) -> list[EncodedPair]:
    """Few distinct tokens, so that beginnings are alike by chance, too; 0 is kept for padding."""
    random = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return random.integers(1, 4, random.integers(low, high)).tolist()

    system = tokens(0, 40)
    pairs = []
    for kind in random.integers(0, 5, count):
        alike, one, other = tokens(0, 30), tokens(1, 40), tokens(1, 40)
        if kind == 0:  # one response is the other, or its beginning
            other = one + tokens(0, 2) * int(random.integers(0, 20))
        if kind == 1:
            one, other = other[:1], one
        if random.integers(2):
            one, other = other, one
        pairs.append(pair(system + tokens(1, 50), alike + one, alike + other))
    return pairs


def contexts(batch: Batch) -> list[tuple[int, ...]]:
    """The tokens that each position of the calls has seen, its own included, padding as 0s."""
    seen: list[list[list[tuple[int, ...]]]] = []
    for ids, parent, rows, *_ in batch.calls:
        assert len(rows) == len(ids)
        assert parent < len(seen)
        call = []
        for row, tokens in enumerate(ids.tolist()):
            before = () if parent < 0 else seen[parent][rows[row]][-1]
            call.append([before + tuple(tokens[: end + 1]) for end in range(len(tokens))])
        seen.append(call)
    return [context for call in seen for row in call for context in row]


def scored_contexts(batch: Batch) -> list[tuple[int, ...]]:
    """The context of each scored position, in the order of `targets`."""
    flat, start, positions = contexts(batch), 0, []
    for call in batch.calls:
        assert call.scored.size == 0 or call.scored.max() < call.ids.size
        positions += [flat[start + position] for position in call.scored]
        start += call.ids.size
    assert start == len(flat) == batch.computed
    return positions


def weights_by_context(weights: np.ndarray, batch: Batch) -> list[dict[tuple[int, ...], float]]:
    """For each row of weights, what it weighs: context and target -> weight."""
    keys = [(*c, int(t)) for c, t in zip(scored_contexts(batch), batch.targets, strict=True)]
    rows = []
    for row in weights:
        sums: dict[tuple[int, ...], float] = defaultdict(float)
        for key, weight in zip(keys, row, strict=True):
            if weight:
                sums[key] += float(weight)
        rows.append(sums)
    return rows


def beginnings(prompt: np.ndarray, response: np.ndarray, start: int) -> dict[tuple, float]:
    """Every beginning of prompt and response that is longer than `start`, equally weighed."""
    whole = (*prompt.tolist(), *response.tolist())
    return {whole[:end]: 1 / (len(whole) - start) for end in range(start + 1, len(whole) + 1)}


def rows_of(pairs: list[EncodedPair], indices: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    chosen = [(pairs[i].prompt, pairs[i].chosen) for i in indices]
    return chosen + [(pairs[i].prompt, pairs[i].rejected) for i in indices]


def check(batch: Batch, pairs: list[EncodedPair], indices: list[int], nll_on: str) -> None:
    """Every response token has its weight after its own context, and nothing else has any."""
    rows = rows_of(pairs, indices)
    wanted = [beginnings(prompt, response, len(prompt)) for prompt, response in rows]
    for actual, expected in zip(weights_by_context(batch.weights, batch), wanted, strict=True):
        assert actual == pytest.approx(expected, rel=1e-5)  # float32
    np.testing.assert_allclose(batch.weights.sum(axis=1), 1, rtol=1e-5)
    if nll_on == "response":
        assert batch.nll_weights is None
    else:
        assert batch.nll_weights is not None
        wanted = [beginnings(*row, 1) for row in rows[: len(indices)]]
        for actual, expected in zip(
            weights_by_context(batch.nll_weights, batch), wanted, strict=True
        ):
            assert actual == pytest.approx(expected, rel=1e-5)
    assert batch.indices.tolist() == indices
    assert batch.tokens == sum(len(prompt) + len(response) for prompt, response in rows)
    assert batch.computed == sum(call.ids.size for call in batch.calls)
    # Token 0 is padding, which these pairs do not have.
    assert batch.padding == sum(int((call.ids == 0).sum()) for call in batch.calls)
    for call in batch.calls:
        for ids, (row, start, count) in zip(call.ids, call.origin, strict=True):
            whole = np.concatenate(rows[row])
            assert ids[:count].tolist() == whole[start : start + count].tolist()
            assert not ids[count:].any()
    for parent in {call.parent for call in batch.calls} - {-1}:
        assert (batch.calls[parent].ids != 0).all(), "a level that others continue is padded"


@pytest.mark.parametrize("nll_on", ["response", "prompt+response"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_scored_token_follows_its_own_context(
    layout: str, rounding: int, nll_on: str
) -> None:
    for seed in range(6):
        pairs = random_pairs(seed)
        for indices in ([0, 1, 2, 3, 4], [3], [4, 1]):
            batch = build_batch(pairs, indices, layout=layout, nll_on=nll_on, rounding=rounding)
            check(batch, pairs, indices, nll_on)


def test_where_calls_cost_nothing_a_token_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a level, that is: what two pairs share beyond the batch prefix is computed for each."""
    monkeypatch.setattr(prefix_tree, "CALL_TOKENS", 0)
    monkeypatch.setattr(prefix_tree, "SHORTEST", 1)
    for seed in range(20):
        pairs = random_pairs(seed, count=1)
        batch = build_batch(pairs, [0])
        inputs = [(*p.tolist(), *r[:-1].tolist()) for p, r in rows_of(pairs, [0])]
        distinct = {row[: end + 1] for row in inputs for end in range(len(row))}
        real = [context for context in contexts(batch) if context[-1]]
        assert sorted(real) == sorted(distinct)
        assert batch.padding == 0


def test_levels_are_the_batch_prefix_the_pair_prefixes_and_the_tails() -> None:
    system = list(range(100, 140))
    pairs = [
        pair([*system, *range(45)], [50, 51, *range(30)], [50, 51, *range(60, 99)]),
        pair([*system, *range(30, 77)], [*range(30)], [*range(60, 95)]),
        pair([*system, *range(60, 77)], [1, *range(20)], [2, *range(20)]),
    ]
    batch = build_batch(pairs, [0, 1, 2])
    shapes = [(*call.ids.shape, call.parent, call.rows.tolist()) for call in batch.calls]
    assert shapes == [
        (1, 40, -1, [0]),
        (1, 17, 0, [0]),
        (2, 20, 1, [0, 0]),
        (2, 47, 0, [0, 0]),
        (2, 29, 3, [0, 1]),
        (2, 38, 3, [0, 1]),
    ]
    distinct = 40 + 17 + 2 * 20 + 2 * 47 + (29 + 38) + (29 + 34)
    assert batch.computed - batch.padding == distinct
    assert batch.padding == 4


def test_a_shared_system_prompt_is_computed_once() -> None:
    tokens = np.random.default_rng(0).integers(1, 99, (4, 24 + 48 + 48)).tolist()
    pairs = [pair([*range(256), *t[:24]], t[24:72], t[72:]) for t in tokens]
    tree, padded = (build_batch(pairs, range(4), layout=layout) for layout in ("tree", "padded"))
    assert (tree.computed, tree.padding) == (256 + 4 * 24 + 8 * 47, 0)
    assert (padded.computed, padded.padding) == (8 * (256 + 24 + 47), 0)


def test_a_level_that_saves_less_than_a_call_costs_is_not_made() -> None:
    short = pair([*range(1, 11)], [20, 21], [30, 31])
    assert [call.ids.shape for call in build_batch([short], [0]).calls] == [(2, 11)]
    longer = pair([*range(1, 17)], [20, 21], [30, 31])
    assert [call.ids.shape for call in build_batch([longer], [0]).calls] == [(1, 16), (2, 2)]
    # Ten tokens that four pairs share would be computed three times more.
    four = [pair([*range(1, 11), 40 + n, 50], [20], [30]) for n in range(4)]
    assert build_batch(four, [0, 1, 2, 3]).calls[0].ids.shape == (1, 10)
    assert build_batch(four, [0, 1]).calls[0].ids.shape == (4, 12)


def test_tails_of_unlike_length_are_padded_only_where_that_costs_less_than_a_call() -> None:
    prompt = [*range(100, 120)]
    near = pair(prompt, [1, *range(40)], [2, *range(45)])
    assert [call.ids.shape for call in build_batch([near], [0]).calls] == [(1, 20), (2, 45)]
    far = pair(prompt, [1, *range(10)], [2, *range(45)])
    assert [c.ids.shape for c in build_batch([far], [0]).calls] == [(1, 20), (1, 10), (1, 45)]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_no_call_continues_another_with_a_single_token(rounding: int) -> None:
    prompt = [*range(1, 40)]
    for responses in ([[7, 8], [7, 9]], [[7], [7, 9]], [[7, 8], [9, 8]], [[7, 8], [7, 8, 9]]):
        one = pair(prompt, *responses)
        other = pair([*prompt[:36], 50], *responses)
        for indices in ([0], [1, 0]):
            batch = build_batch([one, other], indices, rounding=rounding)
            for call in batch.calls:
                assert call.parent < 0 or call.ids.shape[1] >= prefix_tree.SHORTEST


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_identical_responses_and_a_response_that_begins_the_other(
    layout: str, rounding: int
) -> None:
    prompt = [*range(1, 30)]
    pairs = [
        pair(prompt, [40, 41, 42], [40, 41, 42]),
        pair(prompt, [40], [40]),
        pair(prompt, [40, 41], [40, 41, 42, 43]),
        pair(prompt, [40, 41, 42, 43], [40]),
        pair([5], [6], [6]),
    ]
    for indices in ([0], [1], [2], [3], [4], [0, 1, 2, 3, 4]):
        batch = build_batch(pairs, indices, layout=layout, rounding=rounding)
        check(batch, pairs, indices, "response")


def test_a_shared_position_is_scored_once_for_each_target() -> None:
    prompt = [*range(1, 30)]
    batch = build_batch([pair(prompt, [40, 41, 42], [40, 41, 43])], [0])
    assert sorted(batch.targets.tolist()) == [40, 41, 42, 43]
    assert (batch.weights > 0).sum() == 6


def test_padded_is_one_call_of_the_chosen_rows_then_the_rejected() -> None:
    pairs = [pair([1, 2, 3], [4, 5], [6, 7, 8]), pair([9], [10, 11], [12])]
    batch = build_batch(pairs, [1, 0], layout="padded")
    (call,) = batch.calls
    assert call.parent == -1
    assert call.ids.tolist() == [
        [9, 10, 0, 0, 0],
        [1, 2, 3, 4, 0],
        [9, 0, 0, 0, 0],
        [1, 2, 3, 6, 7],
    ]
    assert batch.padding == 3 + 1 + 4


def test_rows_are_calls_of_one_unpadded_response_each() -> None:
    pairs = [pair([1, 2, 3], [4, 5], [6, 7, 8]), pair([9], [10, 11], [12])]
    batch = build_batch(pairs, [1, 0], layout="rows")
    assert [(call.ids.tolist(), call.parent) for call in batch.calls] == [
        ([[9, 10]], -1),
        ([[1, 2, 3, 4]], -1),
        ([[9]], -1),
        ([[1, 2, 3, 6, 7]], -1),
    ]
    assert batch.padding == 0


def test_rounding_leaves_few_shapes() -> None:
    def shapes_of(rounding: int) -> set[tuple]:
        shapes = set()
        for seed in range(200):
            batch = build_batch(random_pairs(seed, count=1), [0], rounding=rounding)
            shapes.add(tuple((*call.ids.shape, call.scored.size) for call in batch.calls))
        return shapes

    assert len(shapes_of(1)) < len(shapes_of(2)) < len(shapes_of(8)) < len(shapes_of(0))
    assert 2 * len(shapes_of(1)) < len(shapes_of(0))


@pytest.mark.parametrize("rounding", [1, 2, 4, 8])
def test_lengths_round_to_so_many_values_an_octave(rounding: int) -> None:
    for length in range(1, 2000):
        down = prefix_tree.round_down(length, rounding)
        up = prefix_tree.round_up(length, rounding)
        assert down <= length <= up
        assert up - down <= max(length / rounding, 0) or up == down
        for value in (down, up):
            assert prefix_tree.round_down(value, rounding) == prefix_tree.round_up(value, rounding)
    octave = {prefix_tree.round_down(length, rounding) for length in range(512, 1024)}
    assert len(octave) == rounding
