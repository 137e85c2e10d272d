"""The card: what it says of a run, metadata that survive the library's own classes, no secrets."""

import json
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from orpo_mlx.config.train import EvaluateConfig, GenerateConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.pairs.split import prompt_hash, split_by_prompt
from orpo_mlx.errors import OrpoError
from orpo_mlx.install_advice import pip_install
from orpo_mlx.interop.hub.bundle import Bundle
from orpo_mlx.interop.hub.card import (
    CardFacts,
    Sample,
    build_model_card,
)
from orpo_mlx.interop.hub.card_data import sources_of
from orpo_mlx.interop.peft.vllm import max_lora_rank
from orpo_mlx.review.answers.generate import generate, open_chat
from orpo_mlx.review.curves import draw_curves
from orpo_mlx.review.run_summary import BaseFacts, HeldOut, RunFacts, base_of, facts_of_run
from orpo_mlx.training.evaluate import evaluate
from orpo_mlx.training.metrics.log import load_metrics
from tests import tiny
from tests.interop.fuse.packing import content, packed
from tests.interop.hub.answers import card_errors

BASE = """---
license: llama3.2
license_link: https://example.com/terms
base_model:
- meta-llama/Llama-3.2-1B-Instruct
---
# A base
"""


def read(bundle: Bundle) -> ModelCard:
    return ModelCard(bundle.card.decode())


def some_card(**facts: Any) -> ModelCard:
    base, run = BaseFacts("meta/small"), RunFacts({}, [], {})
    return build_model_card(
        CardFacts("ann/polite", "adapter", **{"base": base, "run": run, **facts})
    )


def test_metadata_survive_the_librarys_classes(run_folder: Path, tmp_path: Path) -> None:
    bundle, _ = packed(run_folder, tmp_path, base_id="meta/small")
    card = read(bundle)
    assert str(card).encode() == bundle.card
    assert str(ModelCard(str(card))) == str(card)
    data = card.data.to_dict()
    assert data["library_name"] == "mlx"
    assert data["pipeline_tag"] == "text-generation"
    assert (data["base_model"], data["base_model_relation"]) == ("meta/small", "adapter")
    assert {"orpo", "mlx", "lora"} <= set(data["tags"])
    assert card_errors(bundle.card.decode()) == []


def test_results_in_the_metadata_are_the_runs_last(run_folder: Path, tmp_path: Path) -> None:
    card = read(packed(run_folder, tmp_path)[0])
    rows = [row for row in load_metrics(run_folder / "metrics.jsonl") if "eval_loss" in row]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["held-out loss"] == pytest.approx(rows[-1]["eval_loss"], abs=1e-6)
    assert values["held-out rewards/accuracies"] == rows[-1]["eval_rewards/accuracies"]
    base, adapter = (f"{row['eval_logps/chosen']:.4f}" for row in (rows[0], rows[-1]))
    assert rows[0]["step"] == 0
    assert f"| logps/chosen | {base} | {adapter} |" in card.text


