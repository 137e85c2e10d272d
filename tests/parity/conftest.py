"""Tools to compare with that are fetched once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parity.llama_cpp import installed


@pytest.fixture(scope="session")
def node() -> Iterator[Path]:
    """Node with llama.cpp."""
    with installed() as path:
        yield path
