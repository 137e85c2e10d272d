"""docs/architectures.md shows the results of the comparisons of every family.

`python -m tests.model.family_page` writes that page again.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model.tree_forward import PrefixKVCache
from orpo_mlx.training import forward_path as paths
from tests import tiny
from tests.families import FAST, REACH, VOCABULARY
from tests.model.comparison import by_path, compared
from tests.model.family_cases import BITS, PAIRS, kinds_of, leaves, model_of

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
HANDED_ON = {
    "attention": "keys and values",
    "attention, recurrent": "keys and values, recurrent states",
    "recurrent": "recurrent states",
}
PLAIN = ["gemma3n"]  # known to have no fast path


def render_page(memory: Mapping[str, str]) -> str:
    """The page, from the same comparisons that test_families makes.

    `memory` is the column of that name: it takes a minute to measure.
    """
    rows = [_fast_row(family, memory[family]) for family in FAST]
    rows += [_plain_row(family) for family in PLAIN]
    return INTRODUCTION + "\n".join(rows) + "\n"


def memory_on_page() -> dict[str, str]:
    """The column as it is."""
    rows = re.findall(r"^\| `(\w+)` \| tree \|.*\| ([\d.]+) kB \| \|$", PAGE.read_text(), re.M)
    return dict(rows)


def measured_memory(family: str) -> float:
    """kB that a token more takes in each layer: the slope of a step's peak from 256 to 512."""
    model = model_of(family, None)
    (peak, tokens), (higher, more) = (_peak(family, length) for length in (256, 512))
    return (higher - peak) / (more - tokens) / len(model.layers) / 1e3


def _peak(family: str, length: int) -> tuple[int, int]:
    """Bytes that the gradient of one pair takes at most, and its tokens."""
    random = np.random.default_rng(0)
    parts = (random.integers(1, VOCABULARY, n).astype(np.int32) for n in (length - 20, 11, 10))
    path, _ = paths.fast_path(model_of(family, None))
    batch = path.batch([EncodedPair(*parts, "")], [0], "response")
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    by_path(model_of(family, None), path, batch)
    return mx.get_peak_memory() - before, sum(call.ids.size for call in batch.calls)


class Masks:
    """What a pass through the tree gives to attention."""

    def __init__(self) -> None:
        self.calls = 0  # of attention
        self.arrays: list[mx.array] = []  # masks that are arrays
        self.asked = 0  # how often the model's code asks for an array


@contextmanager
def watched_masks() -> Iterator[Masks]:
    masks, make = Masks(), PrefixKVCache.make_mask
    attention = mx.fast.scaled_dot_product_attention

    def watched(*arguments: Any, mask: Any = None, **named: Any) -> mx.array:
        masks.calls += 1
        masks.arrays += [mask] * isinstance(mask, mx.array)
        return attention(*arguments, mask=mask, **named)

    def asked(self: Any, N: int, return_array: bool = False, window_size: Any = None) -> Any:
        masks.asked += return_array
        return make(self, N, return_array, window_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx.fast, "scaled_dot_product_attention", watched)
        patch.setattr(PrefixKVCache, "make_mask", asked)
        yield masks


def masks_of(family: str) -> Masks:
    """Of PAIRS on the fast path."""
    path, _ = paths.fast_path(model_of(family, None))
    calls, targets, *_ = paths.arrays_of(path.batch(PAIRS, range(len(PAIRS)), "response"))
    with watched_masks() as masks:
        path.token_logps(calls, targets)  # nothing is computed
    return masks


def _array_masks(family: str) -> str:
    masks = masks_of(family)
    if masks.asked:
        return "its code asks for them"
    return "where a window cuts" if masks.arrays else "none"


