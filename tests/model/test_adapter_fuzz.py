"""Whatever is damaged in an adapter folder: one OrpoError, in bounded time and memory, or it is
an adapter indeed."""

import json
import math
from collections import Counter
from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.model import adapters, safetensors
from orpo_mlx.model.adapters import Adapter, apply_adapter, read_adapter
from orpo_mlx.model.safetensors import DTYPE_BYTES, StoredTensor
from tests import tiny
from tests.model.adapter_faults import SMALL, fuzz, fuzz_kinds, parse, save_run
from tests.model.test_adapters import IDS
from tests.repeats import repeats

KINDS = {
    "lora": ("llama", ["q_proj", "embed_tokens"]),
    "dora": ("llama", ["q_proj", "v_proj"]),
    "experts": ("qwen3_moe", ["switch_mlp.up_proj"]),
    "full": ("llama", ["all-linear"]),
}


def fuzz_kind(folder: Path, kind: str, count: int, seed: int) -> Counter[str]:
    """Read and apply so many damaged adapters; what must not happen is raised."""
    family, names = KINDS[kind]
    save_run(folder, kind, family, names)
    weights, config = (folder / "run" / n for n in (adapters.WEIGHTS, adapters.CONFIG))
    return fuzz(weights, config, folder / "x", count, seed, lambda: _end(folder / "x", family))


def _end(folder: Path, family: str) -> str:
    """How a folder ends: at its header, after it, as an adapter of another model, or applied."""
    passed: list[object] = []

    def read_header(file: Path) -> dict[str, StoredTensor]:
        header = safetensors.read_header(file)
        passed.append(header)
        return header

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adapters, "read_header", read_header)
            adapter = read_adapter(folder)
    except OrpoError:
        return "behind the header" if passed else "header"
    check_honest(folder, adapter)
    model, _ = tiny.build_model(family, **SMALL)
    try:
        apply_adapter(model, folder)
    except OrpoError:
        return "another model's"
    mx.eval(model(IDS))
    assert model.layers[0].self_attn.q_proj is not None
    return "applied"


def check_honest(folder: Path, adapter: Adapter) -> None:
    """What was accepted is what file and config contain, read by the specification alone."""
    header, data = parse((folder / adapters.WEIGHTS).read_bytes())
    tensors = {n: t for n, t in header.items() if n != "__metadata__"}
    assert adapter.weights.keys() == tensors.keys()
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        size = math.prod(entry["shape"]) * DTYPE_BYTES[entry["dtype"]]
        assert start == end and stop - start == size, name
        end = stop
        value = adapter.weights[name]
        assert list(value.shape) == entry["shape"]
        assert (
            bytes(memoryview(mx.contiguous(value.reshape(-1)).view(mx.uint8))) == data[start:stop]
        )
        assert math.isfinite(mx.abs(value.astype(mx.float32)).max().item())
    assert end == len(data)
    config = json.loads((folder / adapters.CONFIG).read_bytes())
    if adapter.kind != "full":
        ranks = {v.shape[1] for n, v in adapter.weights.items() if n.endswith("lora_a")}
        assert ranks == {config["lora_parameters"]["rank"]}
        assert math.isfinite(config["lora_parameters"]["scale"])


@pytest.mark.parametrize("inputs", repeats(1_000, 26_000))
def test_damaged_folders_end_in_one_error_of_ours(tmp_path: Path, inputs: int) -> None:
    ends = fuzz_kinds(tmp_path, KINDS, inputs, fuzz_kind)
    assert inputs - ends["header"] > inputs / 3
    assert ends["behind the header"] > inputs / 5
    assert ends["another model's"] > inputs / 250
    assert ends["applied"] > inputs / 250


def unchecked(file: Path) -> dict[str, StoredTensor]:
    """safetensors.read_header without any check of sizes and places."""
    try:
        header, _ = parse(file.read_bytes())
        return {
            name: StoredTensor(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise OrpoError("it is damaged") from None


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "check", "harmless"),
    [
        (safetensors, "read_header", unchecked),
        (adapters, "header_problems", lambda *_: []),
        (adapters, "_finite", lambda value: True),
    ],
    ids=["header", "claims", "values"],
)
def test_a_check_that_is_left_out_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, check: str, harmless: object
) -> None:
    monkeypatch.setattr(module, check, harmless)
    with pytest.raises(Exception) as caught:
        fuzz_kind(tmp_path, "lora", 3000, seed=0)
    assert not isinstance(caught.value, OrpoError)
