"""Before anything imports mlx: the fast BLAS, one cache for all tests, no Hub."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from orpo_mlx import backend

backend.prepare()

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx.data.tokens import cache
from tests import tiny

# Files that take longest, so that no process ends with one of them while the others are idle. A
# process that begins with a single test is given a second file at once: a short one.
SLOWEST = (
    "demo/test_before_after", "loops/test_demo_round", "test_readme_commands",
    "parity/test_gguf_tokenizers", "parity/test_everywhere", "test_packaging",
    "parity/test_llama_cpp", "model/test_kernels", "benchmarks/", "training/", "proof/",
    "interop/fuse/", "model/test_famil", "cli/test_doctor", "parity/",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of SLOWEST first; a file's tests stay together and in their order."""

    def rank(item: pytest.Item) -> int:
        return next((n for n, part in enumerate(SLOWEST) if part in item.nodeid), len(SLOWEST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random float32 llama and a ChatML tokenizer. Do not write there."""
    return tiny.save_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="session")
def quantized_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in 4 bits (affine, groups of 32, bfloat16 scales). Do not write there."""
    return tiny.save_base(tmp_path_factory.mktemp("base") / "llama-4bit", bits=4)


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Sixteen pairs with a plain preference: the chosen answer is polite."""
    return tiny.save_pairs(tmp_path / "pairs.jsonl", 16)


@pytest.fixture
def eager() -> Iterator[None]:
    """MLX compiles nothing: on a CPU g++ takes a third of a second for every fused operation."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="session", autouse=True)
def no_token_ids_of_earlier_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Token ids are made by this run's code, not read from the user's cache."""
    own = tmp_path_factory.mktemp("tokens")
    whole = cache.token_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cache, "token_cache", lambda: whole() if "ORPO_MLX_CACHE" in os.environ else own
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def no_torch_in_children() -> Iterator[None]:
    """Not set where this file is loaded: the workers of pytest-xdist start there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "child_python"), prepend=os.pathsep)
        yield
