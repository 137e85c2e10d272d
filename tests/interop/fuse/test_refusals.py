"""What fuse refuses, by name, and that a fault in it leaves no output."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tokenizers import Tokenizer

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.interop.fuse import merge as fusing
from orpo_mlx.interop.fuse import tensor_plan, write
from orpo_mlx.interop.fuse.tensor_plan import Edit
from orpo_mlx.model import updates
from orpo_mlx.model.base import load_base
from tests import tiny
from tests.interop.adapted import adapted, fused


@pytest.fixture
def run(llama: Path, tmp_path: Path) -> Path:
    adapted(llama, tmp_path / "run", ["all-linear"])
    return tmp_path / "run"


def refusal(run: Path, output: Path, **settings: Any) -> str:
    there = output.exists()
    with pytest.raises(OrpoError) as caught:
        fused(run, output, **settings)
    assert output.exists() == there
    assert not list(output.parent.glob(f".{output.name}.*"))
    return str(caught.value)


def of_the_wrong_matrix(layout: tensor_plan.ModelLayout, changes: Any) -> dict[str, list[Edit]]:
    edits = tensor_plan.direct_edits(layout, changes)
    swapped = {"q_proj": "o_proj", "o_proj": "q_proj"}
    return {
        ".".join(swapped.get(part, part) for part in name.split(".")): edit
        for name, edit in edits.items()
    }


def without_the_last_module(layout: tensor_plan.ModelLayout, changes: Any) -> dict[str, list[Edit]]:
    edits = tensor_plan.direct_edits(layout, changes)
    return dict(list(edits.items())[:-1])


FAULTS: list[tuple[Any, str, Callable[..., Any]]] = [
    (write, "apply_updates", lambda rows, some, start, expert: rows),
    (
        write,
        "apply_updates",
        lambda rows, changes, start, expert: updates.apply_updates(rows, changes, 0, expert),
    ),
    (fusing, "direct_edits", of_the_wrong_matrix),
    (fusing, "direct_edits", without_the_last_module),
]


@pytest.mark.parametrize(("module", "name", "fault"), FAULTS)
@pytest.mark.parametrize("bits", [None, 4])
def test_a_planted_fault_is_found_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Any, bits: int
) -> None:
    base = tiny.save_base(tmp_path / "base", bits=bits)
    adapted(base, tmp_path / "run", ["all-linear"])
    monkeypatch.setattr("orpo_mlx.model.updates.ROWS_BYTES", 10_000)  # several pieces a weight
    monkeypatch.setattr(module, name, fault)
    message = refusal(tmp_path / "run", tmp_path / "out", verify=True)
    assert message.startswith(
        "The fused weights are not base + adapter, nothing was written:\n  mod"
    )


def test_a_config_that_computes_otherwise_is_found_by_the_logits(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are right; the answers are not."""
    kept = fusing.write_sidecar

    def changed(base: Path, run: Path, target: Path, **settings: Any) -> None:
        kept(base, run, target, **settings)
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.3}))

    monkeypatch.setattr(fusing, "write_sidecar", changed)
    message = refusal(run, tmp_path / "out", verify=True)
    assert message.startswith("The fused model is not base + adapter: ")


