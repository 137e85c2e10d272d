"""Which pairs form a step: not a matter of its micro-batches, and hardly any more work for it."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks.workloads import WORKLOADS, draw_pairs
from orpo_mlx.data.batching.prefix_tree import build_batch
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.training import loop
from orpo_mlx.training.optim import Optimizer
from orpo_mlx.training.plan import Plan, unit_size
from tests.training.runs import curve, settings
from tests.training.test_plan import MIX, conversations, log_normal, pairs_of, plan_of

pytestmark = pytest.mark.touchy

BATCH = 8
SIZES = (1, 2, 4, 8, "auto")


def workload(name: str) -> list[EncodedPair]:
    """The pairs of a benchmark."""
    drawn = draw_pairs(WORKLOADS[name], 1000)
    return [EncodedPair(*(np.array(ids, np.int32) for ids in pair), location="") for pair in drawn]


SETS = {
    "strangers": pairs_of(log_normal(60)),
    "systems": pairs_of(log_normal(60), systems=(137, 301, 612)),
    "turns": conversations(60),
    "twice": pairs_of(log_normal(20)) * 2,
}


def steps_of(plan: Plan, count: int = 24) -> list[list[int]]:
    """The pairs of each step."""
    return [sorted(np.concatenate(plan.step(step)).tolist()) for step in range(count)]


@pytest.mark.parametrize(
    ("batch_size", "units"),
    [(1, 1), (2, 2), (6, 6), (8, 8), (11, 11), (17, 1), (20, 10), (64, 8)],
)
def test_a_unit_is_eight_or_the_largest_divisor_of_the_batch_up_to_fifteen(
    batch_size: int, units: int
) -> None:
    assert unit_size(batch_size) == units


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("batch_size", [8, 12])
@pytest.mark.parametrize("kind", SETS)
def test_micro_batches_and_paths_do_not_change_which_pairs_form_a_step(
    kind: str, batch_size: int, rounded: bool
) -> None:
    pairs, given = SETS[kind], {"rounded": rounded, "batch_size": batch_size}
    sizes = [*(n for n in range(1, batch_size + 1) if batch_size % n == 0), "auto"]
    steps = [steps_of(plan_of(pairs, **given, micro_batch_size=size)) for size in sizes]
    assert steps.count(steps[0]) == len(sizes)
    assert steps_of(plan_of(pairs, **given, layout="padded")) == steps[0]
    assert steps_of(plan_of(pairs, **given, seed=1)) != steps[0]


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", SETS)
def test_compiled_micro_batches_are_whole_units_or_pairs_of_one_shape(kind: str, size: int) -> None:
    plan = plan_of(SETS[kind], rounded=True, batch_size=16, micro_batch_size=size)
    for step in range(12):
        parts = plan.step(step)
        assert {len(part) for part in parts} <= {1, min(size, 8)}
        assert sum(map(len, parts)) == 16


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_no_micro_batch_is_larger_than_was_asked_for(size: int) -> None:
    for pairs in SETS.values():
        plan = plan_of(pairs, batch_size=16, micro_batch_size=size)
        parts = [part for step in range(12) for part in plan.step(step)]
        assert max(map(len, parts)) <= size
        assert sum(map(len, parts)) == 12 * 16


def test_units_of_several_beginnings_are_not_joined_unless_a_beginning_of_all_costs_more() -> None:
    def parts(own: int, shared: int) -> list[int]:
        pairs = pairs_of([(9, 9, 9)] * 32, systems=(own,) * 4)
        system = np.arange(shared, dtype=np.int32)
        pairs = [p._replace(prompt=np.concatenate([system, p.prompt])) for p in pairs]
        plan = plan_of(pairs, batch_size=16, micro_batch_size=16)
        return [len(part) for step in range(2) for part in plan.step(step)]

    assert parts(own=100, shared=0) == [8] * 4
    assert parts(own=100, shared=600) == [8] * 4  # 7 * 100 tokens are saved
    assert parts(own=100, shared=800) == [16] * 2


def work(plan: Plan, pairs: list[EncodedPair], steps: int) -> tuple[int, int, int]:
    """Of some steps: positions, micro-batches, and pairs that are computed in smaller ones."""
    parts = [part for step in range(steps) for part in plan.step(step)]
    batches = [
        build_batch(pairs, p, rounding=plan.rounding, limit=plan.limit(p), layout=plan.layout)
        for p in parts
    ]
    short = sum(len(p) for p in parts if len(p) < plan.micro_batch_size)
    return sum(batch.computed for batch in batches), len(parts), short


GUARDED = {
    "mix": (workload("mix"), 2),
    "mix, eight a step": (workload("mix"), BATCH),
    "system": (workload("system"), 4),
    "many systems": (pairs_of([(48, 96, 96)] * 96, systems=(256,) * 12), BATCH),
    "many systems, all lengths": (pairs_of(log_normal(96), systems=(256,) * 12), BATCH),
}


Work = tuple[int, int, int]


def by_rules(
    pairs: list[EncodedPair], batch_size: int, *, rounded: bool
) -> Iterator[tuple[Work, Work]]:
    """The work of an epoch by rules 2 and by rules 3, for each size of micro-batches."""
    for size in [*(n for n in range(1, batch_size + 1) if batch_size % n == 0), "auto"]:
        given: dict[str, Any] = {"batch_size": batch_size, "micro_batch_size": size}
        plans = [plan_of(pairs, rounded=rounded, rules=rules, **given) for rules in (2, 3)]
        before, after = (work(plan, pairs, len(pairs) // batch_size) for plan in plans)
        yield before, after


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("name", GUARDED)
def test_an_epoch_takes_the_work_that_the_order_of_rules_2_took(name: str, rounded: bool) -> None:
    for before, after in by_rules(*GUARDED[name], rounded=rounded):
        assert after[0] <= 1.03 * before[0]
        assert after[1:] <= before[1:]


# Compiled, sizes that do not divide one another cannot all suit groups of one size.
@pytest.mark.parametrize("batch_size", [6, 9, 12, 15])
def test_so_it_does_with_other_batch_sizes(batch_size: int) -> None:
    pairs = pairs_of([(48, 96, 96)] * 320, systems=(256,) * 40)
    for before, after in by_rules(pairs, batch_size, rounded=False):
        assert after[0] <= 1.03 * before[0]


# Checksums of steps as they were cut before there were rules 3.
OLD = {
    "mix": [4070095993, 1293889326, 3181198602, 1631389733, 2495432977],
    "strangers": [1353768459, 3801649202, 268315046, 2439334270, 1567513633],
    "systems": [149109103, 567611679, 3356004353, 2967365200, 4241005401],
    "turns": [149109103, 1109363841, 2724703503, 801090314, 4290081288],
}


@pytest.mark.parametrize("rules", [1, 2])
def test_older_rules_keep_their_order_in_every_bit(rules: int) -> None:
    sets = {
        "mix": pairs_of(MIX),
        "strangers": pairs_of(log_normal(30)),
        "systems": SETS["systems"],
        "turns": SETS["turns"],
    }
    for name, pairs in sets.items():
        sums = []
        for rounded, size in [(False, 1), (False, 2), (False, 8), (True, 2), (True, 8)]:
            plan = plan_of(
                pairs, rounded=rounded, rules=rules, batch_size=8, micro_batch_size=size, seed=3
            )
            steps = [[part.tolist() for part in plan.step(step)] for step in range(20)]
            sums.append(zlib.crc32(repr(steps).encode()))
        assert sums == OLD[name]


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, mx.array]]:
    """The gradient of every step that is taken."""
    seen: list[dict[str, mx.array]] = []
    update = Optimizer.update

    def watched(self: Optimizer, gradient: Any, rate: float) -> float:
        seen.append(dict(tree_flatten(gradient)))
        return update(self, gradient, rate)

    monkeypatch.setattr(Optimizer, "update", watched)
    return seen


@pytest.mark.parametrize("changes", [{}, {"plain": True, "nll_on": "prompt+response"}, "rounded"])
def test_loss_and_gradient_do_not_depend_on_micro_batches(
    llama: Path,
    kindred: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gradients: list[dict[str, mx.array]],
    changes: Any,
) -> None:
    if changes == "rounded":  # as on a GPU, but not compiled
        monkeypatch.setattr(mx, "compile", lambda body: body)
        fake = SimpleNamespace(is_cpu=lambda: False)
        monkeypatch.setattr("orpo_mlx.training.build.backend", fake)
        changes = {}
    for size in SIZES:
        config = {"batch_size": BATCH, "micro_batch_size": size, "steps": 1, **changes}
        loop.train(settings(llama, kindred, tmp_path / str(size), **config))
    for name in ("loss", "grad_norm"):
        curves = [curve(tmp_path / str(size), name) for size in SIZES]
        np.testing.assert_allclose(curves[1:], [curves[0]] * 4, rtol=1e-5)
    assert len(gradients) == len(SIZES)
    for name, expected in gradients[0].items():
        for other in gradients[1:]:
            apart = np.linalg.norm(other[name] - expected)
            assert apart <= 1e-5 * max(np.linalg.norm(expected), 1e-3)
