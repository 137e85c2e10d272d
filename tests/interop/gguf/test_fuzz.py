"""Whatever is damaged in a GGUF file: one OrpoError, in bounded time and memory, nothing else."""

import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.gguf import llama, reader
from orpo_mlx.interop.gguf.to_hf import convert_gguf
from tests.alarm import no_hang
from tests.interop.gguf.faults import damaged
from tests.interop.gguf.test_damaged import rewritten
from tests.interop.gguf.test_to_hf import write_tiny_gguf
from tests.repeats import repeats

MEMORY_BYTES = 40_000_000  # of Python's and numpy's; a whole one takes 2 MB


class Fuzzed(Counter):
    """How many inputs ended how."""


def fuzz(folder: Path, count: int, seed: int, kind: Kind = Kind.Q4_0) -> Fuzzed:
    """Convert so many damaged files; whatever is not an OrpoError, or takes too much, is raised."""
    write_tiny_gguf(folder / "whole.gguf", kind, pre="llama-bpe")
    rewritten(folder / "whole.gguf", {"general.alignment": 32})
    whole, source, target = (folder / "whole.gguf").read_bytes(), folder / "x.gguf", folder / "x"
    ends = Fuzzed()
    tracemalloc.start()
    try:
        for content in damaged(whole, count, seed):
            source.write_bytes(content)
            tracemalloc.reset_peak()
            with no_hang():
                ends[_end(source, target)] += 1
            assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()
    return ends


def _end(source: Path, target: Path) -> str:
    try:
        convert_gguf(source, target)
    except OrpoError as error:
        assert not target.exists()
        message = str(error)
        return (
            "header"
            if "header cannot be read" in message or "not a little" in message
            else "refused"
        )
    shutil.rmtree(target)
    return "converted"


@pytest.mark.parametrize("inputs", repeats(1_000, 25_000))
def test_damaged_files_end_in_one_error_of_ours(tmp_path: Path, inputs: int) -> None:
    ends = fuzz(tmp_path, inputs // 2, seed=1) + fuzz(tmp_path, inputs // 2, 2, Kind.F16)
    assert ends.total() == inputs
    assert ends["refused"] + ends["converted"] > inputs / 3
    assert ends["refused"] > inputs / 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "check", "harmless"),
    [
        (reader, "_layout_problems", lambda *_: []),
        (reader._Cursor, "need", lambda *_: None),
        (reader, "_alignment", lambda metadata: metadata.get("general.alignment", 32)),
        (llama, "_tensor_problems", lambda *_: []),
    ],
    ids=["layout", "end of file", "alignment", "shapes"],
)
def test_a_check_that_is_left_out_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, check: str, harmless: object
) -> None:
    monkeypatch.setattr(module, check, harmless)
    with pytest.raises(Exception) as caught:
        fuzz(tmp_path, 2000, seed=1)
    assert not isinstance(caught.value, OrpoError)
