"""Recurrent layers in training: mlx-lm's loops over tokens in forms whose memory is bounded.

mlx-lm keeps a state a token for the gradient. Which form runs is a rule of the machine and the
layers' sizes; model code stays as it is.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx import backend
from orpo_mlx.model.grad_checkpoint import checkpointed
from orpo_mlx.model.mlx_lm_api import functions_of, functions_replaced, make_prompt_cache
from orpo_mlx.model.recurrent.gated_delta import gated_delta, log_decay

# loop: as mlx-lm has it; spans: the same, with the states inside a span computed again for the
# gradient; chunked and fused: gated delta layers by gated_delta.py or by MLX's kernel, others in
# spans.
Form = Literal["loop", "spans", "chunked", "fused"]
SPAN = 64  # tokens


class Loop(NamedTuple):
    """A function that runs over tokens and returns its outputs and its last states."""

    sequences: tuple[str, ...]  # its arguments with an axis of tokens, which the outputs have too
    states: tuple[str, ...]  # its arguments that the last states continue
    axis: int = 1  # of the tokens


GATED_DELTA = Loop(("q", "k", "v", "a", "b"), ("state",))
GATED_DELTA_NAME = "gated_delta_update"
LOOPS = {
    "bailing_moe_linear.recurrent_gla": Loop(("q", "k", "v"), ("h",), axis=2),
    "jamba.JambaMambaMixer._process_sequence": Loop(("x",), ("conv_state", "ssm_state")),
    "mamba.MambaBlock._process_sequence": Loop(("x",), ("conv_cache", "state_cache")),
    "recurrent_gemma.rnn_scan": Loop(("x", "a"), ("h0",)),
    "rwkv7.Rwkv7TimeMixing._wkv7": Loop(("r", "w", "k", "v", "a", "b"), ("state",)),
}
# Where MLX's Metal kernel, and its gradient, do not fall back to a loop (mlx 0.32.4): one decay a
# head, keys and values of 128, and these numbers of key and value heads.
FUSED_WIDTH = 128
FUSED_HEADS = ((16, 16), (16, 32), (16, 48), (16, 64), (24, 24), (32, 32))


class Sizes(NamedTuple):
    """Of a gated delta layer: what decides whether there is a fused form."""

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    per_channel: bool  # a decay for each channel of the keys


Loops = dict[str, tuple[Any, str, Loop]]  # owner, attribute and how it is called


def find_loops(model: nn.Module) -> Loops:
    """What of the model's code may run over tokens one by one."""
    loops = {}
    for path, (owner, name) in functions_of(model).items():
        loop = GATED_DELTA if name == GATED_DELTA_NAME else LOOPS.get(path)
        if loop:
            loops[path] = (owner, name, loop)
    return loops


