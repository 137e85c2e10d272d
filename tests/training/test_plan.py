"""Which pairs a step computes together: parts as given, little padding, few compiled shapes."""

from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.batching.prefix_tree import Batch, build_batch
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.run_folder.settings import RULES
from orpo_mlx.training.forward_path import arrays_of
from orpo_mlx.training.plan import MAX_SHAPES, Plan, auto_micro_batch_size
from tests import tiny

# Lengths of prompt, chosen, rejected, as UltraFeedback's are.
MIX = [
    (132, 159, 172), (9, 810, 512), (79, 395, 280), (63, 455, 185), (79, 132, 316),
    (99, 336, 150), (124, 123, 414), (132, 289, 306), (21, 68, 80), (255, 251, 489),
    (226, 266, 280), (92, 422, 104), (72, 272, 811), (51, 108, 155), (289, 195, 581),
    (16, 506, 474),
]  # fmt: skip


def pairs_of(lengths: Any, seed: int = 0, *, systems: tuple[int, ...] = (0,)) -> list[EncodedPair]:
    """Pairs of random tokens with these lengths, in turn under system prompts of those lengths."""
    random = np.random.default_rng(seed)
    beginnings = [random.integers(0, 1000, n).astype(np.int32) for n in systems]
    pairs = []
    for number, shape in enumerate(lengths):
        parts = [random.integers(0, 1000, n).astype(np.int32) for n in shape]
        parts[0] = np.concatenate([beginnings[number % len(systems)], parts[0]])
        pairs.append(EncodedPair(*parts, location=""))
    return pairs


def log_normal(count: int, seed: int = 0) -> np.ndarray:
    """(count, 3) lengths like UltraFeedback's: medians 100, 250, 200, the longest cut off."""
    random = np.random.default_rng(seed)
    logs = np.log([100, 250, 200]) + [1.0, 0.8, 0.8] * random.standard_normal((count, 3))
    return np.clip(np.exp(logs), 4, 1000).astype(int)


def plan_of(
    pairs: list[EncodedPair],
    *,
    rounded: bool = False,
    layout: str = "tree",
    rules: int = RULES,
    **changes: Any,
) -> Plan:
    config = TrainConfig.model_validate({"model": "m", "data": ["d"], "output": "o"} | changes)
    return Plan(pairs, config, rounded=rounded, layout=layout, rules=rules)


def signature(batch: Batch) -> str:
    """What a compiled step is made for: every array's shape, and what is not an array."""
    leaves = [v for _, v in tree_flatten(arrays_of(batch))]
    return repr([getattr(leaf, "shape", leaf) for leaf in leaves])


@pytest.mark.parametrize(
    ("batch_size", "longest", "shared", "expected"),
    [
        (8, 256, 0, 8), (8, 257, 0, 4), (6, 1024, 0, 2), (6, 600, 0, 3), (8, 2048, 0, 1),
        (8, 9000, 0, 1), (1, 10, 0, 1), (8, 256, 96, 4), (8, 244, 96, 8), (2, 10, 5000, 1),
    ],
)  # fmt: skip
def test_auto_takes_the_largest_divisor_under_2048_tokens(
    batch_size: int, longest: int, shared: int, expected: int
) -> None:
    assert auto_micro_batch_size(batch_size, longest, shared) == expected


def test_auto_counts_what_pairs_share_once() -> None:
    lengths = [(100, 200, 200)] * 16
    auto = {"batch_size": 16, "micro_batch_size": "auto"}
    assert plan_of(pairs_of(lengths), **auto).micro_batch_size == 4  # 498 tokens a pair
    assert plan_of(pairs_of(lengths, systems=(1000,)), **auto).micro_batch_size == 2
    # Each a system prompt of its own: 1498 tokens a pair.
    own = plan_of(pairs_of(lengths, systems=(1000,) * 16), **auto)
    assert own.micro_batch_size == 1


