"""How far the gradients of two contestants differ."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from orpo_mlx.errors import OrpoError


def gradient_differences(file: Path, reference: Path) -> dict[str, float]:
    """Relative L2 differences: of the gradient as one vector, and of the tensor that differs most.

    Raises OrpoError if names or shapes differ.
    """
    tensors, wanted = (
        {n: v.astype(np.float64) for n, v in load_file(f).items()} for f in (file, reference)
    )
    if {n: v.shape for n, v in tensors.items()} != {n: v.shape for n, v in wanted.items()}:
        raise OrpoError(f"Not a fair comparison: {file.stem} trains different tensors.")
    squares = [(np.sum((tensors[n] - v) ** 2.0), np.sum(v**2.0)) for n, v in wanted.items()]
    apart, whole = np.sum(squares, axis=0)
    return {
        "gradient_difference": float(np.sqrt(apart / whole)),
        "tensor_difference": float(np.sqrt(max(a / w for a, w in squares))),
    }
