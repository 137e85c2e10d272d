"""The prefix tree against every family's own forward, one response alone; docs/architectures.md.

`python -m tests.model.test_families` writes that page anew.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from orpo_mlx.data.batching import Batch
from orpo_mlx.data.encoding import EncodedPair
from orpo_mlx.model import lora
from orpo_mlx.model.forward import (
    LevelArrays,
    LevelKV,
    hidden_states,
    level_caches,
)
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.training import path as paths
from orpo_mlx.training.evaluate import pair_outputs
from tests import tiny
from tests.families import FAST, REACH, VOCABULARY

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
# Float32, the same sums in another order. Seen: 6e-6 and 7e-6; planted faults: from 2e-3 and 3e-2.
LOGP_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # relative L2 of each tensor
SAME_GRADIENT = 5e-6  # two float32 sums of a few terms; another dropout mask: 1e-1
BETA = 0.5
# A near tie between experts would be decided by rounding: the gap of every token's router scores
# (logits) at the top k. Found by trying seeds.
SMALLEST_GAP = 1e-3
SEEDS = {
    "mixtral": 1, "qwen3_moe": 3, "gemma4_text": 26, "gpt_oss": 1, "deepseek_v3": 77,
    "qwen3_next": 5,
}  # fmt: skip
EXPERTS, TOP_K = 4, 2
# Random weights as trained ones are: routers that tell their experts apart; gemma4 divides neither
# its queries (by the root of the head's size) nor the router's input (by that of the hidden size).
ROUTERS = ("mlp.gate.weight", "block_sparse_moe.gate.weight", "router.weight", "router.proj.weight")
SCALES = dict.fromkeys(ROUTERS, 3.0)
GEMMA4_SCALES = SCALES | {"router.scale": 8.0, "q_norm.weight": 0.18}
RECURRENT = {"lfm2", "qwen3_next", "qwen3_5", "falcon_h1", "mamba2"}
BITS = (None, 4)


def build_pairs() -> list[EncodedPair]:
    """Three ragged pairs after one system prompt; LAYOUT says what they become."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return random.integers(1, VOCABULARY, count).astype(np.int32)

    system, alike, whole = tokens(34), tokens(3), tokens(5)
    prompts = [np.concatenate([system, tokens(n)]) for n in (40, 43, 13)]
    responses = [
        (np.concatenate([alike, tokens(2)]), np.concatenate([alike, tokens(30)])),
        (tokens(27), tokens(30)),
        (whole, np.concatenate([whole, tokens(20)])),  # the beginning of the other
    ]
    return [EncodedPair(p, c, r, "") for p, (c, r) in zip(prompts, responses, strict=True)]


PAIRS = build_pairs()
# Rows, length and parent of every call.
LAYOUT = [
    (1, 34, -1),  # the system prompt
    (1, 18, 0),  # the last pair's prompt and its shorter response
    (1, 19, 1),  # the rest of its longer one
    (2, 43, 0),  # two pair prefixes of equal length, one of them with three response tokens
    (1, 2, 3),  # a tail of one token, filled up to two
    (3, 29, 3),  # tails of 29, 26 and 29 tokens
]


class Values(NamedTuple):
    """Log-probs of each response's tokens, chosen of all pairs first, and the loss's gradient."""

    logps: list[np.ndarray]
    gradient: dict[str, np.ndarray]


class Errors(NamedTuple):
    logps: float  # largest difference
    gradient: float  # largest relative L2 of a tensor

    @property
    def within(self) -> bool:
        return self.logps <= LOGP_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


# ---- models


def build_model(
    family: str,
    bits: int | None = None,
    *,
    names: tuple[str, ...] = ("all-linear",),
    kind: str = "lora",
    dropout: float = 0.0,
    seed: int | None = None,
) -> nn.Module:
    """A tiny model past whose windows and thresholds PAIRS go, ready to be trained."""
    seed = SEEDS.get(family, 0) if seed is None else seed
    model, _ = tiny.build_model(family, seed, **REACH.get(family, {}))
    parameters = tree_flatten(model.parameters())
    model.update(tree_unflatten([(k, _lively(family, k, v)) for k, v in parameters]))
    if bits:
        nn.quantize(model, 32, bits, class_predicate=lambda _, module: _quantizable(module))
    if kind == "full":
        lora.unfreeze_blocks(model, -1)
    else:
        targets = lora.find_targets(model, list(names), -1)
        lora.attach(model, targets, kind=kind, rank=4, scale=2.0, dropout=dropout, bits={})
        for _, module in model.named_modules():
            if "lora_b" in module:
                module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    mx.eval(model.parameters())
    return model.train()


