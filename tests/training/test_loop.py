"""A run as a whole: it learns, leaves what other tools read, and says what it cannot do."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Evaluated, Event, Finished, Progress, Saved
from orpo_mlx.files import LOCK
from orpo_mlx.model import lora
from orpo_mlx.model.adapters import apply_adapter
from orpo_mlx.model.base import load_base
from orpo_mlx.training.loop import train
from orpo_mlx.training.metrics.early_warning import early_rise
from orpo_mlx.training.optim import Optimizer
from orpo_mlx.training.plan import Plan
from tests import tiny
from tests.training.runs import notices, rows, settings, stop_after

pytestmark = pytest.mark.touchy

IDS = mx.array([[5, 9, 40, 7, 300, 12]])


def test_a_run_leaves_what_other_tools_read(
    llama: Path, uninterrupted: tuple[Path, list[Event]]
) -> None:
    output, events = uninterrupted
    names = {p.name for p in output.iterdir()}
    assert names >= {
        "adapters.safetensors",
        "adapter_config.json",
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }
    saved = [p.name for p in sorted((output / "checkpoints").iterdir())]
    assert saved == [f"step-{step:07}" for step in (14, 15, 20)]
    assert [e.step for e in events if isinstance(e, Saved)] == [5, 7, 10, 14, 15, 20]
    assert {p.stat().st_mode & 0o777 for p in output.rglob("*") if p.is_file()} == {0o644}
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["lora_parameters"]["scale"] == 2.0
    assert (config["model"], config["num_layers"]) == (str(llama), 3)
    tokenizer = load_base(str(llama), adapter=output).tokenizer
    assert tokenizer.chat_template == tiny.CHATML
    assert isinstance(events[-1], Finished)
    steps = [row["step"] for row in rows(output) if "loss" in row]
    assert steps == list(range(1, 21))
    assert [e.step for e in events if isinstance(e, Evaluated)] == [0, 7, 14, 20]


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_mlx_lm_loads_what_was_trained(llama: Path, data: Path, tmp_path: Path, kind: str) -> None:
    train(settings(llama, data, tmp_path / "run", fine_tune_type=kind, num_layers=2))
    ours = load_base(str(llama)).model
    before = ours(IDS)
    apply_adapter(ours, tmp_path / "run")
    theirs, _ = mlx_lm.load(str(llama), adapter_path=str(tmp_path / "run"))
    assert mx.abs(ours(IDS) - theirs(IDS)).max().item() < 1e-5
    assert mx.abs(ours(IDS) - before).max().item() > 1e-2


def test_full_trains_bfloat16_weights_and_writes_a_model_folder(data: Path, tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base", dtype=mx.bfloat16)
    output = tmp_path / "run"
    events: list[Event] = []
    train(
        settings(
            folder, data, output, fine_tune_type="full", num_layers=1, keep_quantized=True,
            learning_rate=1e-3, rank=2,
        ), [events.append],
    )  # fmt: skip
    assert notices(events, warning=True) == ["--fine-tune-type full does not use --rank, --alpha."]
    model, _ = mlx_lm.load(str(output / "model"))
    base = dict(tree_flatten(mlx_lm.load(str(folder))[0].parameters()))
    changed = {n for n, v in tree_flatten(model.parameters()) if not mx.array_equal(v, base[n])}
    assert changed == {n for n in base if n.startswith("model.layers.2.")}
    masters = mx.load(str(output / "checkpoints" / "step-0000004" / "weights.safetensors"))
    assert {v.dtype for v in masters.values()} == {mx.float32}
    assert {v.dtype for v in base.values()} == {mx.bfloat16}
    now = dict(tree_flatten(model.parameters()))
    assert all(mx.array_equal(v.astype(mx.bfloat16), now[n]) for n, v in masters.items())


def test_full_needs_an_unquantized_base(quantized_llama: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(OrpoError, match=r"full needs an unquantized base, .* is quantized"):
        train(settings(quantized_llama, data, tmp_path / "run", fine_tune_type="full"))
    assert not (tmp_path / "run").exists()


def test_a_quantized_base_reports_its_drift(
    quantized_llama: Path, data: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    train(settings(quantized_llama, data, tmp_path / "run"), [events.append])
    (notice,) = [t for t in notices(events) if "on its quantized weights" in t]
    average, largest = (float(notice.split(w)[1].split()[0].rstrip(";")) for w in ("by", "most"))
    assert 0 < average <= largest < 0.1
    assert "(at most" in notice and "; 4 held-out pairs)" in notice


def gradients_of_first_step(
    model: Path, data: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> dict[str, np.ndarray]:
    """Of the pairs 0 to 7, in micro-batches of the given size."""
    seen: list[Any] = []
    update = Optimizer.update

    def keep(self: Optimizer, gradients: Any, rate: float) -> float:
        seen.append({n: np.array(g) for n, g in tree_flatten(gradients)})
        return update(self, gradients, rate)

    def same_pairs(self: Plan, step: int) -> list[np.ndarray]:
        return np.split(np.arange(8), 8 // self.micro_batch_size)

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "update", keep)
        patch.setattr(Plan, "step", same_pairs)
        train(settings(model, data, output, steps=1, batch_size=8, **changes))
    return seen[0]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("nll_on", ["response", "prompt+response"])
def test_micro_steps_add_up_to_one_batch(
    llama: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nll_on: str,
    plain: bool,
) -> None:
    whole, *cut = (
        gradients_of_first_step(
            llama,
            data,
            tmp_path / f"{size}",
            monkeypatch,
            micro_batch_size=size,
            nll_on=nll_on,
            plain=plain,
        )
        for size in (8, 1, 2, 4)
    )
    scale = max(np.abs(g).max() for g in whole.values())
    for gradients in cut:
        for name, value in gradients.items():
            # float32 sums of some hundred positions, other paddings, another order
            np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-5 * scale)
    first, second = (rows(tmp_path / f"{size}")[1] for size in (8, 1))
    assert first == pytest.approx(second, rel=1e-5)


def test_dropout_has_other_masks_at_every_step_and_micro_step(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(name: str, **changes: Any) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        with monkeypatch.context() as patch:
            patch.setattr(lora, "reset_dropout", lambda m, key: seen.append(tuple(key.tolist())))
            train(settings(llama, data, tmp_path / name, dropout=0.1, **changes))
        return seen

    first = keys("one")
    assert len(set(first)) == len(first) == 8  # four steps of two micro-batches
    assert keys("two") == first
    assert not set(keys("three", seed=1)) & set(first)


def test_micro_batches_are_as_large_as_fits(llama: Path, data: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    train(
        settings(llama, data, tmp_path / "run", batch_size=6, micro_batch_size="auto"),
        [events.append],
    )
    done = [e.done for e in events if isinstance(e, Progress) and e.stage == "Validating"]
    assert done[:1] == [5]  # all five held-out pairs at once: 6 pairs stay under 2048 tokens


def test_a_toy_preference_is_learnt(llama: Path, tmp_path: Path) -> None:
    pairs = tiny.save_pairs(tmp_path / "train.jsonl", 48)
    held_out = tiny.save_pairs(tmp_path / "valid.jsonl", 12, start=200)
    events: list[Event] = []
    result = train(
        settings(
            llama, pairs, tmp_path / "run", valid_data=[str(held_out)], steps=30, batch_size=8,
            micro_batch_size=8, learning_rate=1e-2,
        ), [events.append],
    )  # fmt: skip
    before = next(e for e in events if isinstance(e, Evaluated)).metrics
    assert before["eval_rewards/accuracies"] < 1
    assert result.metrics["eval_rewards/accuracies"] == 1
    assert result.metrics["eval_logps/chosen"] > before["eval_logps/chosen"] + 0.5
    assert result.metrics["eval_log_odds_chosen"] > 1
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_rising_loss_is_warned_about(llama: Path, data: Path, tmp_path: Path) -> None:
    train(settings(llama, data, tmp_path / "full", fine_tune_type="full", steps=20))
    learnt = tmp_path / "full" / "model"

    def warnings_of(name: str, stop: int | None = None, **changes: Any) -> list[str]:
        events: list[Event] = []
        callbacks = [events.append, *([stop_after(stop)] if stop else [])]
        train(settings(learnt, data, tmp_path / name, steps=8, **changes), callbacks)
        return [text for text in notices(events, warning=True) if "The loss rose from" in text]

    wild = {"learning_rate": 0.5, "warmup": 0}
    assert not warnings_of("calm")
    (warning,) = warnings_of("wild", **wild)
    assert warning.endswith("over the first 8 steps. Try a lower --learning-rate (now 0.5).")
    assert not warnings_of("cut", stop=4, **wild)
    assert warnings_of("cut", **wild, resume=True) == [warning]


def test_noise_is_not_a_rise() -> None:
    random = np.random.default_rng(0)
    flat = [early_rise(list(2.0 + 0.2 * random.normal(size=20))) for _ in range(400)]
    assert sum(map(bool, flat)) < 24  # one in twenty
    assert early_rise([2.0 + 0.02 * k for k in range(20)]) == (2.0, pytest.approx(2.29))
    assert early_rise([1.0, 5.0, 7.0, 6.0, 5.5, 5.0, 4.9, 4.8]) == (1.0, pytest.approx(5.05))
    assert early_rise([1.0, 9.0]) is None


def test_a_router_taken_by_name_is_warned_about(data: Path, tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base", "qwen3_moe")
    for names, count in (("all-linear", 0), ("q_proj,mlp.gate", 1)):
        events: list[Event] = []
        output = tmp_path / f"run{count}"
        train(settings(folder, data, output, target_modules=names, steps=1), [events.append])
        warnings = [t for t in notices(events, warning=True) if "route tokens" in t]
        assert len(warnings) == count
    assert warnings[0].startswith("mlp.gate: these route tokens to experts;")


def times(output: Path) -> dict[Path, int]:
    """When each file of a run was written; the lock names whoever had it last."""
    files = (p for p in output.rglob("*") if p.is_file() and p.name != LOCK)
    return {p: p.stat().st_mtime_ns for p in files}


def test_nothing_is_written_before_all_input_is_read(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train(settings(llama, data, output, steps=1))
    before = times(output)
    for changes in (
        {"data": ["no-such-file.jsonl"]},
        {"model": "./no-such-folder"},
        {"eos_token": "<end>"},
        {"target_modules": "c_attn"},
        {"num_layers": 9},
        {"chat_template": Path("no.jinja")},
    ):
        with pytest.raises(OrpoError):
            train(settings(llama, data, output, overwrite=True).model_copy(update=changes))
    assert times(output) == before
    train(settings(llama, data, output, overwrite=True, steps=2))
    assert len(rows(output)) == 4
