"""What differs between a record and what is observed, a line each, by its path."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from tests.proof.observed import fingerprint_of
from tests.proof.scenario import PRESCOTT

# Kernels that add in another order: sums of up to 100 float32 terms near 1.
TOLERANCE = 1e-6
# What such a difference may do to a type that rounds more coarsely, as a share of the value.
ROUNDING = {mx.float32: 0.0, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
# Quantized weights are whole numbers: a value on the border between two may go either way.
BORDER_CASES = 0.01


def is_exact(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether both ran the same kernels of the same libraries, so that every bit is the same."""
    kernels = recorded["kernel"] in PRESCOTT and here["kernel"] in PRESCOTT
    return kernels and all(recorded[key] == here[key] for key in ("machine", "versions"))


def differences(
    recorded: Any, current: Any, *, exact: bool = True, where: str = ""
) -> Iterator[str]:
    """Lines for JSON values; numbers with a fraction may differ a little unless `exact`."""
    if isinstance(recorded, dict) and isinstance(current, dict):
        for key in sorted(recorded.keys() | current.keys()):
            path = f"{where} > {key}" if where else key
            if key not in current:
                yield f"{path}: is gone, was {_short(recorded[key])}"
            elif key not in recorded:
                yield f"{path}: is new, {_short(current[key])}"
            else:
                yield from differences(recorded[key], current[key], exact=exact, where=path)
    elif isinstance(recorded, list) and isinstance(current, list) and len(recorded) == len(current):
        for number, (one, other) in enumerate(zip(recorded, current, strict=True)):
            yield from differences(one, other, exact=exact, where=f"{where}[{number}]")
    elif not (_same(recorded, current) or (not exact and _near(recorded, current))):
        yield f"{where}: was {_short(recorded)}, is {_short(current)}"


def tensor_differences(
    recorded: Mapping[str, mx.array], current: Mapping[str, mx.array], *, exact: bool
) -> Iterator[str]:
    """Lines for tensors: bit for bit, or to a tolerance that follows from their type."""
    yield from (f"{name}: is gone" for name in sorted(recorded.keys() - current.keys()))
    yield from (f"{name}: is new" for name in sorted(current.keys() - recorded.keys()))
    for name in sorted(recorded.keys() & current.keys()):
        one, other = recorded[name], current[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            yield f"{name}: was {one.dtype} {one.shape}, is {other.dtype} {other.shape}"
        elif fingerprint_of(one) != fingerprint_of(other) and (exact or not _close(one, other)):
            distance = mx.abs(one.astype(mx.float32) - other.astype(mx.float32)).max().item()
            yield f"{name}: differs by up to {distance:.3g} (exact: {exact})"


def _close(one: mx.array, other: mx.array) -> bool:
    if one.dtype not in ROUNDING:
        return bool((one != other).mean().item() <= BORDER_CASES)
    first, second = (np.array(value.astype(mx.float32), np.float64) for value in (one, other))
    allowed = TOLERANCE + ROUNDING[one.dtype] * np.abs(first)
    return bool((np.abs(first - second) <= allowed).all())


def _same(recorded: Any, current: Any) -> bool:
    return type(recorded) is type(current) and recorded == current


def _near(recorded: Any, current: Any) -> bool:
    return (
        isinstance(recorded, float)
        and isinstance(current, float)
        and math.isclose(recorded, current, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
