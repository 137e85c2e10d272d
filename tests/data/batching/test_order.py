"""The stream of pairs: whole shuffled epochs, units of like pairs, groups kept together."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from orpo_mlx.data.batching.order import EpochOrder, pack_blocks
from tests.counting import count_calls
from tests.data.rows import groups_of

ALONE = -1


def order(
    keys: np.ndarray,
    size: int,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    together: bool = False,
) -> EpochOrder:
    columns = keys.reshape(len(keys), -1)
    groups = np.full(len(keys), ALONE) if groups is None else groups
    return EpochOrder(columns, groups, unit_size=size, seed=seed, together=together)


def epoch_units(made: EpochOrder, pairs: int, size: int, epoch: int = 0) -> np.ndarray:
    """(U, size) the units of an epoch that begins with one."""
    assert pairs % size == 0
    first = epoch * pairs // size
    return np.array([made.unit(first + n) for n in range(pairs // size)])


def partners(units: np.ndarray) -> set[tuple[int, int]]:
    return {(a, b) for unit in units.tolist() for a in unit for b in unit if a < b}


def like_ultrafeedback(pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each pair: log-normal, median 600, one in twenty beyond 2,200."""
    return np.exp(rng.normal(np.log(600), 0.8, pairs)).astype(np.int64)


def waste(lengths: np.ndarray, units: np.ndarray) -> float:
    """The share of padding where every pair is padded to the longest of its unit."""
    rows = lengths[units]
    return 1 - rows.sum() / (rows.max(axis=1) * rows.shape[1]).sum()


