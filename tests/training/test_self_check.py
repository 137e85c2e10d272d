"""The check at the start of a run: a path that is not exact is found, reported, and not used."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.events import Event
from orpo_mlx.model import lora, tree_forward
from orpo_mlx.model.base import load_base
from orpo_mlx.training.checks import self_check
from orpo_mlx.training.checks.self_check import check_pair, choose_path, measure_gap
from orpo_mlx.training.evaluate import evaluate_encoded
from orpo_mlx.training.forward_path import arrays_of, fast_path
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import notices, rows, settings
from tests.twin import CAP

pytestmark = pytest.mark.touchy

LENGTHS = [(40, 30, 50), (90, 100, 60), (20, 8, 12)]
ADAPTER = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own."""
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "self-check"


def random_pairs(lengths: list[tuple[int, int, int]] = LENGTHS) -> list[EncodedPair]:
    random = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return random.integers(1, tiny.VOCABULARY, count).astype(np.int32)

    return [EncodedPair(ids(p), ids(c), ids(r), f"row {n}") for n, (p, c, r) in enumerate(lengths)]


def base_with_adapter(folder: Path, family: str = "llama", **changes: Any) -> Any:
    base = load_base(str(tiny.save_base(folder, family, **changes)))
    targets = lora.find_targets(base.model, ["all-linear"], -1)
    lora.attach(base.model, targets, kind="lora", rank=4, scale=2.0, dropout=0.1, bits=base.bits)
    base.model.train()
    return base