def _lively(family: str, name: str, value: mx.array) -> mx.array:
    """A parameter without the zeros and ones that would hide a fault, and of a fitting size."""
    if not mx.issubdtype(value.dtype, mx.floating):
        return value
    if value.size > 1 and mx.all(value == value.flatten()[0]):
        value = value + 0.1 * mx.random.normal(value.shape)
    scales = GEMMA4_SCALES if family == "gemma4_text" else SCALES
    return value * next((s for end, s in scales.items() if name.endswith(end)), 1.0)


def _quantizable(module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


def unquantized(model: nn.Module) -> list[str]:
    """The linear layers and embeddings that still hold floats; those of 16 inputs cannot else."""
    kinds = (nn.Linear, SwitchLinear, nn.Embedding)
    return [
        name for name, module in model.named_modules()
        if isinstance(module, kinds) and not isinstance(module, QuantizedSwitchLinear)
        and _quantizable(module)
    ]  # fmt: skip


# ---- values


def reference(model: nn.Module, pairs: list[EncodedPair] = PAIRS) -> Values:
    """One unpadded, uncached forward of each response alone by the model's own call."""

    def loss(weights: dict) -> tuple[mx.array, list[mx.array]]:
        model.update(weights)
        logps = []
        for prompt, response in [(p.prompt, r) for p in pairs for r in (p.chosen, p.rejected)]:
            ids = mx.array(np.concatenate([prompt, response]))
            logits = model(ids[None, :-1])[0].astype(mx.float32)
            log_softmax = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            scored = log_softmax[len(prompt) - 1 :]
            logps.append(mx.take_along_axis(scored, mx.array(response)[:, None], axis=-1)[:, 0])
        means = mx.stack([part.mean() for part in logps])
        return orpo_loss(means[0::2], means[1::2], BETA).loss.mean(), logps[0::2] + logps[1::2]

    return _values(model, loss, lambda logps: logps)


def by_path(
    model: nn.Module, path: paths.ForwardPath, batch: Batch, *, key: mx.array | None = None
) -> Values:
    """The same from the path's token log-probs, as a training step takes them."""
    calls, targets, weights, nll = paths.arrays_of(batch)

    def loss(trained: dict) -> tuple[mx.array, mx.array]:
        model.update(trained)
        if key is not None:
            lora.reset_dropout(model, key)
        logps = path.token_logps(calls, targets)
        given = SimpleNamespace(token_logps=lambda calls, targets: logps)
        outputs = pair_outputs(given, (calls, targets, weights, nll), beta=BETA)
        return outputs.losses.loss.mean(), logps

    with path.differentiated():
        return _values(model, loss, lambda logps: [logps[mx.array(np.flatnonzero(w))]
                                                   for w in batch.weights])  # fmt: skip


def _values(model: nn.Module, loss: Callable, by_response: Callable) -> Values:
    before = model.trainable_parameters()
    try:
        (_, logps), gradient = mx.value_and_grad(loss)(before)
        mx.eval(logps, gradient)
    finally:
        model.update(before)
    tensors = {name: np.array(value) for name, value in tree_flatten(gradient)}
    return Values([np.array(part) for part in by_response(logps)], tensors)


def errors_of(found: Values, expected: Values) -> Errors:
    pairs = zip(found.logps, expected.logps, strict=True)
    logps = max(float(np.abs(f - e).max()) for f, e in pairs)
    assert found.gradient.keys() == expected.gradient.keys()
    gradient = 0.0
    for name, wanted in expected.gradient.items():
        size = np.linalg.norm(wanted)
        assert size > 0, f"{name}: nothing would be compared"
        gradient = max(gradient, float(np.linalg.norm(found.gradient[name] - wanted) / size))
    # A NaN is within no tolerance.
    return Errors(logps, gradient)


@contextmanager
def only_the_tree() -> Iterator[list[list[int]]]:
    """The parents of the calls of every run through the tree; the plain forward is forbidden."""
    seen: list[list[int]] = []

    def counted(model: nn.Module, parts: Any, calls: Any) -> mx.array:
        seen.append([call.parent for call in calls])
        return hidden_states(model, parts, calls)

    def forbidden(*arguments: Any) -> mx.array:
        raise AssertionError("the plain path was taken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "hidden_states", counted)
        patch.setattr(paths, "plain_logits", forbidden)
        yield seen


def through_the_tree(
    model: nn.Module, *, checkpoint: bool = False, key: mx.array | None = None
) -> Values:
    """PAIRS on the fast path, which must exist and must be the one that is taken."""
    path, reason = paths.fast_path(model, checkpoint=checkpoint)
    assert reason is None, reason
    assert path.layout == "tree"
    batch = path.batch(PAIRS, range(len(PAIRS)), "response")
    with only_the_tree() as seen:
        values = by_path(model, path, batch, key=key)
    assert seen == [[parent for *_, parent in LAYOUT]]
    return values


@cache
def model_of(family: str, bits: int | None) -> nn.Module:
    return build_model(family, bits)


@cache
def expected_of(family: str, bits: int | None) -> Values:
    return reference(model_of(family, bits))


@cache
def compared(family: str, bits: int | None, checkpoint: bool) -> Errors:
    found = through_the_tree(model_of(family, bits), checkpoint=checkpoint)
    return errors_of(found, expected_of(family, bits))


# ---- what the pairs and configs exercise


def test_the_pairs_become_a_tree_with_every_kind_of_call() -> None:
    path, _ = paths.fast_path(model_of("llama", None))
    batch = path.batch(PAIRS, range(3), "response")
    assert [(*call.ids.shape, call.parent) for call in batch.calls] == LAYOUT
    assert batch.calls[3].rows.tolist() == [0, 0]
    assert batch.calls[5].rows.tolist() == [1, 0, 1]
    assert batch.padding == 1 + 3
    for weights, response in zip(
        batch.weights, [p.chosen for p in PAIRS] + [p.rejected for p in PAIRS], strict=True
    ):
        assert batch.targets[np.flatnonzero(weights)].tolist() == response.tolist()


@pytest.mark.parametrize("family", FAST)
def test_every_sequence_is_longer_than_windows_and_thresholds(family: str) -> None:
    shortest = min(len(p.prompt) + min(len(p.chosen), len(p.rejected)) - 1 for p in PAIRS)
    arguments = vars(model_of(family, None).args)
    found = list(_thresholds(arguments))
    assert all(0 < value < shortest for value in found), found
    wanted = {"sliding_window", "original_max_position_embeddings"} & {
        key for key, _ in _leaves(REACH.get(family, {}))
    }
    assert len(found) >= len(wanted)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, key)
    else:
        yield name, value


def _thresholds(arguments: dict) -> Iterator[int]:
    """Whatever a model's arguments say of windows and of the length that its rope began with."""
    for name, value in _leaves(arguments):
        if value is not None and (
            name in ("sliding_window", "original_max_position_embeddings") or "window_size" in name
        ):
            yield value


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", SEEDS)
def test_routers_are_far_from_ties(family: str, bits: int | None) -> None:
    assert smallest_gap(model_of(family, bits)) > SMALLEST_GAP


def smallest_gap(model: nn.Module) -> float:
    """The smallest gap between the last expert taken and the first left, over all tokens."""
    gaps = []
    choose = mx.argpartition

    def recorded(scores: mx.array, *arguments: Any, **named: Any) -> mx.array:
        if scores.shape[-1] == EXPERTS:
            logits = mx.log(mx.abs(scores)) if _shares(scores) else scores
            ordered = mx.sort(logits, axis=-1)  # half of the experts are taken: either way round
            gaps.append((ordered[..., TOP_K] - ordered[..., TOP_K - 1]).min().item())
        return choose(scores, *arguments, **named)

    mx.disable_compile()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mx, "argpartition", recorded)
            for pair in PAIRS:
                for response in (pair.chosen, pair.rejected):
                    mx.eval(model(mx.array(np.concatenate([pair.prompt, response]))[None, :-1]))
    finally:
        mx.enable_compile()
    return min(gaps)