# The stream


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 7, 8, 12, 30, 97, 300])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kinds", [1, 3, 50])
def test_the_stream_is_one_permutation_of_all_pairs_after_another(
    pairs: int, size: int, kinds: int
) -> None:
    rng = np.random.default_rng(pairs * size)
    groups = rng.integers(ALONE, kinds, pairs)
    together = bool(rng.integers(2))
    made = order(rng.integers(0, 9, (pairs, 2)), size, groups=groups, together=together)
    batches = [made.unit(n) for n in range(-(-5 * pairs // size))]
    assert {batch.shape for batch in batches} == {(size,)}
    epochs = np.concatenate(batches)[: 5 * pairs].reshape(5, pairs)
    assert (np.sort(epochs, axis=1) == np.arange(pairs)).all()


def test_a_unit_depends_on_nothing_but_its_number() -> None:
    keys = np.random.default_rng(0).integers(0, 99, 50)
    groups = np.arange(50) % 3
    wanted = [order(keys, 4, groups=groups).unit(n).tolist() for n in range(60)]
    used = order(keys, 4, groups=groups)
    assert [used.unit(n).tolist() for n in range(60)] == wanted
    assert [used.unit(n).tolist() for n in reversed(range(60))] == wanted[::-1]


def test_what_is_returned_may_be_changed_without_changing_the_stream() -> None:
    made = order(np.arange(8), 4)
    before = made.unit(0).tolist()
    made.unit(0)[:] = 0
    assert made.unit(0).tolist() == before


def test_seeds_and_epochs_differ() -> None:
    keys = np.arange(60)
    epochs = [
        tuple(epoch_units(order(keys, 4, seed=seed), 60, 4, epoch).ravel())
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len(set(epochs)) == 25


def test_units_of_one_pair_are_a_plain_permutation() -> None:
    keys, groups = np.arange(20), np.arange(20) // 5
    for epoch in range(3):
        plain = np.random.default_rng([7, epoch]).permutation(20)
        made = order(keys, 1, groups=groups, seed=7)
        assert epoch_units(made, 20, 1, epoch).ravel().tolist() == plain.tolist()


def test_names_of_groups_mean_nothing() -> None:
    keys, groups = np.arange(40), np.arange(40) % 4 - 1
    renamed = np.where(groups < 0, -1, groups * 1000 + 5)
    one, other = (order(keys, 4, groups=names) for names in (groups, renamed))
    assert (epoch_units(one, 40, 4) == epoch_units(other, 40, 4)).all()


# A true shuffle


@pytest.mark.parametrize("together", [False, True])
def test_every_pair_is_as_likely_in_any_unit_as_in_any_other(together: bool) -> None:
    pairs, size, seeds = 48, 4, 3000
    rng = np.random.default_rng(0)
    keys, groups = rng.integers(0, 1000, pairs), np.repeat([-1, 0, 1, 2], [20, 15, 10, 3])
    counts = np.zeros((pairs, pairs // size))
    for seed in range(seeds):
        made = order(keys, size, groups=groups, seed=seed, together=together)
        units = epoch_units(made, pairs, size)
        counts[units.ravel(), np.repeat(np.arange(pairs // size), size)] += 1
    expected = seeds / (pairs // size)
    chi_square = ((counts - expected) ** 2 / expected).sum(axis=1)
    # 11 degrees of freedom: 99.999 % lie under 43; 48 pairs.
    assert chi_square.max() < 43
    assert 9 < chi_square.mean() < 13


# With and without pairs that straddle two epochs.
@pytest.mark.parametrize(("pairs", "together"), [(1000, False), (1003, False), (1003, True)])
def test_neither_length_nor_group_predicts_when_a_pair_comes(pairs: int, together: bool) -> None:
    rng = np.random.default_rng(1)
    lengths = like_ultrafeedback(pairs, rng)
    groups = np.where(lengths > 900, 0, rng.integers(ALONE, 3, pairs))
    of_length, of_group = [], []
    for seed in range(200):
        made = order(lengths, 4, groups=groups, seed=seed, together=together)
        stream = np.concatenate([made.unit(n) for n in range(pairs // 4 + 1)])[:pairs]
        location = np.empty(pairs)
        location[stream] = np.arange(pairs)
        of_length.append(np.corrcoef(lengths, location)[0, 1])
        of_group.append(np.corrcoef(groups == 0, location)[0, 1])
    # An epoch of 250 units: each seed's correlation has a spread of at most 1 / sqrt(250) = 0.063,
    # the mean of 200 seeds one of 0.0045.
    for correlations in (of_length, of_group):
        assert abs(np.mean(correlations)) < 0.015
        assert np.std(correlations) < 0.075


@pytest.mark.parametrize(("pairs", "size"), [(12, 2), (40, 4), (200, 4), (2000, 2), (2000, 8)])
def test_partners_change_from_epoch_to_epoch_though_no_two_pairs_are_of_one_length(
    pairs: int, size: int
) -> None:
    made = order(np.random.default_rng(0).permutation(pairs), size)
    epochs = [partners(epoch_units(made, pairs, size, epoch)) for epoch in range(10)]
    again = [len(a & b) / len(a) for a, b in pairwise(epochs)]
    assert np.mean(again) < 0.4
    assert len(set.union(*epochs)) > 3 * len(epochs[0])


# Units of like pairs


@pytest.mark.parametrize(("pairs", "size", "most"), [(20_000, 4, 0.01), (400, 4, 0.07)])
def test_units_of_like_length_waste_little_of_what_a_plain_shuffle_pads(
    pairs: int, size: int, most: float
) -> None:
    rng = np.random.default_rng(2)
    lengths = like_ultrafeedback(pairs, rng)
    units = epoch_units(order(lengths, size), pairs, size)
    plain = rng.permutation(pairs).reshape(-1, size)
    assert waste(lengths, plain) > 0.35
    assert waste(lengths, units) < most


def test_units_stay_complete_in_later_epochs_of_a_set_that_the_size_does_not_divide() -> None:
    keys = np.arange(203) % 5
    made = order(keys, 4)
    batches = keys[[made.unit(n) for n in range(203)]]  # four epochs
    mixed = batches.min(axis=1) != batches.max(axis=1)
    assert mixed.sum() <= 4 * 2 * 4 + 3  # two windows of five kinds an epoch, and three straddle


def test_the_first_key_counts_before_the_second() -> None:
    rng = np.random.default_rng(3)
    keys = rng.integers(0, 3, (600, 2))
    units = keys[epoch_units(order(keys, 4), 600, 4)]  # (U, 4, 2)
    alike = [(units[:, :, k].min(axis=1) == units[:, :, k].max(axis=1)) for k in (0, 1)]
    # 2 windows of 9 kinds: at most 2 * 8 units lie across two kinds, 2 * 2 across two first keys.
    assert (~alike[0]).sum() <= 4
    assert (~(alike[0] & alike[1])).sum() <= 16


def test_pairs_of_equal_keys_stay_in_random_order() -> None:
    made = order(np.zeros(400, np.int64), 4)
    units = epoch_units(made, 400, 4)
    inside = np.sort(units, axis=1)
    # Adjacent numbers in one unit: 3 by chance, 300 if sorting restored their order.
    assert (np.diff(inside, axis=1) == 1).sum() < 15


# Groups


def test_system_prompts_in_random_interleaving_come_together_in_pure_units() -> None:
    rng = np.random.default_rng(4)
    system = rng.integers(0, 1000, (5, 300))
    which = rng.integers(0, 5, 1000)
    prompts = [np.concatenate([system[w], rng.integers(0, 1000, 40)]) for w in which]
    lengths = like_ultrafeedback(1000, rng)
    groups = groups_of(prompts, lengths, micro_batch_size=4)
    assert len(set(zip(groups, which, strict=True))) == 5
    units = epoch_units(order(lengths, 4, groups=groups), 1000, 4)
    of_unit = which[units]
    pure = (of_unit == of_unit[:, :1]).all(axis=1)
    assert pure.mean() >= 0.98  # all but the few pairs that fill no unit of their prompt
    assert waste(lengths, units) < 0.12  # 200 pairs a prompt
    # The prompts follow each other at random: one in five is followed by its like.
    assert 0.1 < (of_unit[1:, 0] == of_unit[:-1, 0]).mean() < 0.3


def test_what_all_prompts_share_leaves_the_order_untouched() -> None:
    rng = np.random.default_rng(5)
    system = rng.integers(0, 1000, 300)
    prompts = [np.concatenate([system, rng.integers(0, 1000, 40)]) for _ in range(200)]
    groups = groups_of(prompts, np.full(200, 700))
    assert (groups == ALONE).all()
    lengths = like_ultrafeedback(200, rng)
    alone, one_group = (order(lengths, 4, groups=np.full(200, name)) for name in (ALONE, 0))
    assert (epoch_units(alone, 200, 4) == epoch_units(one_group, 200, 4)).all()


def test_a_group_smaller_than_a_unit_is_of_no_use_and_of_no_effect() -> None:
    keys = np.arange(80)
    groups = np.where(keys % 8 < 3, keys // 8, ALONE)
    alone, small = order(keys, 4), order(keys, 4, groups=groups)
    assert (epoch_units(alone, 80, 4) == epoch_units(small, 80, 4)).all()


def test_pairs_that_open_and_close_an_epoch_are_of_one_group_each() -> None:
    groups = np.arange(60) % 5
    made = order(np.arange(60), 8, groups=groups, together=True)
    for number in (7, 22, 37):  # four pairs of one epoch, four of the next
        unit = groups[made.unit(number)]
        assert len(set(unit[:4])) == len(set(unit[4:])) == 1


def test_pairs_that_fill_no_unit_of_their_group_stay_together() -> None:
    groups = np.repeat([ALONE, 0, 1, 2, 3, 4, 5], [10, 15, 7, 6, 5, 3, 2])
    made = order(np.arange(48), 8, groups=groups, together=True)
    for epoch in range(5):
        units = groups[epoch_units(made, 48, 8, epoch)]
        most = [max((unit == group).sum() for unit in units) for group in range(6)]
        assert most == [8, 7, 6, 5, 3, 2]
        # 7 of group 0 fill no unit, 30 in all: no more units than these need.
        assert sum(len(set(unit)) > 1 for unit in units) == 4


@pytest.mark.parametrize(
    ("sizes", "units"),
    [
        ([7, 6, 5, 3, 2], [[7], [6, 2], [5, 3]]),
        ([8, 8, 8], [[8, 4], [8, 4]]),  # the third is cut
        ([9, 9], [[9], [9]]),
        ([9, 9, 6], [[9, 3], [9, 3]]),
        ([], []),
    ],
)
def test_a_block_goes_where_it_leaves_least_room(sizes: list[int], units: list[list[int]]) -> None:
    size = 8 if 7 in sizes else 12
    blocks = [np.arange(n) + 100 * k for k, n in enumerate(sizes)]
    packed = pack_blocks(blocks, size)
    assert [list(map(len, unit)) for unit in packed] == units
    members = [member for unit in packed for part in unit for member in part.tolist()]
    assert sorted(members) == [member for block in blocks for member in block.tolist()]


# Size


def large_set(pairs: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Prompts of 400 tokens under five system prompts of 200, and the key of each pair."""
    rng = np.random.default_rng(7)
    system = rng.integers(0, 50_000, (5, 200), dtype=np.int32)
    ids = rng.integers(0, 50_000, (pairs, 400), dtype=np.int32)
    ids[:, :200] = system[rng.integers(0, 5, pairs)]
    return list(ids), like_ultrafeedback(pairs, rng)[:, None]


def test_four_times_the_pairs_are_ordered_with_four_times_the_calls() -> None:
    def calls(pairs: int) -> int:
        prompts, keys = large_set(pairs)

        def first_unit() -> None:
            groups = groups_of(prompts, keys[:, 0])
            EpochOrder(keys, groups, unit_size=4, seed=0).unit(0)

        return count_calls(first_unit)

    assert calls(4000) < 4.4 * calls(1000)  # a tenth more for what is sorted


def test_large_sets_are_ordered_in_little_memory() -> None:
    pairs = 20_000
    prompts, keys = large_set(pairs)
    tracemalloc.start()
    groups = groups_of(prompts, keys[:, 0])
    for_groups = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    EpochOrder(keys, groups, unit_size=4, seed=0).unit(0)
    for_order = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert for_groups < sum(prompt.nbytes for prompt in prompts)
    assert for_order < 200 * pairs  # bytes: some arrays of 8 bytes a pair
