"""How often a test repeats its case: some in `make test-long`, many in `make soak`."""

from typing import Any

import pytest


def repeats(some: int, many: int) -> list[Any]:
    """Two parameters of a test: `some` times is long, `many` is a soak."""
    return [
        pytest.param(some, marks=pytest.mark.long),
        pytest.param(many, marks=pytest.mark.soak),
    ]