def plant_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level after the first begins one position too far."""
    right = tree_forward.PrefixKVCache.fork

    def shifted(self: tree_forward.PrefixKVCache, rows: mx.array) -> tree_forward.PrefixKVCache:
        new = right(self, rows)
        new.offset += 1
        return new

    monkeypatch.setattr(tree_forward.PrefixKVCache, "fork", shifted)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_exact_path_is_used_and_leaves_no_trace(tmp_path: Path, checkpoint: bool) -> None:
    base = base_with_adapter(tmp_path / "base")
    before = {n: np.array(v) for n, v in tree_flatten(base.model.parameters())}
    state = [np.array(s) for s in mx.random.state]
    events: list[Event] = []
    path = choose_path(base, random_pairs(), events.append, adapter=ADAPTER, checkpoint=checkpoint)
    assert (path.layout, path.checkpoint, events) == ("tree", checkpoint, [])
    after = dict(tree_flatten(base.model.parameters()))
    assert all(np.array_equal(after[n], v) for n, v in before.items())
    assert all(np.array_equal(a, b) for a, b in zip(mx.random.state, state, strict=True))
    assert base.model.training
    gap = measure_gap(path, random_pairs()[1])
    # What the families' tests allow at most; B is not 0, else A's gradient would be.
    assert gap.logps < CAP
    assert 0 < gap.gradients < CAP


def test_a_path_that_is_not_exact_is_reported_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 16)
    llama = tiny.save_base(tmp_path / "base")
    train(settings(llama, pairs, tmp_path / "plain", plain=True))
    monkeypatch.setattr(
        "orpo_mlx.data.batching.prefix_tree.CALL_TOKENS", 2
    )  # short prompts share levels too
    plant_fault(monkeypatch)
    events: list[Event] = []
    train(settings(llama, pairs, tmp_path / "faulty"), [events.append])
    (warning,) = notices(events, warning=True)
    assert warning.startswith(f"The fast path is not exact for this model ({pairs}:")
    assert "The plain path is used; orpo-mlx doctor checks this machine." in warning
    assert rows(tmp_path / "faulty") == rows(tmp_path / "plain")


@pytest.mark.parametrize(
    ("dtype", "cause"),
    [
        (mx.float32, "."),
        (mx.bfloat16, ": its weights are finite, but bfloat16 does not hold what it computes."),
    ],
)
def test_a_gradient_of_the_model_itself_that_is_not_finite_is_what_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype, cause: str
) -> None:
    right = llama.swiglu

    def with_a_branch(gate: mx.array, x: mx.array) -> mx.array:
        """The same values; the gradient of the branch that is not taken is 0 times NaN."""
        return mx.where(gate == gate, right(gate, x), mx.sqrt(-1 - mx.abs(x)))

    monkeypatch.setattr(llama, "swiglu", with_a_branch)
    base, pairs = base_with_adapter(tmp_path / "base", dtype=dtype), random_pairs()
    events: list[Event] = []
    path = choose_path(base, pairs, events.append, adapter=ADAPTER)
    (warning,) = notices(events, warning=True)
    assert path.layout == "padded"
    assert warning.startswith(f"The model's own gradient is NaN or infinite for row 1{cause}"[:-1])
    assert warning.endswith("The fast path is not checked, the plain path is used.")
    assert "not exact" not in warning
    assert choose_path(base, pairs, events.append).layout == "tree"  # values alone are finite


def test_a_fast_path_that_gives_nan_where_the_model_does_not_is_not_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_with_adapter(tmp_path / "base")
    by_path = self_check._by_path

    def broken(*arguments: Any) -> Any:
        values, gradients = by_path(*arguments)
        return values, tree_map(lambda g: g * mx.nan, gradients)

    monkeypatch.setattr(self_check, "_by_path", broken)
    events: list[Event] = []
    assert choose_path(base, random_pairs(), events.append, adapter=ADAPTER).layout == "padded"
    (warning,) = notices(events, warning=True)
    assert "is not exact for this model (row 1: gradients are NaN or infinite)." in warning


def test_values_alone_are_checked_where_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(tiny.save_base(tmp_path / "base")))
    path = choose_path(base, random_pairs(), lambda event: None)
    assert path.layout == "tree"
    plant_fault(monkeypatch)
    gap = measure_gap(path, random_pairs()[1], gradients=False)
    assert gap.logps > 10 * CAP
    assert gap.gradients == 0


def test_a_verdict_is_kept_by_what_it_depends_on(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    right = self_check.measure_gap
    monkeypatch.setattr(
        self_check, "measure_gap", lambda *a, **k: measured.append(1) or right(*a, **k)
    )
    base, pairs = base_with_adapter(tmp_path / "base"), random_pairs()

    def checks(base: Any = base, pairs: list[EncodedPair] = pairs, **changes: Any) -> int:
        measured.clear()
        choose_path(base, pairs, lambda event: None, **{"adapter": ADAPTER, **changes})
        return len(measured)

    assert [checks(), checks()] == [1, 0]
    assert [checks(checkpoint=True), checks(checkpoint=True)] == [1, 0]
    assert checks(adapter={**ADAPTER, "lora_parameters": {"rank": 8}}) == 1
    assert checks(adapter=None) == 1
    assert checks(pairs=random_pairs([(80, 90, 70)])) == 1
    assert checks(base_with_adapter(tmp_path / "other", seed=1)) == 1
    assert checks(plain=True) == 0
    for file in cache.iterdir():
        file.write_text(json.dumps({"logps": 0.0}))
    assert [checks(), checks()] == [1, 0]
    for file in cache.iterdir():
        file.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert [checks(), checks()] == [1, 1]


@pytest.mark.parametrize(
    ("rows_", "config", "expected"),
    [
        ([300, 200, 150, 90], {}, 2),  # the shortest from 128 on
        ([100, 90], {}, 0),  # the longest, if all are shorter
        ([300, 200, 150], {"sliding_window": 180}, 1),  # past the window
        ([300, 200, 150], {"sliding_window": 4096}, 2),  # a window that no pair passes
        ([300, 900, 150], {"rope_scaling": {"original_max_position_embeddings": 400}}, 1),
        ([300, 900, 600], {"text_config": {"attention_chunk_size": 500, "window_size": 200}}, 2),
    ],
)
def test_the_pair_is_past_every_threshold_that_the_data_pass(
    rows_: list[int], config: dict[str, Any], expected: int
) -> None:
    assert check_pair(rows_, config) == expected
    assert check_pair(np.array(rows_, np.int32), config) == expected  # as lengths are kept


def test_the_pair_that_is_checked_is_the_one_past_the_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    right = self_check.measure_gap
    monkeypatch.setattr(
        self_check, "measure_gap", lambda p, pair, **k: checked.append(pair) or right(p, pair, **k)
    )
    choose_path(base_with_adapter(tmp_path / "base"), random_pairs(), lambda event: None)
    assert [pair.location for pair in checked] == ["row 1"]  # 190 tokens; the others 90 and 32


def test_dynamic_rope_past_its_length_runs_row_by_row(tmp_path: Path) -> None:
    changes = {
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "bias": False,
        "max_position_embeddings": 64,
        "rope_traditional": False,
    }
    base = load_base(str(tiny.save_base(tmp_path / "base", "internlm2", **changes)))
    events: list[Event] = []
    path = choose_path(base, random_pairs(), events.append)
    (text,) = notices(events)
    assert path.layout == "rows"
    assert text.startswith("Every response runs alone: rope of type dynamic depends on the length")
    settings_ = {"beta": 0.1, "nll_on": "response", "batch_size": 3}
    got = evaluate_encoded(path, random_pairs(), **settings_)["logps/rejected"]
    for value, pair in zip(got, random_pairs(), strict=True):
        ids = mx.array(np.concatenate([pair.prompt, pair.rejected]))
        logits = base.model(ids[None, :-1])[0]
        logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        start = len(pair.prompt)
        own = mx.take_along_axis(logps[start - 1 :], ids[start:, None], axis=1)
        assert value == pytest.approx(own.mean().item(), abs=1e-5)  # float32, other sums
    short = [(20, 20, 20)]
    assert choose_path(base, random_pairs(short), events.append).layout == "tree"


def test_a_cache_class_that_nobody_has_seen_means_the_plain_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NewCache:
        pass

    base = load_base(str(tiny.save_base(tmp_path / "base")))
    monkeypatch.setattr(tree_forward, "make_prompt_cache", lambda model: [NewCache()])
    events: list[Event] = []
    path = choose_path(base, random_pairs(), events.append)
    assert path.layout == "padded"
    assert notices(events) == [
        "The plain path is used for this model: it uses a NewCache, which the prefix tree "
        "cannot continue."
    ]


def test_the_check_takes_no_more_memory_than_the_step(tmp_path: Path) -> None:
    base = base_with_adapter(tmp_path / "base", num_hidden_layers=8)
    path, _ = fast_path(base.model)
    pair = random_pairs([(200, 150, 150)])[0]
    arrays = arrays_of(path.batch([pair], [0], "response"))
    weights = base.model.trainable_parameters()

    def loss(weights: Any) -> mx.array:
        base.model.update(weights)
        return path.token_logps(arrays[0], arrays[1]).sum()

    mx.eval(weights)
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss)(weights))
    step = mx.get_peak_memory()
    base.model.update(weights)
    mx.reset_peak_memory()
    measure_gap(path, pair)
    # Besides the step's it holds two gradients of the adapter, which are small.
    assert mx.get_peak_memory() <= 1.1 * step


def test_float32_and_half_precision_of_one_base_have_verdicts_of_their_own(
    tmp_path: Path, cache: Path
) -> None:
    folder = tiny.save_base(tmp_path / "base", dtype=mx.bfloat16)
    for keep in (True, False):
        base = load_base(str(folder), keep_quantized=keep)
        events: list[Event] = []
        assert choose_path(base, random_pairs(), events.append).layout == "tree"
        assert notices(events, warning=True) == []
    assert len(list(cache.iterdir())) == 2


def test_model_code_that_raises_on_the_tree_goes_plain(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_with_adapter(tmp_path / "base")
    before = dict(tree_flatten(base.model.trainable_parameters()))

    def asking(self: tree_forward.PrefixKVCache, *arguments: Any) -> Any:
        raise AttributeError("'PrefixKVCache' object has no attribute 'nbytes'")

    with monkeypatch.context() as patch:
        patch.setattr(tree_forward.PrefixKVCache, "update_and_fetch", asking)
        events: list[Event] = []
        path = choose_path(base, random_pairs(), events.append, adapter=ADAPTER)
    (warning,) = notices(events, warning=True)
    assert path.layout == "padded"
    assert "AttributeError: 'PrefixKVCache' object has no attribute 'nbytes'" in warning
    after = dict(tree_flatten(base.model.trainable_parameters()))
    assert all(mx.array_equal(after[name], value) for name, value in before.items())
    assert choose_path(base, random_pairs(), events.append, adapter=ADAPTER).layout == "tree"


def test_the_drift_is_measured_on_the_path_that_was_trained_on(
    quantized_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    layouts = []
    right = tree_forward.plain_logits

    def seen(model: Any, calls: Any) -> mx.array:
        layouts.append("quantized" if "scales" in model.layers[0].self_attn.q_proj else "float32")
        return right(model, calls)

    monkeypatch.setattr("orpo_mlx.training.forward_path.plain_logits", seen)
    given = {"valid_data": [str(pairs)], "plain": True, "target_modules": "v_proj", "steps": 1}
    train(settings(quantized_llama, pairs, tmp_path / "run", **given))
    assert set(layouts) == {"float32", "quantized"}


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_check_of_recurrent_layers_takes_less_than_a_step(
    tmp_path: Path, checkpoint: bool
) -> None:
    """Its reference is mlx-lm's loop, which would keep a state for each of 600 tokens."""
    model = base_with_adapter(tmp_path / "base", "qwen3_5").model
    path, _ = fast_path(model, checkpoint=checkpoint)
    reference = self_check._reference(path)
    assert (path.form, reference.form) == ("chunked", "spans")
    (pair,) = random_pairs([(300, 300, 250)])

    def peak(work: Any, by: Any) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        work(by, pair, True)
        return mx.get_peak_memory() - before

    step = peak(self_check._by_path, path)
    assert peak(self_check._by_model, reference) < step


def test_two_gradients_of_zero_are_equal() -> None:
    zero, one = {"w": mx.zeros((3,))}, {"w": mx.ones((3,))}
    assert self_check._relative(zero, zero) == 0
    assert self_check._relative(one, zero) == np.inf


def test_a_verdict_on_recurrent_layers_depends_on_form_sizes_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base_with_adapter(tmp_path / "base", "qwen3_5").model

    def facts(**how: Any) -> list[Any]:
        return self_check._recurrence_facts(fast_path(model, **how)[0])

    assert facts(form="loop") == []
    form, sizes, *code = facts()
    assert (form, sizes) == ("chunked", [(2, 4, 16, 16, False)])
    assert facts(form="spans") == ["spans", sizes, *code]
    changed = tmp_path / "gated_delta.py"
    changed.write_text("another rule")
    monkeypatch.setattr(self_check.gated_delta, "__file__", str(changed))
    assert facts()[:2] == [form, sizes]
    assert facts()[2:] != code