def _fast_row(family: str, memory: str) -> str:
    cases = [(bits, checkpoint) for bits in BITS for checkpoint in (False, True)]
    wrong = [case for case in cases if not compared(family, *case).right]
    assert not wrong, f"{family}: {wrong}"
    handed_on = HANDED_ON[", ".join(sorted(kinds_of(model_of(family, None))))]
    reach = [key for key, _ in leaves(REACH.get(family, {})) if key in WORDS]
    passed = ", ".join(WORDS[key] for key in sorted(set(reach), reverse=True))
    facts = f"{handed_on} | {passed or '-'} | {_array_masks(family)} | {memory} kB"
    return f"| `{family}` | tree | {facts} | |"


def _plain_row(family: str) -> str:
    _, reason = paths.fast_path(tiny.build_model(family)[0])
    assert reason is not None
    return f"| `{family}` | plain | | | | | {reason} |"


WORDS = {"sliding_window": "window", "original_max_position_embeddings": "rope threshold"}
INTRODUCTION = """# Architectures

<!-- Written by `python -m tests.model.family_page`. Edits here are lost. -->

`orpo-mlx` trains every architecture that mlx-lm has. There are two paths to the same numbers:

- **tree**: every token of a micro-batch once. The beginning that all prompts share, the part that
  a pair shares, and the two tails are computed level by level, and no logits are kept.
- **plain**: the model's own forward on the chosen and the rejected response, each in full.

The path is found by trying, not by a list of names. A model uses the tree if its head can be
separated from its backbone (the head on the backbone's states gives the model's own logits) and if
each of its caches is one that a level can continue: `KVCache`, `RotatingKVCache`, `ChunkedKVCache`,
`ArraysCache`, or a `CacheList` of them. When a run starts, a pair of its own data must
then give the same values and gradients on the tree and on the model's own forward; if it does not,
the run reports that and uses the plain path. A rope of type `dynamic` past its limit depends on the
length of what is computed together: there every response runs alone.

The table is of tiny random models of each family, float32, LoRA of rank 4 on all linear layers. A
family is listed as "tree" if the log-probs of every response token and the gradient of every
adapter tensor agree with the model's own forward in float64: the error is at most four times that
of the own forward in float32, and never more than 1e-4; unquantized and in 4 bits, with and without
gradient checkpointing. "Passed" names the windows and rope thresholds of the config that the
sequences were longer than. "Array masks": attention is given the word "causal" where it can be,
for which MLX has light kernels; an array is given where a window cuts (one boolean array for a
call, of its tokens by its keys, shared by its layers) or where the model's own code asks for one.
"Memory": what the peak of a step grows by for each further token in each layer, between 256 and 512
tokens, without checkpointing; the layers are 64 wide, so compare the families, not with your base.

## Recurrent layers

In training mlx-lm runs some layers token by token and keeps a state a token for the gradient: 31 GB
for one gated delta layer of 32 heads of 128 at 2,048 tokens (mlx-lm's pull request 1870). Here they
run in another form for the time of a pass; the form is printed, kept in the checkpoints and, like
everything else of the fast path, compared with mlx-lm's own code at the start of a run.

- Gated delta layers (`qwen3_5`, `qwen3_next`, `kimi_linear`, `kimi_k3`, `olmo_hybrid`,
  `bailing_moe_v3`): in chunks of 64 tokens, by matrix products. On Metal MLX's own kernel computes
  them where it has one for their heads (128 wide, one decay a head); that was not measured.
- `bailing_moe_linear`, `jamba`, `mamba`, `rwkv7`, `recurrent_gemma`: mlx-lm's loop, in spans of 64
  tokens whose states are computed again for the gradient.

With `--plain` all of them run mlx-lm's loop in such spans: slow, and the reference.

## Families

| Architecture | Path | A level passes on | Passed | Array masks | Memory | Why |
| --- | --- | --- | --- | --- | --- | --- |
"""


if __name__ == "__main__":
    measured = {family: f"{measured_memory(family):.2g}" for family in FAST}
    PAGE.write_text(render_page(measured), encoding="utf-8")
