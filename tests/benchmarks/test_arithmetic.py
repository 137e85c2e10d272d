"""Operations counted from shapes, against counts made by hand and by brute force."""

import random

import pytest

from benchmarks.arithmetic import (
    Arithmetic,
    CallShape,
    Dimensions,
    Need,
    count,
    count_calls,
    least_need,
)

LLAMA = Dimensions(
    layers=30,
    trained_layers=30,
    hidden=576,
    heads=9,
    head_dim=64,
    vocabulary=49152,
    linear=3_538_944,
    adapter=81_408,
)


def brute_force(prompts: list[list[int]], responses: list[list[int]]) -> Need:
    """Every beginning of every row in a set; a state needs the head if a response token follows."""
    beginnings, scored = set(), set()
    for prompt, response in zip(prompts, responses, strict=True):
        row = (*prompt, *response[:-1])
        for end in range(1, len(row) + 1):
            beginnings.add(row[:end])
            if end >= len(prompt):
                scored.add(row[:end])
    return Need(len(beginnings), sum(map(len, beginnings)), len(scored))


@pytest.mark.parametrize("seed", range(40))
def test_the_least_need_is_that_of_the_set_of_distinct_beginnings(seed: int) -> None:
    draw = random.Random(seed)

    def ids(longest: int) -> list[int]:
        # Two kinds of tokens: rows share beginnings of every length, some contain others.
        return [draw.randrange(2) for _ in range(draw.randint(1, longest))]

    system = ids(6)
    prompts = [system + ids(5) for _ in range(draw.randint(1, 4))] * 2
    responses = [ids(7) for _ in prompts]
    assert least_need(prompts, responses) == brute_force(prompts, responses)


def test_a_shared_system_prompt_is_needed_once() -> None:
    prompts = [[*range(512), 1000 + n] for n in range(4)] * 2
    responses = [[2000 + 10 * n, 5, 6] for n in range(8)]
    # 512 shared, 4 ends of prompts, 8 responses without their last token
    assert least_need(prompts, responses).tokens == 512 + 4 + 8 * 2


def test_linear_layers_cost_two_operations_a_weight_forward_and_two_backward() -> None:
    counted = count_calls([CallShape(2, 100, 0)], 0, LLAMA)
    assert counted.linear == 4 * 3_538_944 * 30 * 200
    assert counted.head == 0


def test_attention_counts_the_rectangle_of_queries_and_keys() -> None:
    # q k^T and its product with v, 2 operations a head dimension each; twice that backward
    one_block = LLAMA._replace(layers=1, trained_layers=1)
    counted = count_calls([CallShape(3, 10, 50)], 0, one_block)
    assert counted.attention == 3 * 10 * 60 * 9 * 64 * 2 * (2 + 4)


def test_blocks_below_the_first_adapted_one_have_no_backward() -> None:
    need = Need(tokens=1000, keys=500_000, scored=100)
    whole, upper = count(need, LLAMA), count(need, LLAMA._replace(trained_layers=15))
    assert upper.linear * 4 == whole.linear * 3
    assert upper.attention * 3 == whole.attention * 2
    assert upper.adapter * 2 == whole.adapter
    assert upper.head == whole.head


def test_a_kept_trunk_saves_the_blocks_below() -> None:
    need, upper = Need(1000, 500_000, 100), LLAMA._replace(trained_layers=15)
    kept = count(need, upper, kept_trunk=True)
    assert kept.linear * 2 == count(need, LLAMA).linear
    assert kept.adapter == count(need, upper).adapter


def test_checkpointing_runs_the_adapted_blocks_once_more() -> None:
    need = Need(1000, 500_000, 100)
    plain, again = count(need, LLAMA), count(need, LLAMA, recomputed=30)
    assert again.linear * 2 == plain.linear * 3
    assert again.head == plain.head


def test_the_figures_of_a_padded_tool_and_of_the_tree() -> None:
    # 4 pairs of prompt 48, responses 64: the peer feeds 2 x 4 rows of 111, head everywhere
    peer = sum(count_calls([CallShape(4, 111, 0)] * 2, 888, LLAMA))
    tree = sum(count_calls([CallShape(4, 48, 0), CallShape(8, 63, 48)], 8 * 64 - 4, LLAMA))
    assert peer / tree == pytest.approx(1.36, abs=0.02)


def test_parts_add_up_for_an_empty_step() -> None:
    assert count(Need(0, 0, 0), LLAMA) == Arithmetic(0, 0, 0, 0)