def _shares(scores: mx.array) -> bool:
    """Whether the scores have been through a softmax; their logarithms then differ as logits do."""
    return bool(mx.allclose(mx.abs(scores.sum(axis=-1)), mx.ones(1), atol=1e-4))


# ---- what must hold


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAST)
def test_tree_equals_the_models_own_forward(
    family: str, bits: int | None, checkpoint: bool
) -> None:
    model = model_of(family, bits)
    if bits:
        assert not unquantized(model)
    errors = compared(family, bits, checkpoint)
    assert errors.within, errors
    if bits:
        assert not unquantized(model)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAST)
def test_dropout_is_the_same_with_and_without_checkpointing(family: str, bits: int | None) -> None:
    model, key = build_model(family, bits, dropout=0.1), mx.random.key(3)
    kept = through_the_tree(model, key=key)
    again = through_the_tree(model, checkpoint=True, key=key)
    assert not errors_of(kept, expected_of(family, bits)).within, "dropout did nothing"
    assert_same(again, kept)


def assert_same(found: Values, expected: Values) -> None:
    """Log-probs bit for bit; gradients but for the order in which those of a model's calls add."""
    errors = errors_of(found, expected)
    assert errors.logps == 0
    assert errors.gradient < SAME_GRADIENT


def other_pairs() -> dict[str, list[EncodedPair]]:
    """Trees of other shapes: without a batch prefix, without tails, without levels."""
    random = np.random.default_rng(1)

    def tokens(count: int) -> np.ndarray:
        return random.integers(1, VOCABULARY, count).astype(np.int32)

    prompt, answer = tokens(40), tokens(6)
    return {
        "one pair": [EncodedPair(prompt, tokens(20), tokens(33), "")],
        "nothing shared": [EncodedPair(tokens(n), tokens(9), tokens(20), "") for n in (40, 37)],
        "one token each": [EncodedPair(prompt, tokens(1), tokens(1), "")] * 2,
        "the same response": [EncodedPair(prompt, answer, answer, ""),
                              EncodedPair(prompt, answer, tokens(8), "")],
        "short": [EncodedPair(tokens(3), tokens(4), tokens(2), ""),
                  EncodedPair(tokens(1), tokens(1), tokens(12), "")],
    }  # fmt: skip


