"""Whatever is damaged in PEFT's folder: one OrpoError, in bounded time and memory, and nothing
written, or an adapter that mlx-lm reads."""

import json
import math
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.exchange import ExportConfig, ImportConfig
from orpo_mlx.export import peft_config, peft_import, peft_tensors
from orpo_mlx.export.peft import WEIGHTS, export_peft
from orpo_mlx.export.peft_config import CONFIG
from orpo_mlx.export.peft_import import import_peft
from orpo_mlx.model.adapters import read_adapter
from orpo_mlx.model.tensor_files import StoredTensor, read_header
from tests import tiny
from tests.alarm import no_hang
from tests.model.adapter_faults import damaged
from tests.model.test_adapters import adapted

pytestmark = pytest.mark.long

INPUTS = 3_000
SECONDS = 2.0  # of processor time for one folder; a whole one takes 0.02
MEMORY_BYTES = 40_000_000  # of Python's and mlx's
SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "head_dim": 4,
}  # fmt: skip
KINDS = {
    "lora": ("llama", ["q_proj", "embed_tokens"]),
    "dora": ("llama", ["q_proj", "v_proj"]),
    "experts": ("qwen3_moe", ["switch_mlp.up_proj", "q_proj"]),
}


def fuzz(folder: Path, kind: str, count: int, seed: int) -> Counter[str]:
    """Import so many damaged adapters; what must not be is raised."""
    family, names = KINDS[kind]
    base = tiny.save_base(folder / "base", family, **SMALL)
    adapted(base, folder / "run", names, "lora" if kind == "experts" else kind)
    export_peft(ExportConfig(adapter=folder / "run", to="peft", output=folder / "peft"))
    weights, config = (folder / "peft" / name for name in (WEIGHTS, CONFIG))
    ends: Counter[str] = Counter()
    tracemalloc.start()
    try:
        for pair in damaged(weights.read_bytes(), config.read_bytes(), count, seed):
            for file, content in zip((weights, config), pair, strict=True):
                file.write_bytes(content)
            tracemalloc.reset_peak()
            mx.reset_peak_memory()
            started = time.process_time()
            with no_hang():
                ends[_end(folder, base)] += 1
            assert time.process_time() - started < SECONDS
            assert tracemalloc.get_traced_memory()[1] + mx.get_peak_memory() < MEMORY_BYTES
    finally:
        tracemalloc.stop()
    return ends


def _end(folder: Path, base: Path) -> str:
    """How an import ends: before the header was passed, behind it, or with an adapter."""
    passed: list[object] = []

    def read(file: Path) -> dict[str, StoredTensor]:
        header = read_header(file)
        passed.append(header)
        return header

    output = folder / "out"
    how = ImportConfig(adapter=str(folder / "peft"), model=str(base), output=output, overwrite=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(peft_import, "read_header", read)
            result = import_peft(how)
    except OrpoError:
        assert sorted(p.name for p in folder.iterdir()) == ["base", "peft", "run"]
        return "behind the header" if passed else "header"
    found = read_adapter(output)
    for name, value in found.weights.items():
        assert math.isfinite(mx.abs(value).max().item()), name
        if name.endswith("lora_a"):
            assert value.shape[-1 if value.ndim == 2 else 1] == result.rank
    said = json.loads((folder / "peft" / CONFIG).read_bytes())
    assert result.rank <= max([said["r"], *(said.get("rank_pattern") or {}).values()])
    _remove(output)
    return "brought in"


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_damaged_folders_end_in_one_error_of_ours(tmp_path: Path) -> None:
    ends: Counter[str] = Counter()
    for seed, kind in enumerate(KINDS):
        (tmp_path / kind).mkdir()
        ends += fuzz(tmp_path / kind, kind, INPUTS // len(KINDS), seed)
    assert ends.total() == INPUTS
    # The config is read before the header, and half of the damage is in it.
    assert INPUTS - ends["header"] > INPUTS / 5
    assert ends["behind the header"] > INPUTS / 20
    assert ends["brought in"] > INPUTS / 20


@pytest.mark.parametrize(
    ("module", "check", "harmless"),
    [
        (peft_config, "_number_problems", lambda found: []),
        (peft_config, "_pattern_problem", lambda pattern: ""),
        (peft_tensors, "_incomplete", lambda *_: ""),
    ],
    ids=["numbers", "patterns", "tensors"],
)
def test_a_check_that_is_left_out_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, check: str, harmless: object
) -> None:
    monkeypatch.setattr(module, check, harmless)
    with pytest.raises(Exception) as caught:
        fuzz(tmp_path, "lora", 1000, seed=0)
    assert not isinstance(caught.value, OrpoError)
