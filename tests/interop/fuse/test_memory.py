"""Fusing needs the memory of a shard, not of the model, measured in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import quantize_model, save_config

from orpo_mlx.interop.checkpoint.shards import lazy_tensor, save_shards
from orpo_mlx.model.safetensors import INDEX
from tests import tiny
from tests.interop.adapted import adapted

pytestmark = pytest.mark.touchy

SHARD_BYTES = 24_000_000
# The interpreter's own objects, code that is loaded late, buffers of files.
PROCESS_BYTES = 12_000_000
BASES: dict[str, tuple[int | None, str, dict[str, Any]]] = {
    "plain": (None, "llama", {"intermediate_size": 4096}),
    "8-bit": (8, "llama", {"intermediate_size": 8192}),
    "experts": (None, "qwen3_moe", {"moe_intermediate_size": 1024, "num_experts": 8}),
}


def in_many_shards(folder: Path, bits: int | None, family: str = "llama", **changes: Any) -> Path:
    """A base of some hundred MB, cut into shards of at most SHARD_BYTES."""
    model, config = tiny.build_model(
        family, hidden_size=1024, num_hidden_layers=4, head_dim=256, **changes
    )
    model.set_dtype(mx.bfloat16)
    if bits:
        model, config = quantize_model(model, config, group_size=32, bits=bits)
    tokenizer = tiny.build_tokenizer()
    folder.mkdir()
    tensors = {name: lazy_tensor(value) for name, value in tree_flatten(model.parameters())}
    save_shards(folder, tensors, layout="mlx", report=lambda event: None, shard_bytes=SHARD_BYTES)
    save_config(config | {"eos_token_id": tokenizer.eos_token_id}, folder / "config.json")
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Every base is made once, with its adapter next to it."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        bits, family, changes = BASES[kind]
        base = in_many_shards(folder / "base", bits, family, **changes)
        adapted(base, folder / "run", ["all-linear"])
        return folder

    return make


def measured(base: Path, run: Path, output: Path, *flags: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.interop.fuse.fuse_in_process"]
    done = subprocess.run(
        [*command, str(base), str(run), str(output), *flags],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("plain", ()), ("8-bit", ()), ("8-bit", ("--dequantize",)), ("experts", ())],
    ids=["plain", "8-bit", "dequantized", "experts"],
)
def test_the_peak_is_under_1_3_of_the_largest_shard_plus_the_adapter(
    base_of: Callable[[str], Path], tmp_path: Path, kind: str, flags: tuple[str, ...]
) -> None:
    base, run = base_of(kind) / "base", base_of(kind) / "run"
    shards = [f.stat().st_size for f in base.glob("model-*.safetensors")]
    assert len(set(json.loads((base / INDEX).read_text())["weight_map"].values())) >= 4
    result = measured(base, run, tmp_path / "out", *flags)
    bound = 1.3 * max(shards) + result["adapter"]
    assert result["mlx"] < bound
    assert result["process"] < bound + PROCESS_BYTES
    assert sum(shards) > 2 * bound  # loading the model would show
    assert result["checked"] > 30
    assert result["notices"] == [n for n in result["notices"] if "each weight was compared" in n]
    assert len(result["notices"]) == 1
