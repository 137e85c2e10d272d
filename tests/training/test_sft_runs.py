"""Runs on rows with weights and on SFT rows: resumed, refused, reported, and held out from."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from orpo_mlx.config.train import EvaluateConfig, TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.training.evaluate import evaluate
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import LONG, notices, rows, settings, stop_after, tensors

pytestmark = pytest.mark.touchy
WEIGHTS = (0.0, 0.5, 2.0, 1.0)


@pytest.fixture
def both(tmp_path: Path) -> dict[str, Any]:
    """Options of a run on weighted pairs next to weighted SFT rows."""
    pairs = [tiny.toy_pair(n) | {"weight": WEIGHTS[n % 4]} for n in range(16)]
    return {"data": [save(tmp_path / "pairs.jsonl", pairs)], "sft_data": [sft_file(tmp_path)]}


def save(file: Path, data: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in data))
    return str(file)


def sft_file(folder: Path, count: int = 8, **more: Any) -> str:
    """Rows of prompts and chosen answers that no other file of these tests has."""
    data = [
        {"prompt": row["prompt"], "completion": row["chosen"], "weight": 0.5 + n % 3} | more
        for n, row in ((n, tiny.toy_pair(n)) for n in range(200, 200 + count))
    ]
    return save(folder / "sft.jsonl", data)


def test_a_run_with_weights_and_sft_rows_resumes_bit_for_bit(
    llama: Path, tmp_path: Path, both: dict[str, Any]
) -> None:
    given = {**LONG, **both, "steps": 8, "save_every": 3, "valid_fraction": 0.2}
    train(settings(llama, tmp_path, tmp_path / "whole", **given))
    train(settings(llama, tmp_path, tmp_path / "cut", **given), [stop_after(5)])
    train(TrainConfig(model=str(llama), output=tmp_path / "cut", resume=True, data=both["data"]))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    whole, cut = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert {name: cut[name] for name in whole} == whole


def test_a_run_does_not_resume_with_other_weights(
    llama: Path, tmp_path: Path, both: dict[str, Any]
) -> None:
    train(settings(llama, tmp_path, tmp_path / "run", **both), [stop_after(2)])
    save(Path(both["data"][0]), [tiny.toy_pair(n) for n in range(16)])
    with pytest.raises(OrpoError, match="the training pairs are not those of"):
        train(settings(llama, tmp_path, tmp_path / "run", **both, resume=True))


def test_metrics_of_pairs_and_of_sft_rows_are_apart(
    llama: Path, tmp_path: Path, both: dict[str, Any]
) -> None:
    given = {"steps": 1, "batch_size": 24}  # all of an epoch
    train(settings(llama, tmp_path, tmp_path / "run", **both, **given))
    counts, step = rows(tmp_path / "run")
    assert counts == {"step": 0, "train_pairs": 16, "sft_rows": 8}
    assert {"loss", "nll_loss", "rewards/accuracies", "nll_loss/sft"} <= step.keys()
    # Quarters of pairs of random chance; a mean that took SFT rows would be one of 24.
    assert (16 * step["rewards/accuracies"]) % 1 == 0


def test_a_run_without_pairs_has_loss_and_likelihood_and_what_valid_data_gives(
    llama: Path, tmp_path: Path
) -> None:
    valid = tiny.save_pairs(tmp_path / "valid.jsonl", 5)
    given = {"data": [], "sft_data": [sft_file(tmp_path)], "valid_data": [str(valid)]}
    events: list[Event] = []
    train(settings(llama, tmp_path, tmp_path / "run", **given), [events.append])
    _, before, *steps, after = rows(tmp_path / "run")
    names = {"step", "loss", "nll_loss/sft", "learning_rate", "grad_norm"}
    assert [row.keys() for row in steps] == [names] * 4
    for row in (before, after):
        assert {"eval_loss", "eval_rewards/accuracies"} <= row.keys()
        assert "eval_nll_loss/sft" not in row
    assert notices(events, warning=True) == []  # the self-check's among them
    assert f"{given['sft_data'][0]}: weights from 0.5 to 2.5, 1.5 on average." in notices(events)


def test_sft_rows_are_never_held_out_and_a_shared_prompt_is_reported(
    llama: Path, tmp_path: Path
) -> None:
    pairs = [tiny.toy_pair(n) | {"prompt": f"help {n}"} for n in range(16)]
    given = {"data": [save(tmp_path / "pairs.jsonl", pairs)], "valid_fraction": 0.25}
    sft = [{"prompt": row["prompt"], "chosen": row["chosen"]} for row in pairs]
    events: list[Event] = []
    source = save(tmp_path / "sft.jsonl", sft)
    train(
        settings(llama, tmp_path, tmp_path / "run", **given, sft_data=[source], steps=1),
        [events.append],
    )
    counts = rows(tmp_path / "run")[0]
    held_out = 16 - counts["train_pairs"]
    assert held_out and counts["sft_rows"] == 16
    (warning,) = notices(events, warning=True)
    assert warning == (
        f"{held_out} of {held_out} held-out pairs have a prompt that is also in --sft-data: they "
        "show little of what is learned."
    )


def test_held_out_metrics_count_each_pair_once(llama: Path, tmp_path: Path) -> None:
    valid = [tiny.toy_pair(n) for n in range(100, 104)]
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    seen = []
    for weight in (1.0, 3.0):
        data = [row | {"weight": weight + n} for n, row in enumerate(valid)]
        given = {"valid_data": [save(tmp_path / "valid.jsonl", data)], "steps": 1}
        events: list[Event] = []
        config = settings(llama, pairs, tmp_path / "run", **given, overwrite=True)
        train(config, [events.append])
        assert "Held-out metrics count each pair once, whatever its weight." in notices(events)
        measured = EvaluateConfig(model=str(llama), data=given["valid_data"], max_seq_length=128)
        events.clear()
        seen.append((rows(tmp_path / "run"), evaluate(measured, events.append).base.means()))
        assert "Held-out metrics count each pair once, whatever its weight." in notices(events)
    assert seen[0] == seen[1]


def test_rows_without_a_rejected_answer_among_pairs_are_an_error_that_names_the_flag(
    llama: Path, tmp_path: Path
) -> None:
    alone = sft_file(tmp_path)
    with pytest.raises(OrpoError) as error:
        train(settings(llama, Path(alone), tmp_path / "run"))
    assert str(error.value).splitlines()[-1] == (
        f"{alone}: no row has a rejected answer. Rows of a prompt and one answer are trained on "
        f"with --sft-data {alone}."
    )
    data = [tiny.toy_pair(0), {"prompt": "a", "chosen": "b"}]
    mixed = save(tmp_path / "mixed.jsonl", data)
    with pytest.raises(OrpoError) as error:
        train(settings(llama, Path(mixed), tmp_path / "run"))
    assert f'{mixed}:2: column "rejected" is missing (found: prompt, chosen)' in str(error.value)
    assert f"{mixed}: rows without a rejected answer belong into" in str(error.value)
    assert "for --sft-data." in str(error.value)


def test_all_faults_of_sft_rows_and_of_weights_are_reported_at_once(
    llama: Path, tmp_path: Path
) -> None:
    pairs = save(tmp_path / "pairs.jsonl", [tiny.toy_pair(0) | {"weight": -1}])
    rows_ = [{"prompt": "a", "chosen": "b", "weight": "heavy"}, {"prompt": "a", "chosen": None}]
    sft = save(tmp_path / "sft.jsonl", [*rows_, {"prompt": "a", "chosen": "b"}])
    with pytest.raises(OrpoError) as error:
        train(settings(llama, Path(pairs), tmp_path / "run", sft_data=[sft]))
    text = str(error.value)
    for part in (
        f'{pairs}:1: "weight" must be a number, 0 or more and finite (found -1;',
        f"{sft}:1: \"weight\" must be a number, 0 or more and finite (found 'heavy';",
        f'{sft}:2: column "chosen" is null',
        'A row of --sft-data looks like: {"prompt": ',
    ):
        assert part in text


def test_kept_states_change_nothing_of_a_run_with_sft_rows(
    llama: Path, tmp_path: Path, both: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**both, "num_layers": 1, "steps": 18}
    events: list[Event] = []
    train(settings(llama, tmp_path, tmp_path / "kept", **given), [events.append])
    assert any(text.startswith("Later epochs start at block") for text in notices(events))
    monkeypatch.setattr("orpo_mlx.training.run.open_trunk_cache", lambda *_: None)
    train(settings(llama, tmp_path, tmp_path / "new", **given))
    for kept, new in zip(rows(tmp_path / "kept"), rows(tmp_path / "new"), strict=True):
        # The states of a pair come from another order of the same float32 sums.
        assert kept == pytest.approx(new, abs=1e-4)


@pytest.mark.long
def test_a_compiled_run_with_weights_and_sft_rows_is_the_eager_one(
    llama: Path, tmp_path: Path, both: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orpo_mlx.training.build.backend", SimpleNamespace(is_cpu=lambda: False))
    given = {**both, "steps": 6, "dropout": 0.1}
    train(settings(llama, tmp_path, tmp_path / "compiled", **given))
    mx.disable_compile()
    try:
        train(settings(llama, tmp_path, tmp_path / "eager", **given))
    finally:
        mx.enable_compile()
    for one, other in zip(rows(tmp_path / "compiled"), rows(tmp_path / "eager"), strict=True):
        assert one == pytest.approx(other, abs=1e-4)  # fused sums, over six updates