def loops_used(model: nn.Module) -> tuple[set[str], set[Sizes]]:
    """Which of them the model calls, and its gated delta layers' sizes; found by tracing."""
    used: set[str] = set()
    sizes: set[Sizes] = set()

    def recorded(path: str, loop: Loop, original: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            used.add(path)
            if loop is GATED_DELTA:
                given = inspect.signature(original).bind(*args, **kwargs).arguments
                (_, _, heads, width), values, a = given["k"].shape, given["v"].shape, given["a"]
                sizes.add(Sizes(heads, values[2], width, values[3], a.ndim == 4))
            return original(*args, **kwargs)

        return function

    loops = find_loops(model)
    if loops:
        recorders = [(o, n, partial(recorded, path, loop)) for path, (o, n, loop) in loops.items()]
        with functions_replaced(recorders):
            model(mx.array([[0, 0]]), cache=make_prompt_cache(model))  # nothing is computed
    return used, sizes


def forms_of(model: nn.Module) -> list[Form]:
    """The forms to try, best first; `loop` alone where nothing runs over tokens one by one."""
    used, sizes = loops_used(model)
    if not sizes:
        return ["spans" if used else "loop"]
    on_metal = not backend.is_cpu() and mx.metal.is_available()
    return ["fused", "chunked"] if on_metal and all(map(has_kernel, sizes)) else ["chunked"]


def has_kernel(sizes: Sizes) -> bool:
    """Whether MLX's Metal kernel takes such layers."""
    widths = {sizes.key_width, sizes.value_width}
    heads = (sizes.key_heads, sizes.value_heads)
    return widths == {FUSED_WIDTH} and heads in FUSED_HEADS and not sizes.per_channel


@contextmanager
def recurrence(
    loops: Loops, form: Form, chain: list[mx.array] | None = None, span: int = SPAN
) -> Iterator[None]:
    """The model's loops run in this form meanwhile; inside another such block nothing changes.

    Must hold until the gradient has been computed. `chain` is the model's chain of dropout keys.
    """

    def wrapped(loop: Loop, original: Callable[..., Any]) -> Callable[..., Any]:
        if form == "loop" or hasattr(original, "__wrapped__"):
            return original
        if loop is GATED_DELTA and form != "spans":
            return _gated_delta_in(form, original)
        return _in_spans(original, loop, span, chain)

    with functions_replaced(
        [(o, name, partial(wrapped, loop)) for o, name, loop in loops.values()]
    ):
        yield


def _in_spans(
    original: Callable[..., Any], loop: Loop, span: int, chain: list[mx.array] | None
) -> Callable[..., Any]:
    """The same with the states inside a span computed again for the gradient."""
    signature = inspect.signature(original)

    @wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        tokens = given[loop.sequences[0]].shape[loop.axis]
        if tokens <= span:
            return original(*args, **kwargs)
        cuts, outputs, last = list(range(span, tokens, span)), [], None
        pieces = [mx.split(given[name], cuts, axis=loop.axis) for name in loop.sequences]
        for parts in zip(*pieces, strict=True):
            given.update(zip(loop.sequences, parts, strict=True))
            y, last = checkpointed(original, bound.args, bound.kwargs, chain, _next_key(chain))
            states = last if isinstance(last, tuple) else (last,)
            given.update(zip(loop.states, states, strict=True))
            outputs.append(y)
        return mx.concatenate(outputs, axis=loop.axis), last

    return function


def _next_key(chain: list[mx.array] | None) -> mx.array | None:
    if not chain:
        return None
    chain[0], key = mx.random.split(chain[0])
    return key


def _gated_delta_in(form: Form, original: Callable[..., Any]) -> Callable[..., Any]:
    """mlx-lm's gated_delta_update in chunks or by MLX's kernel."""
    update = fused_gated_delta if form == "fused" else gated_delta

    @wraps(original)
    def function(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        a: mx.array,
        b: mx.array,
        A_log: mx.array,
        dt_bias: mx.array,
        state: mx.array | None = None,
        mask: mx.array | None = None,
        *,
        use_kernel: bool = True,
        lower_bound: float | None = None,
        allow_neg_eigval: bool = False,
        **unknown: Any,
    ) -> tuple[mx.array, mx.array]:
        if mask is not None or unknown:
            settings = {"lower_bound": lower_bound, "allow_neg_eigval": allow_neg_eigval}
            arrays = (q, k, v, a, b, A_log, dt_bias, state, mask)
            return original(*arrays, use_kernel=use_kernel, **settings, **unknown)
        beta = mx.sigmoid(b) * (2 if allow_neg_eigval else 1)
        if state is None:
            state = mx.zeros((len(v), *v.shape[2:], k.shape[3]), dtype=mx.float32)
        log_g = log_decay(A_log, a, dt_bias, lower_bound)
        y, new = update(q, k, v, log_g, beta, state)
        return y.astype(q.dtype), new.astype(state.dtype)

    return function


def fused_gated_delta(
    q: mx.array, k: mx.array, v: mx.array, log_g: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """All in float32: the kernel takes decays in the type of the queries, where 0.999 is 1."""
    arrays = (q, k, v, mx.exp(log_g), beta, state)
    y, new = mx.fast.gated_delta_update(*(x.astype(mx.float32) for x in arrays))
    return y, new
