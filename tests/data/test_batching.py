"""Masks of micro-batches, and the order in which training sees the pairs."""

import numpy as np
import pytest

from orpo_mlx.data.batching import auto_micro_batch_size, build_batch, step_indices
from orpo_mlx.data.encoding import EncodedPair


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> EncodedPair:
    return EncodedPair(*(np.array(ids, np.int32) for ids in (prompt, chosen, rejected)), "f:1")


PAIRS = [pair([1, 2, 3], [4, 5], [6, 7, 8]), pair([9], [10, 11], [12]), pair([13], [14], [15])]


def test_a_batch_holds_the_chosen_rows_then_the_rejected_padded_to_the_longest() -> None:
    batch = build_batch(PAIRS, [1, 0])
    assert batch.inputs.tolist() == [
        [9, 10, 11, 0, 0],
        [1, 2, 3, 4, 5],
        [9, 12, 0, 0, 0],
        [1, 2, 3, 6, 7],
    ]
    assert batch.targets.tolist() == [
        [10, 11, 0, 0, 0],
        [2, 3, 4, 5, 0],
        [12, 0, 0, 0, 0],
        [2, 3, 6, 7, 8],
    ]
    assert batch.indices.tolist() == [1, 0]
    assert batch.tokens == 3 + 5 + 2 + 6
    assert (batch.inputs.dtype, batch.response_mask.dtype) == (np.int32, bool)


def test_masks_take_each_response_token_once_and_neither_prompt_nor_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, (40, 3))
    token = iter(range(1, 10_000))  # every token of the data is another number, padding is 0
    pairs = [pair(*([next(token) for _ in range(n)] for n in row)) for row in lengths]
    for indices in np.split(rng.permutation(40), 8):
        batch = build_batch(pairs, indices)
        rows = [(pairs[i].prompt, pairs[i].chosen) for i in indices]
        rows += [(pairs[i].prompt, pairs[i].rejected) for i in indices]
        for row, (prompt, response) in enumerate(rows):
            scored = batch.targets[row][batch.response_mask[row]]
            assert scored.tolist() == response.tolist()
            assert batch.targets[row][batch.prompt_mask[row]].tolist() == prompt[1:].tolist()
            last = batch.inputs[row][batch.response_mask[row]]
            assert last.tolist() == [prompt[-1], *response[:-1]]
        assert not (batch.response_mask & batch.prompt_mask).any()
        assert not batch.targets[~(batch.response_mask | batch.prompt_mask)].any()


@pytest.mark.parametrize(("batch_size", "pairs"), [(4, 12), (5, 12), (7, 3), (1, 1)])
def test_the_stream_goes_through_one_permutation_of_the_pairs_after_another(
    batch_size: int, pairs: int
) -> None:
    steps = 3 * pairs
    batches = [step_indices(s, batch_size=batch_size, pairs=pairs, seed=0) for s in range(steps)]
    assert {len(batch) for batch in batches} == {batch_size}
    stream = np.concatenate(batches)
    epochs = stream[: len(stream) // pairs * pairs].reshape(-1, pairs)
    assert len(epochs) == 3 * batch_size
    for epoch in epochs:
        assert sorted(epoch) == list(range(pairs))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        tuple(step_indices(step, batch_size=50, pairs=50, seed=seed))
        for seed in range(4)
        for step in range(4)
    ]
    assert len(set(orders)) == 16
    assert tuple(range(50)) not in orders


def test_a_step_depends_on_its_number_alone() -> None:
    wanted = {"batch_size": 3, "pairs": 10, "seed": 7}
    forwards = [step_indices(step, **wanted).tolist() for step in range(20)]
    backwards = [step_indices(step, **wanted).tolist() for step in reversed(range(20))]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize(
    ("batch_size", "longest", "expected"),
    [(8, 256, 8), (8, 257, 4), (6, 1024, 2), (6, 600, 3), (8, 2048, 1), (8, 9000, 1), (1, 10, 1)],
)
def test_auto_takes_the_largest_divisor_under_4096_padded_tokens(
    batch_size: int, longest: int, expected: int
) -> None:
    assert auto_micro_batch_size(batch_size, longest) == expected