@pytest.mark.parametrize("rounding", [0, 2])
@pytest.mark.parametrize("shape", other_pairs())
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2", "falcon_h1", "mamba2"])
def test_trees_of_other_shapes_equal_the_models_own_forward(
    family: str, shape: str, rounding: int
) -> None:
    model, pairs = model_of(family, None), other_pairs()[shape]
    path, reason = paths.fast_path(model, checkpoint=True, rounding=rounding)
    assert reason is None
    batch = path.batch(pairs, range(len(pairs)), "response")
    with only_the_tree() as seen:
        found = by_path(model, path, batch)
    assert len(seen) == 1
    errors = errors_of(found, reference(model, pairs))
    assert errors.within, errors


TRAINED = [
    ("qwen2", ("all-linear", "lm_head"), "lora"),
    ("olmo2", ("all-linear", "lm_head", "embed_tokens"), "lora"),
    ("llama", ("all-linear", "embed_tokens"), "lora"),
    ("gemma2", ("all-linear", "embed_tokens"), "lora"),
    ("cohere2", ("embed_tokens",), "lora"),
    ("falcon_h1", ("all-linear", "embed_tokens"), "lora"),
    ("qwen2", ("all-linear", "lm_head"), "dora"),
    ("llama", (), "full"),
    ("gemma3_text", (), "full"),
    ("lfm2", (), "full"),
]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(("family", "names", "kind"), TRAINED)
def test_tree_equals_the_models_own_forward_whatever_is_trained(
    family: str, names: tuple[str, ...], kind: str, checkpoint: bool
) -> None:
    model = build_model(family, names=names, kind=kind)
    errors = errors_of(through_the_tree(model, checkpoint=checkpoint), reference(model))
    assert errors.within, errors


@pytest.mark.parametrize(("family", "names"), [c[:2] for c in TRAINED if c[2] == "lora"])
def test_dropout_in_the_head_is_the_same_when_it_runs_again(
    family: str, names: tuple[str, ...]
) -> None:
    model, key = build_model(family, names=names, dropout=0.1), mx.random.key(3)
    kept = through_the_tree(model, key=key)
    again = through_the_tree(model, checkpoint=True, key=key)
    assert_same(again, kept)


