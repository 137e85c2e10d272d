"""Runs on bases with recurrent layers: what is said, checked, kept and continued."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.events import Event
from orpo_mlx.model import recurrent
from orpo_mlx.model.base import load_base
from orpo_mlx.run_folder.checksums import SUMS, save_checksums
from orpo_mlx.training import build
from orpo_mlx.training.checks.self_check import REFERENCE_SPAN
from orpo_mlx.training.evaluate import evaluate_encoded, quantization_drift
from orpo_mlx.training.forward_path import fast_path
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import notices, rows, settings, stop_after, tensors

pytestmark = pytest.mark.touchy

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random qwen3_5 whose decays are those of trained models: some channels keep nearly all."""
    folder = tiny.save_base(tmp_path_factory.mktemp("qwen") / "base", "qwen3_5")
    file = folder / "model.safetensors"
    weights: Any = mx.load(str(file))
    for name, value in weights.items():
        if name.endswith("A_log"):
            weights[name] = mx.linspace(-4.0, 2.5, value.size)
        elif name.endswith("dt_bias"):
            weights[name] = mx.linspace(-6.0, 1.0, value.size)
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of real text: what follows a passage of the README, and what follows another."""
    words = README.read_text(encoding="utf-8").split()
    file = tmp_path_factory.mktemp("text") / "pairs.jsonl"
    passages = [" ".join(words[n : n + 12]) for n in range(0, 500, 12)]
    triples = zip(passages, passages[1:], passages[5:], strict=False)
    pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in triples]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return file


def state_of(output: Path) -> dict[str, Any]:
    (file,) = output.glob("checkpoints/*/state.json")
    state: dict[str, Any] = json.loads(file.read_text())
    return state


def forget_form(output: Path) -> None:
    """As a checkpoint of version 0.1, which knows of no forms and has no checksums."""
    (file,) = output.glob("checkpoints/*/state.json")
    state = {k: v for k, v in json.loads(file.read_text()).items() if k != "recurrence"}
    file.write_text(json.dumps(state | {"format": 1}))
    (file.parent / SUMS).unlink()


@pytest.mark.long
def test_twenty_steps_in_chunks_are_those_of_the_loop(
    qwen: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"steps": 20, "max_seq_length": 256, "valid_fraction": 0.1}
    events: list[Event] = []
    train(settings(qwen, text, tmp_path / "chunked", **changes), [events.append])
    assert "Gated delta layers are computed in chunks of 64 tokens." in notices(events)
    monkeypatch.setattr(build, "forms_of", lambda model: ["loop"])
    train(settings(qwen, text, tmp_path / "loop", **changes))
    assert state_of(tmp_path / "chunked")["recurrence"] == "chunked"
    ours, theirs = rows(tmp_path / "chunked"), rows(tmp_path / "loop")
    assert len(ours) == len(theirs) == 22  # 20 steps, two validations
    for row, expected in zip(ours, theirs, strict=True):
        for name in ("loss", "eval_loss", "grad_norm"):
            if name in expected:
                # Differences of a step's float32 gradients, through AdamW for twenty steps.
                assert row[name] == pytest.approx(expected[name], rel=2e-4), (row["step"], name)
    assert theirs[0]["eval_loss"] - theirs[-1]["eval_loss"] > 0.1  # something was learnt


def test_a_fault_in_the_form_is_refused(
    qwen: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = recurrent.gated_delta.gated_delta

    def later(q: Any, k: Any, v: Any, log_g: Any, beta: Any, state: Any) -> Any:
        return right(q, k, v, mx.roll(log_g, 1, axis=1), beta, state)

    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recurrent.forms, "gated_delta", later)
    events: list[Event] = []
    train(settings(qwen, text, tmp_path / "run", max_seq_length=256), [events.append])
    (warning,) = notices(events, warning=True)
    assert warning.startswith("The fast path is not exact for this model")
    assert state_of(tmp_path / "run")["recurrence"] == "spans"
    assert (REFERENCE_SPAN, recurrent.forms.SPAN) == (16, 64)


def test_held_out_pairs_and_drift_are_computed_in_the_same_form(
    qwen: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(qwen, text, tmp_path / "run", steps=1, max_seq_length=256)
    train(config)
    right, calls = recurrent.gated_delta.gated_delta, []
    monkeypatch.setattr(recurrent.forms, "gated_delta", lambda *a: calls.append(1) or right(*a))
    ids = [np.arange(5, 5 + n, dtype=np.int32) for n in (30, 9, 12)]
    pairs = [EncodedPair(*ids, "a pair")]
    path, _ = fast_path(load_base(str(qwen)).model)
    values = evaluate_encoded(path, pairs, beta=0.1, nll_on="response", batch_size=1)
    once = len(calls)
    assert once > 0
    quantization_drift(load_base(str(qwen)).model, config.output, pairs, values, path)
    assert len(calls) == 2 * once


def test_a_run_goes_on_in_its_own_form(qwen: Path, text: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_seq_length": 256, "save_every": 2}
    train(settings(qwen, text, tmp_path / "whole", **changes))
    train(settings(qwen, text, tmp_path / "run", **changes), [stop_after(2)])
    assert state_of(tmp_path / "run")["recurrence"] == "chunked"
    forget_form(tmp_path / "run")
    train(settings(qwen, text, tmp_path / "run", resume=True, **changes))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_run_that_changes_its_form_reports_it(qwen: Path, text: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_seq_length": 256, "save_every": 1, "steps": 2}
    train(settings(qwen, text, tmp_path / "run", **changes), [stop_after(1)])
    (file,) = (tmp_path / "run").glob("checkpoints/*/state.json")
    file.write_text(file.read_text().replace("chunked", "fused"))
    save_checksums(file.parent)
    events: list[Event] = []
    train(settings(qwen, text, tmp_path / "run", resume=True, **changes), [events.append])
    (warning,) = notices(events, warning=True)
    assert warning.startswith("The run computed its recurrent layers in another form (fused)")
    assert "from now on chunked" in warning


def test_a_run_begun_by_the_loop_goes_on_by_it(text: Path, tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "jamba")
    changes: dict[str, Any] = {"max_seq_length": 256, "save_every": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "forms_of", lambda model: ["loop"])
        train(settings(base, text, tmp_path / "whole", **changes))
        train(settings(base, text, tmp_path / "run", **changes), [stop_after(2)])
    forget_form(tmp_path / "run")
    events: list[Event] = []
    train(settings(base, text, tmp_path / "run", resume=True, **changes), [events.append])
    assert not [text for text in notices(events) if "token by token" in text]
    ours, whole = tensors(tmp_path / "run"), tensors(tmp_path / "whole")
    final = [name for name in whole if "step-" not in name]
    assert final
    assert {name: ours[name] for name in final} == {name: whole[name] for name in final}
    assert np.isfinite(rows(tmp_path / "run")[-1]["loss"])
