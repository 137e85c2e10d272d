"""Single operations that have several forms here: each against a reference, with its cost."""

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from orpo_mlx import backend
from orpo_mlx.doctor.verdict import FAILED, OK, REPORT, Check
from orpo_mlx.model.mlx_lm_api import gated_delta_loop
from orpo_mlx.model.recurrent.forms import fused_gated_delta
from orpo_mlx.model.recurrent.gated_delta import gated_delta
from orpo_mlx.objective.logps import chunk_positions, hidden_logps

Rule = Callable[..., tuple[mx.array, mx.array]]
# Sizes that MLX's Metal kernel takes, with fewer key heads than value heads.
KEY_HEADS, VALUE_HEADS, WIDTH = 16, 32, 128
# Tokens of two levels: more than a chunk, then few from the state that it leaves.
LEVELS = (72, 8)
# Relative, in float32: another order of the sums; GPUs approximate exp, or multiply in TF32.
ALLOWED, ALLOWED_GPU = 1e-4, 1e-2
POSITIONS, HIDDEN, VOCABULARY = 256, 128, 32768


def check_gated_delta() -> Check:
    """The forms of gated delta layers against mlx-lm's loop over tokens, values and gradients."""
    forms: dict[str, Rule] = {"chunks": gated_delta}
    if not backend.is_cpu() and mx.metal.is_available():
        forms["MLX's kernel"] = fused_gated_delta
    given = _gated_delta_inputs()
    right, seconds = _run(gated_delta_loop, given)
    details, wrong = [f"loop {seconds:.2f} s"], []
    allowed = ALLOWED if backend.is_cpu() else ALLOWED_GPU
    for name, form in forms.items():
        values, seconds = _run(form, given)
        apart = max(map(_relative, values, right))
        details.append(f"{name} {seconds:.2f} s, off by {apart:.1e} (allowed {allowed:g})")
        wrong += [name] * (not apart <= allowed)
    tokens = f"{sum(LEVELS)} tokens, {VALUE_HEADS} heads of {WIDTH}, with gradients"
    detail = f"{tokens}: {'; '.join(details)}"
    if wrong:
        return Check("gated delta", FAILED, detail, f"Runs use another form then. {REPORT}")
    return Check("gated delta", OK, detail)


def check_log_probs() -> Check:
    """Log-probs of a frozen head by ours and by mx.fast.cross_entropy: error and memory."""
    mx.random.seed(0)
    hidden, head = mx.random.normal((POSITIONS, HIDDEN)), mx.random.normal((VOCABULARY, HIDDEN)) / 4
    targets = mx.random.randint(0, VOCABULARY, (POSITIONS,))
    weights = mx.random.normal((POSITIONS,))

    def by_ours(states: mx.array) -> mx.array:
        chunk = chunk_positions(VOCABULARY)
        return hidden_logps(states, targets, lambda h, _: h @ head.T, chunk=chunk)

    def by_mlx(states: mx.array) -> mx.array:
        return -mx.fast.cross_entropy(states @ head.T, targets)

    right = _log_probs_in_float64(*map(np.array, (hidden, head, targets)))
    details = []
    for name, logps in (("ours", by_ours), ("mx.fast.cross_entropy", by_mlx)):
        mx.eval(hidden, head, targets, weights)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        gradient = mx.grad(lambda h, f=logps: (weights * f(h)).sum())(hidden)
        mx.eval(gradient)
        peak = (mx.get_peak_memory() - before) / 1e6
        error = np.abs(np.array(logps(hidden)) - right).max()
        details.append(f"{name}: off by {error:.1e}, {peak:.0f} MB with gradients")
    return Check("log-probs", OK, f"{POSITIONS} x {VOCABULARY:,}: {'; '.join(details)}")


def _gated_delta_inputs() -> dict[str, mx.array]:
    """Unit keys and queries; values, log decays, rates; and a state."""
    mx.random.seed(0)
    tokens = sum(LEVELS)
    q, k = (mx.random.normal((1, tokens, KEY_HEADS, WIDTH)) for _ in range(2))
    return {
        "q": q / mx.linalg.norm(q, axis=-1, keepdims=True),
        "k": k / mx.linalg.norm(k, axis=-1, keepdims=True),
        "v": mx.random.normal((1, tokens, VALUE_HEADS, WIDTH)),
        "log_g": -mx.exp(mx.random.normal((1, tokens, VALUE_HEADS)) - 3),
        "beta": mx.sigmoid(mx.random.normal((1, tokens, VALUE_HEADS))),
        "state": 0.1 * mx.random.normal((1, VALUE_HEADS, WIDTH, WIDTH)),
    }


def _run(rule: Rule, given: dict[str, mx.array]) -> tuple[list[mx.array], float]:
    """Outputs, last state and gradients of a weighted sum over two levels; seconds of a second
    run."""
    names, arrays = list(given), list(given.values())

    def total(*values: mx.array) -> tuple[mx.array, list[mx.array]]:
        parts = dict(zip(names, values, strict=True))
        state, outputs, start = parts.pop("state"), [], 0
        for tokens in LEVELS:
            level = {n: x[:, start : start + tokens] for n, x in parts.items()}
            y, state = rule(**level, state=state)
            outputs.append(y)
            start += tokens
        y = mx.concatenate(outputs, axis=1)
        ramp = mx.linspace(-1.0, 1.0, WIDTH)  # weights of a sum
        return (y * ramp).sum() + (state * ramp).sum(), [y, state]

    seconds = 0.0
    if backend.is_cpu():
        mx.disable_compile()  # mlx-lm compiles its steps, which takes the CPU a C++ compiler
    for _ in range(2):
        start = time.perf_counter()
        (_, values), gradients = mx.value_and_grad(total, argnums=range(len(arrays)))(*arrays)
        mx.eval(values, gradients)
        seconds = time.perf_counter() - start
    mx.enable_compile()
    return [*values, *gradients], seconds


def _relative(value: mx.array, right: mx.array) -> float:
    """The L2 norm of the difference over the second's; infinite where it is not a number."""
    apart = float(np.array(mx.linalg.norm(value - right) / mx.linalg.norm(right)))
    return apart if np.isfinite(apart) else np.inf


def _log_probs_in_float64(hidden: Any, head: Any, targets: Any) -> np.ndarray:
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    largest = logits.max(axis=-1)
    total = np.log(np.exp(logits - largest[:, None]).sum(axis=-1)) + largest
    logps: np.ndarray = logits[np.arange(len(targets)), targets] - total
    return logps
