"""MLX's device, for tests that mean one of them."""

from collections.abc import Iterator

import mlx.core as mx
import pytest


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """MLX computes on the CPU, whatever else this machine has."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)