def test_only_ids_of_the_hub_are_where_the_hub_wants_ids(run_folder: Path, tmp_path: Path) -> None:
    data = read(packed(run_folder, tmp_path)[0]).data.to_dict()
    assert "base_model" not in data
    assert "datasets" not in data
    folder = shutil.copytree(run_folder, tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"] = ["somebody/pairs:2", "/home/ann/mine.jsonl"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    card = read(packed(folder, tmp_path)[0])
    assert card.data.datasets == ["somebody/pairs"]
    assert "- `mine.jsonl`" in card.text
    assert "(https://huggingface.co/datasets/somebody/pairs)" in card.text


def test_the_license_is_that_of_the_bases_card(
    run_folder: Path, llama: Path, tmp_path: Path
) -> None:
    bundle, notices = packed(run_folder, tmp_path)
    assert "license" not in read(bundle).data.to_dict()
    assert "License of the base: not known" in bundle.card.decode()
    assert any(text.startswith("The card names no license") for text in notices)
    base = shutil.copytree(llama, tmp_path / "licensed")
    (base / "README.md").write_text(BASE)
    card = read(packed(run_folder, tmp_path, model=str(base))[0])
    assert card.data.license == "llama3.2"
    assert card.data.to_dict()["license_link"] == "https://example.com/terms"
    assert "- License of the base: llama3.2" in card.text


def test_a_base_in_the_librarys_cache_goes_by_its_id(tmp_path: Path) -> None:
    cached = tmp_path / "models--meta--small-1.0" / "snapshots" / "0" / "x"
    cached.parent.mkdir(parents=True)
    cached.mkdir()
    run = RunFacts({"model": str(cached.parent)}, [], {})
    assert base_of(run, None, None).name == "meta/small-1.0"
    assert base_of(run, None, "meta/other").name == "meta/other"
    with pytest.raises(OrpoError, match="--base-id small: must be USER/NAME"):
        base_of(run, None, "small")


def test_peft_gets_the_id_of_the_unquantized_original(
    run_folder: Path, quantized_llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(quantized_llama, tmp_path / "q")
    (base / "README.md").write_text(BASE)
    facts = base_of(facts_of_run(run_folder), str(base), "mlx-community/q")
    assert facts.quantized
    assert facts.original == "meta-llama/Llama-3.2-1B-Instruct"
    card = some_card(base=facts, peft=True, mlx_folder="mlx")
    assert 'from_pretrained("meta-llama/Llama-3.2-1B-Instruct")' in card.text
    assert "--adapter-path adapter/mlx" in card.text
    assert card.data.library_name == "peft"


def test_a_base_that_transformers_cannot_load_is_reported_unless_it_is_named(
    run_folder: Path, quantized_llama: Path, tmp_path: Path
) -> None:
    options = {"layout": "peft", "model": str(quantized_llama)}
    for base_id, warned in ((None, True), ("meta/small", False)):
        (folder := tmp_path / str(warned)).mkdir()
        _, notices = packed(run_folder, folder, base_id=base_id, **options)
        assert any("transformers cannot load" in text for text in notices) == warned, notices


def test_the_card_says_how_it_was_made(run_folder: Path, tmp_path: Path) -> None:
    text = packed(run_folder, tmp_path)[0].card.decode()
    for line in (
        "| rank | 4 |",
        "| beta | 0.1 |",
        "| learning_rate | 0.005 |",
        "- `pairs.jsonl`",
        "What `orpo-mlx data check` finds in 24 pairs:",
        "mlx_lm.generate --model llama",
        "orpo-mlx export adapter --to peft",
        "llama-cli",
        "ollama create",
        "## Limits",
        "![Loss, accuracy and margin by step](curves.png)",
    ):
        assert line in text, line


def test_sft_rows_are_counted_apart() -> None:
    config = {"data": ["/home/ann/pairs.jsonl"], "sft_data": ["ann/answers", "/home/ann/own.jsonl"]}
    counts = {"step": 0, "train_pairs": 1200, "sft_rows": 34}
    run = RunFacts(config, [counts], {})
    text = str(some_card(run=run, sources=sources_of(config)))
    for line in (
        "- `pairs.jsonl`\n",
        "- [ann/answers](https://huggingface.co/datasets/ann/answers) (SFT rows)\n",
        "- `own.jsonl` (SFT rows)\n",
        "An epoch takes 1,200 pairs and 34 SFT rows, whose answers are\n",
        "trained on preference pairs with ORPO\n",
        "datasets:\n- ann/answers\n",
    ):
        assert line in text, line
    assert "/home" not in text
    alone = some_card(run=RunFacts(config, [counts | {"train_pairs": 0}], {}))
    assert "trained on answers by the likelihood part of ORPO\n" in str(alone)
    assert "SFT" not in str(some_card(run=RunFacts({"data": ["a.jsonl"]}, [], {})))


def test_curves_of_a_run_without_pairs_have_the_loss_alone() -> None:
    steps = [{"step": n, "loss": 2.0 - n / 10, "nll_loss/sft": 2.0} for n in range(1, 5)]
    alone, pairs = draw_curves(steps), draw_curves([r | {"rewards/margins": 0.1} for r in steps])
    assert alone and pairs and alone != pairs


@pytest.mark.parametrize(("rank", "largest"), [(4, 8), (16, 16), (24, 32), (512, 512)])
def test_vllm_gets_a_rank_that_it_knows(rank: int, largest: int) -> None:
    allowed = max_lora_rank({"r": 4, "rank_pattern": {"mlp.experts": rank}})
    assert allowed == largest
    assert f"--max-lora-rank {largest} " in some_card(max_lora_rank=allowed, peft=True).text


def test_a_rank_that_vllm_does_not_take_is_not_named() -> None:
    assert max_lora_rank({"r": 513}) is None
    text = some_card(max_lora_rank=0, peft=True).text
    assert "--max-lora-rank" not in text
    assert "vLLM takes no adapter of so high a rank" in text


def test_answers_cannot_break_out_of_their_table() -> None:
    sample = Sample("Hi |\n# there", "a | b\n```\n<script>", "[x](y) *c*")
    text = some_card(samples=[sample]).text
    [row] = [line for line in text.splitlines() if "script" in line]
    assert row == "| a \\| b<br>\\`\\`\\`<br>&lt;script> | \\[x\\](y) \\*c\\* |"
    assert "**Hi \\| \\# there**" in text


def test_an_adapter_of_mlx_lms_own_trainer_gets_a_card(tmp_path: Path, run_folder: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copy(run_folder / "adapters.safetensors", folder)
    config = {
        "num_layers": 2,
        "model": "/home/ann/models/small",
        "data": "/home/ann/data",
        "adapter_path": "/home/ann/theirs",
        "lora_parameters": {"rank": 8, "scale": 20.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    bundle, _ = packed(folder, tmp_path)
    text = bundle.card.decode()
    assert "| rank | 8 |" in text
    assert "## Data" not in text
    assert json.loads(content(bundle, "adapter_config.json")) == {
        "num_layers": 2,
        "model": "small",
        "data": "data",
        "adapter_path": "theirs",
        "lora_parameters": {"rank": 8, "scale": 20.0},
    }


def test_a_card_of_ones_own_keeps_its_text_and_gains_metadata(
    run_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    own = "---\nlicense: mit\ntags:\n- mine\n---\n# Mine\n\nMy  text.\n"
    (folder / "README.md").write_text(own)
    bundle, notices = packed(folder, tmp_path, base_id="meta/small")
    card = read(bundle)
    assert card.text == "# Mine\n\nMy  text.\n"
    assert (card.data.license, card.data.tags) == ("mit", ["mine"])
    assert (card.data.base_model, card.data.library_name) == ("meta/small", "mlx")
    assert card.data.eval_results
    assert (folder / "README.md").read_text() == own
    assert any("is used as the card: its text unchanged" in text for text in notices)


def test_a_card_of_ones_own_that_cannot_be_read_is_named(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "README.md").write_text("---\n[: broken\n---\n# Mine\n")
    with pytest.raises(OrpoError, match=r"README.md: its metadata cannot be read .* Fix what"):
        packed(folder, tmp_path)


def test_a_model_of_unknown_origin_says_that_it_is(llama: Path, tmp_path: Path) -> None:
    bundle, notices = packed(llama, tmp_path)
    assert "It was pushed without a note of what it was made from." in bundle.card.decode()
    assert "The card cannot name the base: give it with --base-id USER/NAME." in notices
    assert "base_model" not in read(bundle).data.to_dict()


def test_held_out_metrics_are_measured_where_pairs_are_given(
    run_folder: Path, llama: Path, tmp_path: Path
) -> None:
    data = tiny.save_pairs(tmp_path / "test.jsonl", 6, start=200)
    card = read(packed(run_folder, tmp_path, data=[str(data)])[0])
    expected = evaluate(EvaluateConfig(model=str(llama), adapter=run_folder, data=[str(data)]))
    assert expected.adapter
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    measured = expected.adapter.means()
    assert values["held-out loss"] == pytest.approx(measured["loss"], abs=1e-6)
    before, after = expected.base.means()["loss"], measured["loss"]
    assert f"| loss | {before:.4f} | {after:.4f} |" in card.text
    assert "Measured on 6 pairs of test.jsonl." in card.text
    assert {result.dataset_name for result in card.data.eval_results} == {"test.jsonl"}


def test_answers_are_those_of_generate_to_prompts_not_trained_on(
    run_folder: Path, llama: Path, tmp_path: Path
) -> None:
    card = read(packed(run_folder, tmp_path, samples=1, max_tokens=12)[0])
    [question] = [line.strip("*") for line in card.text.splitlines() if line.startswith("**")]
    pairs = load_pairs(yaml.safe_load((run_folder / "config.yaml").read_text())["data"])
    hashes = np.array([prompt_hash(pair) for pair in pairs], np.uint64)
    (held,), _ = split_by_prompt(hashes, [0.2], 0)
    assert question in [str(pair.prompt) for pair, out in zip(pairs, held, strict=True) if out]
    cells = []
    for adapter in (None, run_folder):
        settings = GenerateConfig(
            model=str(llama),
            adapter=adapter,
            prompt=question,
            max_tokens=12,
            template_date="2026-01-02",
            thinking="off",
        )
        *_, answer = generate(open_chat(settings), question, settings)
        text = answer.text.strip() + " [cut]" * (not answer.ended)
        escaped = re.sub(r"([\\|`*_\[\]#])", r"\\\1", text)
        cells.append(escaped.replace("<", "&lt;").replace("\n", "<br>"))
    assert f"| {cells[0]} | {cells[1]} |" in card.text
    assert cells[0] != cells[1]


def test_a_base_that_is_elsewhere_leaves_answers_out_which_is_reported(
    run_folder: Path, tmp_path: Path
) -> None:
    bundle, notices = packed(run_folder, tmp_path, samples=2, model="meta/far-away")
    assert "Answers before and after" not in bundle.card.decode()
    assert "The card shows no answers: the base meta/far-away is not on this machine." in notices


def test_measuring_without_the_base_is_refused(run_folder: Path, tmp_path: Path) -> None:
    data = tiny.save_pairs(tmp_path / "test.jsonl", 2)
    with pytest.raises(OrpoError, match="--data needs the base meta/far-away, which is not on"):
        packed(run_folder, tmp_path, data=[str(data)], model="meta/far-away", dry_run=True)


def test_curves_are_a_picture_of_the_runs_metrics(run_folder: Path) -> None:
    rows = load_metrics(run_folder / "metrics.jsonl")
    image = draw_curves(rows)
    assert image
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", image[16:24])
    assert (width, height) == (1296, 403)
    assert draw_curves(rows) == image
    assert draw_curves(rows[:1]) is None
    assert draw_curves(rows[:-1]) != image


def test_a_card_without_matplotlib_says_what_it_lacks(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    bundle, notices = packed(run_folder, tmp_path)
    assert "curves.png" not in {upload.path for upload in bundle.uploads}
    assert any(pip_install("report") in text for text in notices)


def test_the_card_names_the_step_whose_weights_they_are(run_folder: Path, tmp_path: Path) -> None:
    text = read(packed(run_folder, tmp_path)[0]).text
    last = max(int(row["step"]) for row in load_metrics(run_folder / "metrics.jsonl"))
    assert f"The weights are those after step {last} of {last}, the best of the run's" in text
    evaluated = [{"step": n, "eval_loss": 4.0 - n, "eval_nll_loss": float(n)} for n in range(3)]
    rows = [*evaluated, {"step": 4, "loss": 1.0}]
    run = RunFacts({"adapter_step": 1, "best_metric": "eval_nll_loss"}, rows, {})
    text = some_card(run=run, held_out=run.held_out).text
    named = "after step 1 of 4, the best of the run's validations by eval_nll_loss."
    assert f"The weights are those {named}" in text
    assert "before its first step and after step 1." in text
    assert "| loss | 4.0000 | 3.0000 |" in text
    stopped = run._replace(config={"adapter_step": 4})
    text = some_card(run=stopped, held_out=stopped.held_out).text
    assert "The weights are those after step 4 of 4." in text
    assert "before its first step and after step 2." in text
    assert "The weights" not in some_card(run=run._replace(config={})).text


def test_metrics_without_a_first_validation_are_not_compared() -> None:
    rows = [{"step": 5, "eval_loss": 2.0}, {"step": 9, "eval_loss": 1.0}]
    assert RunFacts({}, rows, {}).held_out is None
    first = [{"step": 0, "eval_loss": 3.0}, *rows]
    assert RunFacts({}, first, {}).held_out == HeldOut({"loss": 3.0}, {"loss": 1.0}, None, False)