def test_auto_counts_every_row_where_rows_are_computed_whole() -> None:
    pairs = pairs_of([(100, 200, 150)] * 16)
    auto = {"batch_size": 16, "micro_batch_size": "auto"}
    assert plan_of(pairs, **auto).micro_batch_size == 4  # 448 tokens a pair
    # Two rows of 300 a pair, for whom the prompt is shared or not.
    assert plan_of(pairs, **auto, layout="padded").micro_batch_size == 2
    shared = pairs_of([(100, 200, 150)] * 16, systems=(300,))
    assert plan_of(shared, **auto).micro_batch_size == 2
    assert plan_of(shared, **auto, layout="padded").micro_batch_size == 1


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(("batch_size", "micro"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_steps_go_through_all_pairs_in_micro_batches_of_the_given_size(
    batch_size: int, micro: int, rounded: bool
) -> None:
    pairs = pairs_of(log_normal(24))
    plan = plan_of(pairs, rounded=rounded, batch_size=batch_size, micro_batch_size=micro)
    for epoch in range(3):
        seen: list[int] = []
        for step in range(24 // batch_size):
            parts = plan.step(epoch * (24 // batch_size) + step)
            assert sum(map(len, parts)) == batch_size
            # Whole, or pair by pair where their shapes differ.
            sizes = {len(part) for part in parts}
            assert sizes == {micro} or (rounded and sizes <= {1, micro})
            seen.extend(np.concatenate(parts).tolist())
        assert sorted(seen) == list(range(24))


@pytest.mark.parametrize("rounded", [False, True])
def test_a_step_depends_on_its_number_alone(rounded: bool) -> None:
    wanted = {"rounded": rounded, "batch_size": 4, "micro_batch_size": 2, "seed": 7}
    pairs = pairs_of(log_normal(30))  # no multiple of the batch
    plan = plan_of(pairs, **wanted)
    forwards = [[part.tolist() for part in plan.step(step)] for step in range(25)]
    backwards = [[p.tolist() for p in plan_of(pairs, **wanted).step(s)] for s in range(24, -1, -1)]
    assert forwards == backwards[::-1]
    assert forwards != [
        [p.tolist() for p in plan_of(pairs, **wanted | {"seed": 8}).step(s)] for s in range(25)
    ]


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("rounded", [False, True])
def test_under_15_percent_of_mix_is_padding(rounded: bool, micro: int) -> None:
    for seed in range(4):
        pairs = pairs_of(MIX)
        plan = plan_of(pairs, rounded=rounded, batch_size=2, micro_batch_size=micro, seed=seed)
        batches = [
            build_batch(pairs, part, rounding=plan.rounding, limit=plan.limit(part))
            for step in range(8)
            for part in plan.step(step)
        ]
        padding = sum(b.padding for b in batches) / sum(b.computed for b in batches)
        assert plan.sample()[0] == padding < 0.15


SETS = {
    "strangers": (0,),
    "one system prompt": (301,),
    "three system prompts": (137, 301, 612),
    "turns": (),
}


def conversations(count: int) -> list[EncodedPair]:
    """Prompts that continue those before them, and responses that begin alike."""
    random = np.random.default_rng(0)

    def ids(most: int) -> np.ndarray:
        return random.integers(1, tiny.VOCABULARY, random.integers(1, most)).astype(np.int32)

    pairs: list[EncodedPair] = []
    for number in range(count):
        before = pairs[-1].prompt if number % 8 else ids(30)
        alike = ids(20)
        responses = [np.concatenate([alike, ids(200)]) for _ in range(2)]
        pairs.append(
            EncodedPair(np.concatenate([before, ids(90)]), *responses, location=str(number))
        )
    return pairs


@pytest.mark.parametrize("nll_on", ["response", "prompt+response"])
@pytest.mark.parametrize("kind", SETS)
def test_few_shapes_are_compiled_and_none_in_a_late_epoch(kind: str, nll_on: str) -> None:
    count, epochs = 400, 4
    pairs = (
        conversations(count) if kind == "turns" else pairs_of(log_normal(count), systems=SETS[kind])
    )
    plan = plan_of(pairs, rounded=True, batch_size=4, micro_batch_size=2, nll_on=nll_on)
    known: set[str] = set()
    for epoch in range(epochs):
        steps = range(epoch * count // 4, (epoch + 1) * count // 4)
        parts = [part for step in steps for part in plan.step(step)]
        batches = [
            build_batch(pairs, part, nll_on=nll_on, rounding=plan.rounding, limit=plan.limit(part))
            for part in parts
        ]
        signatures = {signature(batch) for batch in batches}
        new = len(signatures - known)
        known |= signatures
    # Of each shape that a pair can have, one alone and two together.
    assert len(known) <= 2 * MAX_SHAPES
    assert new == 0