def test_an_output_is_replaced_only_when_asked(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    assert "exists. Replace it with --overwrite" in refusal(run, output)
    (run / "adapters.safetensors").write_bytes(b"damaged")
    refusal(run, output, overwrite=True)
    assert (output / "mine.txt").read_text() == "mine"


def test_the_base_is_not_written_over(run: Path, llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    before = {f.name: f.read_bytes() for f in base.iterdir()}
    message = refusal(run, base, model=str(base), overwrite=True)
    assert message == f"--output {base} holds the base. Name another folder."
    assert {f.name: f.read_bytes() for f in base.iterdir()} == before
    message = refusal(run, run, model=str(base), overwrite=True)
    assert message == f"--output {run} holds the adapter. Name another folder."


def test_the_pairs_are_not_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    pairs = tmp_path / "mine" / "pairs.jsonl"
    pairs.write_text("{}")
    message = refusal(run, tmp_path / "mine", data=[str(pairs)], overwrite=True)
    assert message == f"--output {tmp_path / 'mine'} holds the pairs. Name another folder."
    assert pairs.is_file()


def test_a_base_that_is_not_where_the_adapter_says_is_asked_for(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "adapter_config.json").read_text()) | {"model": "llama/not/here"}
    (run / "adapter_config.json").write_text(json.dumps(config))
    message = refusal(run, tmp_path / "out")
    assert message.startswith(f"Adapter {run} was trained on llama/not/here: no such folder")
    assert message.endswith("Give its base with --model BASE.")


@pytest.mark.parametrize(("share", "dtype"), [("1e6", "float16"), ("1e40", None)])
def test_weights_that_are_too_large_are_named(
    share: str, dtype: str | None, run: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"adapter": [f"{run}:{share}"], "dtype": dtype, "verify": False}
    message = refusal(run, tmp_path / "out", **how)
    assert "weight would have values that F" in message and "a smaller share" in message


def test_a_disk_that_is_full_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orpo_mlx.interop.checkpoint.shards._write_header", full)
    assert refusal(run, tmp_path / "out").endswith("the disk is full.")


def test_an_adapter_that_does_not_say_its_base_needs_one(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(config | {"model": None}))
    assert refusal(run, tmp_path / "out") == (
        f"Adapter {run} does not name the base that it was trained on. Give it with --model BASE."
    )


def test_an_adapter_on_a_resized_embedding_is_refused_by_name(llama: Path, tmp_path: Path) -> None:
    larger = tiny.save_base(tmp_path / "larger", vocab_size=tiny.VOCABULARY + 8)
    adapted(larger, tmp_path / "run", ["embed_tokens"])
    message = refusal(tmp_path / "run", tmp_path / "out", model=str(llama))
    assert "model.embed_tokens.lora_a: adapter shape (392, 4) does not match model parameter" in (
        message
    )


def test_tokens_without_an_embedding_are_named(run: Path, llama: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    tokenizer.add_special_tokens([f"<|new {n}|>" for n in range(120)])
    tokenizer.save(str(run / "tokenizer.json"))
    shutil.copy(llama / "tokenizer_config.json", run)
    rows = load_base(str(llama)).model.model.embed_tokens.weight.shape[0]
    beyond = tokenizer.get_vocab_size() - rows
    assert beyond > 3
    events: list[Event] = []
    fused(run, tmp_path / "out", report=events.append)
    first = 120 - beyond
    (message,) = [e.text for e in events if isinstance(e, Notice) and "no embedding" in e.text]
    assert message.startswith(
        f"{run}: its tokenizer has {beyond} tokens (<|new {first}|>, <|new {first + 1}|>, "
        f"<|new {first + 2}|> ...) that the base has no embedding for: it has {rows} rows."
    )


def test_a_damaged_base_is_refused(run: Path, llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert f"{weights} is damaged; safetensors reports " in refusal(
        run, tmp_path / "out", model=str(base)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "bits", "verify"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, False),  # the adapter changes it
        ("model.layers.1.mlp.up_proj.weight", 4, False),
        ("model.norm.weight", None, True),
        ("model.embed_tokens.weight", 4, True),
    ],
)
def test_a_base_that_is_not_finite_is_refused_with_the_weight(
    tmp_path: Path, name: str, bits: int | None, verify: bool, value: float
) -> None:
    base = tiny.save_base(tmp_path / "base", bits=bits)
    weights: Any = mx.load(str(base / "model.safetensors"))
    stored = name.replace("weight", "scales") if bits else name
    weights[stored][..., 1] = value
    mx.save_safetensors(str(base / "model.safetensors"), weights, metadata={"format": "mlx"})
    adapted(base, tmp_path / "run", ["up_proj"])
    message = refusal(tmp_path / "run", tmp_path / "out", verify=verify)
    assert message.startswith(f"The base's weight {name} holds values that are NaN or infinite")


def test_a_base_whose_logits_are_not_finite_is_named_and_not_the_share(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_theta": float("nan")}))
    adapted(base, tmp_path / "run", ["up_proj"])
    message = refusal(tmp_path / "run", tmp_path / "out", verify=True)
    assert message.startswith("The base gives NaN or infinite numbers for ")
    assert message.endswith("look at the numbers in its config.json (rope, scales, epsilons).")


def test_quantized_towers_are_not_made_half_plain(tmp_path: Path) -> None:
    """As mlx-vlm writes them: quantized layers that mlx-lm does not read."""
    base = tiny.save_base(tmp_path / "base", "qwen3_5", bits=4)
    weights: Any = mx.load(str(base / "model.safetensors"))
    tower = {
        f"vision_tower.proj.{leaf}": value
        for leaf, value in zip(
            ("weight", "scales", "biases"), mx.quantize(mx.ones((8, 64)), 32, 4), strict=True
        )
    }
    (base / "model.safetensors.index.json").unlink()
    mx.save_safetensors(str(base / "model.safetensors"), {**weights, **tower})
    adapted(base, tmp_path / "run", ["q_proj"])
    fused(tmp_path / "run", tmp_path / "out")
    kept: Any = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert mx.array_equal(kept["vision_tower.proj.weight"], tower["vision_tower.proj.weight"])
    message = refusal(tmp_path / "run", tmp_path / "plain", dequantize=True)
    assert "vision_tower.proj is quantized and not part of the text model" in message
