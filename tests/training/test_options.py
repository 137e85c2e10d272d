"""Every option of `train` changes something that can be seen. A new one without a case fails."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.llama import TransformerBlock

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Saved
from orpo_mlx.sinks.attach import sinks_for
from orpo_mlx.training.loop import train
from orpo_mlx.training.step import TrainStep
from tests import tiny
from tests.training import data_cases, judged, supervisor_cases
from tests.training.runs import notices, rows, settings, stop_after, tensors

# Reads everything that a template can be given: reasoning, an argument, the clock.
TEMPLATE = (
    "{{ tone }}{{ strftime_now('%d') }}{% if enable_thinking %}please{% endif %}" + tiny.CHATML
)
Seen = dict[str, Any]


def base_for(case: str, folder: Path) -> Path:
    """The base that shows the difference: llama, unless the option needs another."""
    if case in ("thinking", "template_date", "template_args"):
        return tiny.save_base(folder, template=TEMPLATE)
    if case == "keep_quantized":
        return tiny.save_base(folder, bits=4)
    if case == "trust_remote_code":
        tiny.save_base(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_file": "own.py"}))
        (folder / "own.py").write_text("from mlx_lm.models.llama import Model, ModelArgs\n")
        return folder
    return tiny.save_base(folder)


def observed(config: TrainConfig) -> Seen:
    """What a run shows, its own name and its echo of the settings aside."""
    events: list[Event] = []
    try:
        result = train(config, [events.append])
    except OrpoError as error:
        return {"error": str(error).split("\n")[0]}
    output = result.output
    adapter = json.loads((output / "adapter_config.json").read_text())
    return {
        "rows": rows(output),
        "tensors": tensors(output),
        "adapter": {k: v for k, v in adapter.items() if k not in ("model", "revision")},
        "ends": (output / "generation_config.json").read_text(),
        "template": (output / "chat_template.jinja").read_text(),
        "saved": [e.step for e in events if isinstance(e, Saved)],
        "notices": notices(events),
    }


def two_runs(name: str, before: Seen, after: Seen) -> tuple[Seen, Seen]:
    """What two runs in the working folder show that differ in one option."""
    here = Path()
    model, data = base_for(name, here / "base"), here / "data"
    data.mkdir()
    tiny.save_pairs(data / "train.jsonl", 16)
    tiny.save_pairs(data / "valid.jsonl", 5, start=100)
    tiny.save_pairs(here / "other.jsonl", 16, start=50)
    (here / "own.jinja").write_text(TEMPLATE)
    common = {"data": ["data"], "steps": None if "epochs" in after else 2}
    return (
        observed(settings(model, data, here / "a", **common | before)),
        observed(settings(model, data, here / "b", **common | after)),
    )


# The option's value in a second run, or the values (and what they need) in both.
CASES: dict[str, Any] = {
    "trust_remote_code": True,
    "keep_quantized": True,
    "eos_token": "<|endoftext|>",
    "chat_template": "own.jinja",
    "template_args": {"tone": "kindly"},
    "thinking": "on",
    "template_date": "2026-01-03",
    "max_seq_length": 24,
    "max_prompt_length": ({"max_seq_length": 24}, {"max_seq_length": 24, "max_prompt_length": 20}),
    "beta": 0.5,
    "nll_on": "prompt+response",
    "data": ["other.jsonl"],
    "sft_data": ["other.jsonl"],
    "valid_data": ["other.jsonl"],
    "seed": 1,
    "steps": 3,
    "epochs": ({"epochs": 0.5}, {"epochs": 0.75}),
    "batch_size": 2,
    "micro_batch_size": 4,
    "optimizer": "lion",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup": 2,
    "weight_decay": 0.5,
    "max_grad_norm": 1e-3,
    "fine_tune_type": "dora",
    "rank": 8,
    "alpha": 16.0,
    "rslora": True,
    "dropout": 0.1,
    "num_layers": 1,
    "target_modules": "q_proj",
    "eval_every": 1,
    "eval_pairs": 2,
    "save_every": 1,
    "keep_checkpoints": ({"save_every": 1}, {"save_every": 1, "keep_checkpoints": 1}),
}


def case_model(tmp_path: Path) -> None:
    model, pairs = tiny.save_base(tmp_path / "one"), tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    other = tiny.save_base(tmp_path / "two", seed=1)
    first = observed(settings(model, pairs, tmp_path / "a", steps=1))
    assert observed(settings(other, pairs, tmp_path / "b", steps=1))["rows"] != first["rows"]


def case_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = tiny.save_base(tmp_path / "one"), []

    def download(model: str, *, revision: str | None, **rest: Any) -> str:
        asked.append((model, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    output = tmp_path / "run"
    train(settings(Path("some/model"), pairs, output, steps=1, revision="v2"))
    assert asked == [("some/model", "v2")]
    config = json.loads((output / "adapter_config.json").read_text())
    assert (config["model"], config["revision"]) == ("some/model", "v2")


def case_output(tmp_path: Path) -> None:
    model, pairs = tiny.save_base(tmp_path / "one"), tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    train(settings(model, pairs, tmp_path / "here" / "there", steps=1))
    assert (tmp_path / "here" / "there" / "adapters.safetensors").exists()


def case_overwrite(tmp_path: Path) -> None:
    model, pairs = tiny.save_base(tmp_path / "one"), tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    train(settings(model, pairs, tmp_path / "run", steps=1))
    assert "exists" in observed(settings(model, pairs, tmp_path / "run", steps=2))["error"]
    again = observed(settings(model, pairs, tmp_path / "run", steps=2, overwrite=True))
    assert [row["step"] for row in again["rows"]] == [1, 2]


def case_resume(tmp_path: Path) -> None:
    model, pairs = tiny.save_base(tmp_path / "one"), tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    train(settings(model, pairs, tmp_path / "run"), [stop_after(1)])
    assert "exists" in observed(settings(model, pairs, tmp_path / "run"))["error"]
    again = observed(settings(model, pairs, tmp_path / "run", resume=True))
    assert [row["step"] for row in again["rows"]] == [1, 2, 3, 4]
    assert again["saved"] == [4]


def layer_calls(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[tuple[int, ...]]:
    """The shapes that the blocks see in one step; the numbers of the run are the same anyway."""
    here = Path()
    shapes: list[tuple[int, ...]] = []
    call, micro_step = TransformerBlock.__call__, TrainStep.micro_step

    def seen(self: TransformerBlock, x: mx.array, *rest: Any, **named: Any) -> mx.array:
        shapes.append(x.shape)
        return call(self, x, *rest, **named)

    def watched(self: TrainStep, *arguments: Any) -> Any:
        shapes.clear()
        return micro_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TransformerBlock, "__call__", seen)
        patch.setattr(TrainStep, "micro_step", watched)
        train(settings(here / "base", here / "pairs.jsonl", here / "run", steps=1, **changes))
    return shapes


def case_grad_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save_base(tmp_path / "base")
    tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    without = layer_calls(monkeypatch)
    again = layer_calls(monkeypatch, grad_checkpoint=True, overwrite=True)
    assert sorted(again) == sorted(2 * without)


def case_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save_base(tmp_path / "base")
    tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    fast = layer_calls(monkeypatch)
    plain = layer_calls(monkeypatch, plain=True, overwrite=True)
    assert len(plain) == 3 and {shape[0] for shape in plain} == {4}  # two pairs, two responses each
    positions = [sum(math.prod(shape[:2]) for shape in shapes) for shapes in (fast, plain)]
    assert positions[0] < 0.8 * positions[1]


def case_adapter(tmp_path: Path) -> None:
    model, pairs = tiny.save_base(tmp_path / "one"), tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    first = observed(settings(model, pairs, tmp_path / "a", steps=1))
    changes = {"rank": 4, "alpha": 8.0, "adapter": tmp_path / "a"}
    second = observed(settings(model, pairs, tmp_path / "b", steps=1, **changes))
    assert second["rows"][0]["loss"] < first["rows"][0]["loss"]


def case_sample_prompts(tmp_path: Path) -> None:
    model, pairs = tiny.save_base(tmp_path / "one"), tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    (tmp_path / "prompts.txt").write_text("please help\n")
    config = settings(model, pairs, tmp_path / "a", sample_prompts=tmp_path / "prompts.txt")
    train(config.model_copy(update={"steps": 1}))
    lines = (tmp_path / "a" / "samples.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in lines]
    assert steps == [0, 1]


def case_log_to(tmp_path: Path) -> None:
    model, pairs = tiny.save_base(tmp_path / "one"), tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    config = settings(model, pairs, tmp_path / "a", steps=1, log_to="tensorboard")
    with sinks_for(config, lambda event: None) as sinks:
        train(config, sinks)
    assert list((tmp_path / "a" / "tensorboard").iterdir())


SPECIAL: dict[str, Callable[..., None]] = {
    "adapter": case_adapter,
    "model": case_model,
    "revision": case_revision,
    "output": case_output,
    "grad_checkpoint": case_grad_checkpoint,
    "plain": case_plain,
    "overwrite": case_overwrite,
    "resume": case_resume,
    "sample_prompts": case_sample_prompts,
    "log_to": case_log_to,
}
OTHERS = data_cases.CASES | judged.CASES | supervisor_cases.CASES


@pytest.mark.parametrize("name", TrainConfig.model_fields)
def test_every_option_changes_something(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name in ("revision", "grad_checkpoint", "plain"):
        SPECIAL[name](tmp_path, monkeypatch)
    elif name in OTHERS:
        OTHERS[name](monkeypatch)
    elif name in SPECIAL:
        SPECIAL[name](tmp_path)
    else:
        case = CASES[name]
        before, after = case if isinstance(case, tuple) else ({}, {name: case})
        first, second = two_runs(name, before, after)
        assert first != second
        assert "error" not in second, second


def test_the_cases_are_of_options_that_there_are() -> None:
    cases = CASES.keys() | SPECIAL.keys() | OTHERS.keys()
    assert cases == TrainConfig.model_fields.keys()


def test_the_scale_is_alpha_by_rank_or_by_its_root(tmp_path: Path) -> None:
    model, pairs = tiny.save_base(tmp_path / "one"), tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    for rslora, scale in ((False, 1.5), (True, 6.0)):
        config = settings(
            model, pairs, tmp_path / f"{rslora}", steps=1, rank=16, alpha=24.0, rslora=rslora
        )
        assert observed(config)["adapter"]["lora_parameters"]["scale"] == scale
