"""Training that starts from an adapter: its values, its layers, its settings."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
import yaml

from orpo_mlx.config.train import EvaluateConfig, TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Evaluated, Event
from orpo_mlx.training.evaluate import evaluate
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import settings, stop_after, tensors

pytestmark = pytest.mark.touchy

SAME = 1e-5  # float32 of the same pairs, in other micro-batches


@pytest.fixture(scope="module")
def first(llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two blocks with settings of its own. Do not write there."""
    output = tmp_path_factory.mktemp("first") / "run"
    train(settings(llama, data, output, num_layers=2, target_modules="q_proj,down_proj"))
    return output


def second_run(
    model: Path, data: Path, output: Path, adapter: Path, **changes: object
) -> TrainConfig:
    """Settings of a run that starts from an adapter and leaves layers and ranks unset."""
    given = settings(model, data, output, adapter=adapter, **changes).model_dump(exclude_unset=True)
    left_out = {"rank", "alpha"} - changes.keys()
    return TrainConfig.model_validate({k: v for k, v in given.items() if k not in left_out})


def test_step_0_measures_what_evaluate_measures_of_the_adapter(
    llama: Path, data: Path, first: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    valid = [str(data / "valid.jsonl")]
    config = second_run(llama, data, tmp_path / "second", first, valid_data=valid, eval_pairs="all")
    train(config, [events.append])
    at_start = next(e.metrics for e in events if isinstance(e, Evaluated) and e.step == 0)
    measured = evaluate(
        EvaluateConfig(
            model=str(llama),
            adapter=first,
            data=valid,
            max_seq_length=128,
        )
    )
    assert measured.adapter
    for name, value in measured.adapter.means().items():
        assert at_start[f"eval_{name}"] == pytest.approx(value, abs=SAME), name
    assert measured.base.means()["loss"] > measured.adapter.means()["loss"] + 0.01


def test_layers_rank_and_scale_are_the_adapters_and_are_kept_in_the_run(
    llama: Path, data: Path, first: Path, tmp_path: Path
) -> None:
    train(second_run(llama, data, tmp_path / "second", first, steps=1))
    ours, theirs = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (tmp_path / "second", first)
    )
    assert ours == theirs
    kept = yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())
    assert (kept["rank"], kept["num_layers"], kept["alpha"]) == (4, 2, 8.0)


def test_resume_needs_the_first_adapter_no_more(
    llama: Path, data: Path, first: Path, tmp_path: Path
) -> None:
    train(second_run(llama, data, tmp_path / "whole", first))
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in first.glob("*.*"):
        (moved / file.name).write_bytes(file.read_bytes())
    train(second_run(llama, data, tmp_path / "run", moved), [stop_after(2)])
    for file in moved.iterdir():
        file.unlink()
    train(second_run(llama, data, tmp_path / "run", moved, resume=True))
    final = "adapters.safetensors:model.layers.2.self_attn.q_proj.lora_a"
    assert tensors(tmp_path / "run")[final] == tensors(tmp_path / "whole")[final]


def test_settings_that_the_adapter_fixes_are_refused_by_name(
    llama: Path, data: Path, first: Path, tmp_path: Path
) -> None:
    config = second_run(
        llama,
        data,
        tmp_path / "second",
        first,
        rank=8,
        num_layers=1,
        rslora=True,
        target_modules=["v_proj", "o_proj"],
    )
    with pytest.raises(OrpoError, match="has its own settings") as error:
        train(config)
    assert str(error.value).splitlines()[1:] == [
        "  --num-layers 1: it has 2",
        "  --rank 8: it has 4",
        "  --rslora on: it has off",
        "  --target-modules v_proj,o_proj: it has mlp.down_proj,self_attn.q_proj",
    ]


def test_an_adapter_of_another_model_is_refused(data: Path, first: Path, tmp_path: Path) -> None:
    other = tiny.save_base(tmp_path / "other", hidden_size=128)
    with pytest.raises(OrpoError, match="does not fit this model"):
        train(second_run(other, data, tmp_path / "second", first))


def test_an_adapter_in_half_precision_is_trained_in_float32(
    llama: Path, data: Path, first: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    half.mkdir()
    (half / "adapter_config.json").write_text((first / "adapter_config.json").read_text())
    weights = mx.load(str(first / "adapters.safetensors"))
    assert isinstance(weights, dict)
    mx.save_safetensors(
        str(half / "adapters.safetensors"), {k: v.astype(mx.bfloat16) for k, v in weights.items()}
    )
    train(second_run(llama, data, tmp_path / "second", half, steps=1))
    trained = mx.load(str(tmp_path / "second" / "adapters.safetensors"))
    assert isinstance(trained, dict)
    assert {v.dtype for v in trained.values()} == {mx.float32}
