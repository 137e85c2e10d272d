"""Whatever is damaged in PEFT's folder: one OrpoError, in bounded time and memory, and nothing
written, or an adapter that mlx-lm reads."""

import json
import math
from collections import Counter
from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx.config.interop import ExportConfig, ImportConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.peft import config as peft_config
from orpo_mlx.interop.peft import importer, locate
from orpo_mlx.interop.peft.config import PEFT_CONFIG
from orpo_mlx.interop.peft.exporter import PEFT_WEIGHTS, export_peft
from orpo_mlx.interop.peft.importer import import_peft
from orpo_mlx.model.adapters import read_adapter
from orpo_mlx.model.safetensors import StoredTensor, read_header
from tests.model.adapter_faults import fuzz, fuzz_kinds, save_run
from tests.repeats import repeats

KINDS = {
    "lora": ("llama", ["q_proj", "embed_tokens"]),
    "dora": ("llama", ["q_proj", "v_proj"]),
    "experts": ("qwen3_moe", ["switch_mlp.up_proj", "q_proj"]),
}


def fuzz_kind(folder: Path, kind: str, count: int, seed: int) -> Counter[str]:
    """Import so many damaged adapters; what must not be is raised."""
    base = save_run(folder, kind, *KINDS[kind])
    export_peft(ExportConfig(adapter=folder / "run", to="peft", output=folder / "peft"))
    weights, config = (folder / "peft" / name for name in (PEFT_WEIGHTS, PEFT_CONFIG))
    return fuzz(weights, config, folder / "x", count, seed, lambda: _end(folder, base))


def _end(folder: Path, base: Path) -> str:
    """How an import ends: before the header was passed, behind it, or with an adapter."""
    passed: list[object] = []

    def read(file: Path) -> dict[str, StoredTensor]:
        header = read_header(file)
        passed.append(header)
        return header

    output = folder / "out"
    how = ImportConfig(adapter=str(folder / "x"), model=str(base), output=output, overwrite=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importer, "read_header", read)
            patch.setattr(peft_config, "SECONDS", 0.2)
            result = import_peft(how)
    except OrpoError:
        assert sorted(p.name for p in folder.iterdir()) == ["base", "peft", "run", "x"]
        return "behind the header" if passed else "header"
    adapter = read_adapter(output)
    for name, value in adapter.weights.items():
        assert math.isfinite(mx.abs(value).max().item()), name
        if name.endswith("lora_a"):
            assert value.shape[-1 if value.ndim == 2 else 1] == result.rank
    config = json.loads((folder / "x" / PEFT_CONFIG).read_bytes())
    assert result.rank <= max([config["r"], *(config.get("rank_pattern") or {}).values()])
    _remove(output)
    return "imported"


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize("inputs", repeats(300, 3_000))
def test_damaged_folders_end_in_one_error_of_ours(tmp_path: Path, inputs: int) -> None:
    ends = fuzz_kinds(tmp_path, KINDS, inputs, fuzz_kind)
    # The config is read before the header, and half of the damage is in it.
    assert inputs - ends["header"] > inputs / 5
    assert ends["behind the header"] > inputs / 20
    assert ends["imported"] > inputs / 20


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "check", "harmless"),
    [
        (peft_config, "_number_problems", lambda config: []),
        (peft_config, "_pattern_problem", lambda pattern: ""),
        (locate, "_incomplete", lambda *_: ""),
    ],
    ids=["numbers", "patterns", "tensors"],
)
def test_a_check_that_is_left_out_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, check: str, harmless: object
) -> None:
    monkeypatch.setattr(module, check, harmless)
    with pytest.raises(Exception) as caught:
        fuzz_kind(tmp_path, "lora", 1000, seed=0)
    assert not isinstance(caught.value, OrpoError)
