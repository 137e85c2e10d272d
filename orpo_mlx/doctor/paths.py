"""The fast path against the plain one, and the GPU against the CPU: values and gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from orpo_mlx import backend
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.doctor import toys
from orpo_mlx.doctor.verdict import FAILED, OK, REPORT, SKIPPED, Check
from orpo_mlx.training.forward_path import (
    BatchArrays,
    ForwardPath,
    arrays_of,
    fast_path,
    plain_path,
)
from orpo_mlx.training.outputs import pair_outputs
from orpo_mlx.training.plan import ROUNDINGS

BETA = 0.1


class Bound(NamedTuple):
    """How far apart two correct computations may be."""

    logps: float  # of a token, at most
    gradients: float  # of a tensor, the L2 norm of the difference over that of the tensor


class Kind(NamedTuple):
    """A data type and what is allowed in it."""

    dtype: mx.Dtype
    bits: int | None
    fast: Bound  # the fast path against the plain one
    gpu: Bound  # the GPU against the CPU
    scale: float = 1.0  # of the loss: float16 loses what is smaller than 6e-8


# The same operations in another order: 4e-6 and 2e-6 on the CPU.
FLOAT32 = Bound(3e-5, 1e-4)
# GPUs approximate exp, sin and rsqrt; TF32 or a wrong mask would be off by 1e-2 and more.
FLOAT32_GPU = Bound(1e-3, 1e-2)
# Every activation is rounded to 8 bits, in float16 to 11: two correct computations differ
# by as much as each from float32, where bfloat16 was seen at 0.12 and 0.08,
# float16 at an eighth.
BFLOAT16, FLOAT16 = Bound(0.3, 0.25), Bound(0.04, 0.03)
GPU_ONLY = "4-bit in bfloat16"
KINDS = {
    "float32": Kind(mx.float32, None, FLOAT32, FLOAT32_GPU),
    "bfloat16": Kind(mx.bfloat16, None, BFLOAT16, BFLOAT16),
    "float16": Kind(mx.float16, None, FLOAT16, FLOAT16, 1024.0),
    "4-bit": Kind(mx.float32, 4, FLOAT32, FLOAT32_GPU),
    GPU_ONLY: Kind(mx.bfloat16, 4, BFLOAT16, BFLOAT16),
}
HALVES = (mx.bfloat16, mx.float16)


class Numbers(NamedTuple):
    """What is compared."""

    logps: list[np.ndarray]  # of each response's tokens
    gradients: dict[str, np.ndarray]


class Difference(NamedTuple):
    """The largest differences between two computations, and where they are."""

    gradients: float
    logps: float
    tensor: str  # the gradient that is off most

    def exceeds(self, allowed: Bound) -> bool:
        return self.logps > allowed.logps or self.gradients > allowed.gradients


Compare = Callable[[nn.Module, list[EncodedPair], float], Difference]


def fast_name(kind: str) -> str:
    return f"fast path, {kind}"


def gpu_name(kind: str) -> str:
    return f"GPU against CPU, {kind}"


def check_fast_path(kind: str) -> Check:
    """The fast path against the model's own forward on each response, values and gradients.

    With lengths rounded as where steps are compiled, and exact with checkpointed layers.
    """

    def compare(model: nn.Module, pairs: list[EncodedPair], scale: float) -> Difference:
        plain = measure(plain_path(model, layout="rows"), pairs, scale)
        paths = _fast(model, rounding=ROUNDINGS[0]), _fast(model, checkpoint=True)
        return worst([difference_from(measure(path, pairs, scale), plain) for path in paths])

    if kind == GPU_ONLY and backend.is_cpu():
        return Check(fast_name(kind), SKIPPED, "the CPU computes 4-bit bases in float32")
    remedy = f"Train with --plain, which leaves the fast path out. {REPORT}"
    return _verdict(fast_name(kind), KINDS[kind], KINDS[kind].fast, compare, remedy)


def check_gpu(kind: str) -> Check:
    """The same model, data and path on the GPU and on the CPU."""

    def compare(model: nn.Module, pairs: list[EncodedPair], scale: float) -> Difference:
        on_gpu = measure(_fast(model), pairs, scale)
        with _on_cpu():
            return difference_from(on_gpu, measure(_fast(model), pairs, scale))

    if backend.is_cpu():
        return Check(gpu_name(kind), SKIPPED, "no GPU here")
    remedy = f"Update macOS or the driver. {REPORT}"
    return _verdict(gpu_name(kind), KINDS[kind], KINDS[kind].gpu, compare, remedy)


def measure(path: ForwardPath, pairs: list[EncodedPair], scale: float) -> Numbers:
    """Log-probs and adapter gradients of the ORPO loss on these pairs, compiled where runs are."""
    model = path.model
    batch = path.batch(pairs, range(len(pairs)), "response")

    def step(weights: Any, arrays: BatchArrays) -> Any:
        def loss_of(weights: Any) -> mx.array:
            model.update(weights)
            return pair_outputs(path, arrays, beta=BETA).losses.loss.mean() * scale

        with path.differentiated():
            return mx.grad(loss_of)(weights)

    compiled = path.layout == "tree" and not backend.is_cpu()
    weights, arrays = model.trainable_parameters(), arrays_of(batch)
    gradients = (mx.compile(step) if compiled else step)(weights, arrays)
    model.update(weights)  # in place of what replaced them while the gradient was taken
    logps = np.array(path.token_logps(*arrays[:2]))
    # Scored positions lie in the order of the calls, which is that of every response's tokens.
    by_response = [logps[row > 0] for row in batch.weights]
    flat = {name: np.array(g.astype(mx.float32)) for name, g in tree_flatten(gradients)}
    return Numbers(by_response, flat)


def difference_from(measured: Numbers, reference: Numbers) -> Difference:
    """How far apart two computations are; what is not finite, or not there, is infinitely far."""
    differences = [
        float(np.abs(a - b).max()) if a.shape == b.shape else np.inf
        for a, b in zip(measured.logps, reference.logps, strict=True)
    ]
    relative = {
        name: _relative(measured.gradients.get(name), g) for name, g in reference.gradients.items()
    }
    tensor = max(relative, key=relative.__getitem__)
    return Difference(relative[tensor], max(map(_finite, differences)), tensor)


def worst(differences: list[Difference]) -> Difference:
    """The largest differences among several comparisons."""
    largest = max(differences, key=lambda g: g.gradients)
    return largest._replace(logps=max(g.logps for g in differences))


def _verdict(name: str, kind: Kind, allowed: Bound, compare: Compare, remedy: str) -> Check:
    """One verdict on all families of a kind."""
    differences: dict[str, Difference] = {}
    faults = []
    for family in (families := _families(kind)):
        try:
            model = toys.build_adapted(family, dtype=kind.dtype, bits=kind.bits)
            differences[family] = compare(model, toys.build_pairs(family), kind.scale)
        except Exception as error:
            faults.append(f"{family}: {type(error).__name__}: {error}")
    right = {f: g for f, g in differences.items() if not g.exceeds(allowed)}
    faults += [
        f"{f}: {_difference_text(g, allowed)}, most in {g.tensor}"
        for f, g in differences.items()
        if f not in right
    ]
    if faults:
        return Check(name, FAILED, "; ".join(faults), remedy)
    detail = f"{', '.join(families)}: {_difference_text(worst(list(right.values())), allowed)}"
    if left_out := [family for family in toys.FAMILIES if family not in families]:
        detail += f". Not {', '.join(left_out)}: rounding may send tokens to other experts"
    return Check(name, OK, detail)


def _difference_text(difference: Difference, allowed: Bound) -> str:
    return (
        f"log-probs differ by {difference.logps:.1e} (allowed {allowed.logps:g}), "
        f"gradients by {difference.gradients:.1e} (allowed {allowed.gradients:g})"
    )


def _families(kind: Kind) -> list[str]:
    """In halves mixtures of experts cannot be compared, and do not run on the CPU at all."""
    half = kind.dtype in HALVES
    return [family for family in toys.FAMILIES if not (half and family in toys.MIXTURES)]


def _fast(model: nn.Module, *, checkpoint: bool = False, rounding: int = 0) -> ForwardPath:
    path, reason = fast_path(model, checkpoint=checkpoint, rounding=rounding)
    if reason:
        raise ValueError(f"takes the plain path, since {reason}")
    return path


def _relative(measured: np.ndarray | None, reference: np.ndarray) -> float:
    """The L2 norm of the difference over the reference's; infinite if it is not there."""
    if measured is None or measured.shape != reference.shape:
        return np.inf
    norm = float(np.linalg.norm(reference)) or 1.0
    return _finite(float(np.linalg.norm(measured - reference)) / norm)


def _finite(value: float) -> float:
    return value if np.isfinite(value) else np.inf


@contextmanager
def _on_cpu() -> Iterator[None]:
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    # What is compiled for the CPU needs a C++ compiler.
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()
        mx.set_default_device(device)
