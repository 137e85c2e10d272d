"""A base that gives NaN or infinite numbers is named as the cause, not the user's pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from orpo_mlx.cli.main import run
from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.config.train import EvaluateConfig, GenerateConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.review.answers.generate import generate, open_chat
from orpo_mlx.review.pairs.check import check_data
from orpo_mlx.training.evaluate import evaluate
from orpo_mlx.training.loop import train
from tests import tiny
from tests.interop.adapted import adapted
from tests.training.runs import settings

UP = "model.layers.1.mlp.up_proj.weight"


def with_value(folder: Path, name: str, value: float) -> Path:
    """A base with one value that is none."""
    tiny.save_base(folder)
    weights: Any = mx.load(str(folder / "model.safetensors"))
    weights[name][..., 3] = value
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def overflowing(folder: Path) -> Path:
    """In 4 bits with float16 scales; products, not weights, are too large for float16."""
    tiny.save_base(folder, dtype=mx.float16)
    model, config = load_model(folder)
    for name in ("gate_proj", "up_proj"):
        getattr(model.layers[1].mlp, name).weight *= 900
    model, config = quantize_model(model, config, group_size=32, bits=4)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


def by_training(base: Path, pairs: Path, output: Path, **more: Any) -> Any:
    return train(settings(base, pairs, output, **more))


def by_validating(base: Path, pairs: Path, output: Path, **more: Any) -> Any:
    return train(settings(base, pairs, output, valid_data=[str(pairs)], **more))


def by_training_plainly(base: Path, pairs: Path, output: Path, **more: Any) -> Any:
    return train(settings(base, pairs, output, plain=True, **more))


def by_evaluating(base: Path, pairs: Path, output: Path, **more: Any) -> Any:
    return evaluate(EvaluateConfig(model=base, data=[pairs], **more))


def by_checking(base: Path, pairs: Path, output: Path, **more: Any) -> Any:
    return check_data(DataCheckConfig(model=base, data=[pairs], **more))


def by_generating(base: Path, pairs: Path, output: Path, **more: Any) -> Any:
    config = GenerateConfig(model=base, prompt="hi", max_tokens=3, **more)
    return list(generate(open_chat(config), "hi", config))


Use = Callable[..., Any]
USES: list[Use] = [
    by_training,
    by_validating,
    by_training_plainly,
    by_evaluating,
    by_checking,
    by_generating,
]


def refusal(use: Use, base: Path, tmp_path: Path, **more: Any) -> str:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    with pytest.raises(OrpoError) as caught:
        use(base, pairs, tmp_path / "run", **more)
    assert "learning-rate" not in str(caught.value)
    assert "NaN or infinite numbers" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("use", USES)
def test_the_weight_that_holds_the_value_is_named(use: Use, value: float, tmp_path: Path) -> None:
    base = with_value(tmp_path / "base", UP, value)
    assert f"its weight {UP} holds values that are NaN or infinite" in refusal(use, base, tmp_path)


@pytest.mark.parametrize("use", [u for u in USES if u is not by_checking])
def test_a_data_type_that_is_too_small_is_named(use: Use, tmp_path: Path) -> None:
    base = overflowing(tmp_path / "base")
    message = refusal(use, base, tmp_path, keep_quantized=True)
    assert "its weights are finite, but float16 does not hold what it computes" in message
    assert "Leave out --keep-quantized" in message


def test_a_rope_of_nan_is_looked_for_in_the_config(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_theta": float("nan")}))
    message = refusal(by_evaluating, base, tmp_path)
    assert "its weights are finite: look at the numbers in its config.json" in message


def test_the_command_line_ends_with_1_and_prints_no_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = with_value(tmp_path / "base", UP, float("nan"))
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    assert run(["evaluate", "--model", str(base), "--data", str(pairs), "--json"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("use", USES)
def test_weights_are_not_looked_through_while_numbers_are_finite(
    use: Use, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(model: Any) -> str:
        raise AssertionError("the weights were read")

    for module in ("training.checks.self_check", "training.evaluate", "training.checks.not_finite"):
        monkeypatch.setattr(f"orpo_mlx.{module}.why_not_finite", looked)
    monkeypatch.setattr("orpo_mlx.training.checks.not_finite.first_part", looked)
    monkeypatch.setattr("orpo_mlx.training.samples.answer.why_not_finite", looked)
    use(llama, tiny.save_pairs(tmp_path / "pairs.jsonl", 8), tmp_path / "run")


def test_an_adapter_that_is_too_large_is_named_and_not_the_config(
    tmp_path: Path, llama: Path
) -> None:
    run = tmp_path / "run"
    adapted(llama, run, ["q_proj"])
    file = str(run / "adapters.safetensors")
    tensors: Any = mx.load(file)
    mx.save_safetensors(file, {name: value * 1e25 for name, value in tensors.items()})
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    for use in (by_evaluating, by_generating):
        with pytest.raises(OrpoError) as caught:
            use(llama, pairs, tmp_path / "out", adapter=run)
        assert "its weights are finite, but those of the adapter reach 1." in str(caught.value)
        assert "config.json" not in str(caught.value)