# ---- planted faults


Patch = pytest.MonkeyPatch


def offset_off_by_one(patch: Patch) -> None:
    """Each level's positions begin one later; masks stay as they are."""
    continued, make_mask = LevelKV.continued, LevelKV.make_mask

    def later(self: LevelKV, rows: mx.array) -> LevelKV:
        new = continued(self, rows)
        new.offset += 1
        return new

    def mask(self: LevelKV, *arguments: Any, **named: Any) -> Any:
        told, self.offset = self.offset, sum(keys.shape[2] for keys, _, _ in self.past)
        try:
            return make_mask(self, *arguments, **named)
        finally:
            self.offset = told

    patch.setattr(LevelKV, "continued", later)
    patch.setattr(LevelKV, "make_mask", mask)


def mask_shifted(patch: Patch) -> None:
    """Every token sees what the next one should see, window included."""

    def mask(self: LevelKV, N: int, return_array: bool = False, window_size: int | None = None):
        wider = create_causal_mask(N + 1, self.offset, window_size or self.max_size)
        return wider[1:, :-1]

    patch.setattr(LevelKV, "make_mask", mask)


def tail_sees_its_neighbour(patch: Patch) -> None:
    """In a call of tails, a row's first key and value are the row's before it."""
    update = LevelKV.update_and_fetch

    def mixed(self: LevelKV, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if len(self.past) == 2:
            keys, values = (
                mx.concatenate([mx.roll(a, 1, axis=0)[:, :, :1], a[:, :, 1:]], axis=2)
                for a in (keys, values)
            )
        return update(self, keys, values)

    patch.setattr(LevelKV, "update_and_fetch", mixed)


def _continued_as(patch: Patch, change: Callable[[LevelArrays, mx.array], LevelArrays]) -> None:
    patch.setattr(LevelArrays, "continued", change)


CONTINUED = LevelArrays.continued


def state_dropped(patch: Patch) -> None:
    """Recurrent layers begin anew in every level."""
    _continued_as(patch, lambda self, rows: LevelArrays(len(self.cache)))


def state_of_another_row(patch: Patch) -> None:
    """Recurrent layers continue the row of another pair."""
    _continued_as(patch, lambda self, rows: CONTINUED(self, mx.roll(rows, 1)))


def convolution_shifted(patch: Patch) -> None:
    """What the convolution keeps of the last tokens is one token off."""

    def shifted(self: LevelArrays, rows: mx.array) -> LevelArrays:
        new = CONTINUED(self, rows)
        new.cache[0] = mx.roll(new.cache[0], 1, axis=1)
        return new

    _continued_as(patch, shifted)


def tail_continues_its_neighbour(patch: Patch) -> None:
    """The first pair's longer tail continues the pair's other one."""
    patch.setattr(paths, "hidden_states", lambda m, p, calls: hidden_states(m, p, split(calls, 4)))


def split(calls: Any, parent: int) -> list[Any]:
    """The last call's rows in calls of their own, the second one's after another call."""
    *others, last = calls
    length, scored = last.ids.shape[1], np.array(last.scored)
    for row in range(len(last.ids)):
        own = scored[scored // length == row] - row * length
        others.append(last._replace(ids=last.ids[row : row + 1], rows=last.rows[row : row + 1],
                                    scored=mx.array(own)))  # fmt: skip
    others[-2] = others[-2]._replace(parent=parent, rows=mx.array([0]))
    return others


FAULTS: dict[str, list[Callable[[Patch], None]]] = {
    "attention": [offset_off_by_one, mask_shifted, tail_sees_its_neighbour],
    "recurrent": [
        state_dropped, state_of_another_row, convolution_shifted, tail_continues_its_neighbour,
    ],
}  # fmt: skip


def kinds_of(model: nn.Module) -> set[str]:
    """Whether a model's levels hand on keys and values, recurrent states, or both."""
    entries, kinds = list(level_caches(model)), set()
    while entries:
        entry = entries.pop()
        if isinstance(entry, (LevelKV, LevelArrays)):
            kinds.add("attention" if isinstance(entry, LevelKV) else "recurrent")
        else:
            entries.extend(entry.caches)
    return kinds


@pytest.mark.parametrize("family", FAST)
def test_planted_faults_are_seen(family: str, monkeypatch: Patch) -> None:
    """The comparison of the tests above, on the same pairs, has no room for any of them."""
    model = model_of(family, None)
    kinds = kinds_of(model)
    assert ("recurrent" in kinds) == (family in RECURRENT)
    assert ("attention" in kinds) == (family != "mamba2")
    for fault in [fault for kind in sorted(kinds) for fault in FAULTS[kind]]:
        with monkeypatch.context() as patch:
            fault(patch)
            assert not fault_errors(model, family).within, fault.__doc__


def fault_errors(model: nn.Module, family: str) -> Errors:
    path, _ = paths.fast_path(model)
    found = by_path(model, path, path.batch(PAIRS, range(len(PAIRS)), "response"))
    return errors_of(found, expected_of(family, None))


def test_a_call_cut_in_two_is_no_fault_by_itself(monkeypatch: Patch) -> None:
    """What `tail_continues_its_neighbour` does besides."""
    model = model_of("mamba2", None)
    monkeypatch.setattr(
        paths, "hidden_states", lambda m, p, calls: hidden_states(m, p, split(calls, 3))
    )
    assert fault_errors(model, "mamba2").within


# ---- docs/architectures.md

HANDED_ON = {
    "attention": "keys and values",
    "attention, recurrent": "keys and values, recurrent states",
    "recurrent": "recurrent states",
}
PLAIN = ["gemma3n"]  # known to have no fast path


def render_page() -> str:
    """The page, from the very comparisons of the tests above."""
    rows = [_fast_row(family) for family in FAST] + [_plain_row(family) for family in PLAIN]
    return INTRODUCTION + "\n".join(rows) + "\n"


def _fast_row(family: str) -> str:
    cases = [(bits, checkpoint) for bits in BITS for checkpoint in (False, True)]
    wrong = [case for case in cases if not compared(family, *case).within]
    assert not wrong, f"{family}: {wrong}"
    handed_on = HANDED_ON[", ".join(sorted(kinds_of(model_of(family, None))))]
    reach = [key for key, _ in _leaves(REACH.get(family, {})) if key in WORDS]
    passed = ", ".join(WORDS[key] for key in sorted(set(reach), reverse=True))
    return f"| `{family}` | tree | {handed_on} | {passed or '-'} | |"


def _plain_row(family: str) -> str:
    _, reason = paths.fast_path(tiny.build_model(family)[0])
    assert reason is not None
    return f"| `{family}` | plain | | | {reason} |"


WORDS = {"sliding_window": "window", "original_max_position_embeddings": "rope threshold"}
INTRODUCTION = """# Architectures

<!-- Written by `python -m tests.model.test_families`. Edits here are lost. -->

`orpo-mlx` trains every architecture that mlx-lm has. There are two paths to the same numbers:

- **tree**: every token of a micro-batch once. What all prompts begin with, what a pair shares, and
  the two tails are computed level after level, and no logits are kept.
- **plain**: the model's own forward on chosen and rejected, each whole.

The path is found by trying, not by a list of names. A model takes the tree if its head can be told
from its backbone (the head on the backbone's states gives the model's own logits) and if each of
its caches is one that a level can continue: `KVCache`, `RotatingKVCache`, `ChunkedKVCache`,
`ArraysCache`, or a `CacheList` of them. When a run starts, a pair of its own data must then give
the same values and gradients on the tree and on the model's own forward; if not, it says so and
goes plain. A rope of type `dynamic` past its limit depends on the length of what is computed
together: there every response runs alone.

The table is of tiny random models of each family, float32, LoRA of rank 4 on all linear layers. A
family stands here as "tree" after log-probs of every response token and the gradient of every
adapter tensor were compared with the model's own forward of each response alone: within 1e-5 and,
relative, 1e-4; in 4 bits and not, with gradient checkpointing and without. "Passed" names the
windows and rope thresholds of the config that the sequences were longer than.

| Architecture | Path | A level hands on | Passed | Why |
| --- | --- | --- | --- | --- |
"""


def test_the_page_says_what_the_comparisons_found() -> None:
    wanted = "stale: run `python -m tests.model.test_families`"
    assert PAGE.read_text(encoding="utf-8") == render_page(), wanted


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
