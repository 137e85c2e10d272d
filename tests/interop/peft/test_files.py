"""PEFT folders that are written: what is in them, what is refused, that nothing half-made stays."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from orpo_mlx.config.interop import ExportConfig, ImportConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.interop.gguf.adapter import export_gguf
from orpo_mlx.interop.peft.exporter import export_peft
from orpo_mlx.interop.peft.importer import import_peft
from tests import tiny
from tests.interop.adapted import fused
from tests.interop.peft.peft_folders import CONFIG, bring
from tests.model.test_adapters import adapted


def test_the_folder_holds_what_peft_reads(llama: Path, peft: Path) -> None:
    written = json.loads((peft / CONFIG).read_text())
    assert written["base_model_name_or_path"] == str(llama.resolve())
    assert (written["peft_type"], written["task_type"], written["bias"]) == (
        "LORA",
        "CAUSAL_LM",
        "none",
    )
    assert (peft / "tokenizer.json").is_file() and (peft / "chat_template.jinja").is_file()


def test_a_quantized_base_is_reported_and_base_id_names_its_original(
    quantized_llama: Path, run: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    result = export_peft(
        ExportConfig(
            adapter=run,
            to="peft",
            output=tmp_path / "a",
            model=str(quantized_llama),
            base_id="org/llama",
        ),
        events.append,
    )
    assert result.base == "org/llama" and events == []
    export_peft(
        ExportConfig(adapter=run, to="peft", output=tmp_path / "b", model=str(quantized_llama)),
        events.append,
    )
    assert isinstance(events[0], Notice) and "give the id of its original with --base-id" in (
        events[0].text
    )


def test_tokens_of_the_adapter_without_an_embedding_are_named(
    llama: Path, run: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(run, tmp_path / "adapter")
    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    tokenizer.add_special_tokens([f"<|new {n}|>" for n in range(120)])
    tokenizer.save(str(adapter / "tokenizer.json"))
    shutil.copy(llama / "tokenizer_config.json", adapter)
    events: list[Event] = []
    options = ExportConfig(adapter=adapter, to="peft", output=tmp_path / "out", model=str(llama))
    export_peft(options, events.append)
    rows = json.loads((llama / "config.json").read_text())["vocab_size"]
    beyond = tokenizer.get_vocab_size() - rows
    (notice,) = [e for e in events if isinstance(e, Notice) and "no embedding" in e.text]
    assert notice.warning
    assert notice.text.startswith(
        f"{adapter}: its tokenizer has {beyond} tokens (<|new {120 - beyond}|>, "
    )
    assert f"embedding for: it has {rows} rows." in notice.text


def test_a_family_that_was_never_compared_is_reported(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "minicpm3")
    adapted(base, tmp_path / "run", ["all-linear"])
    events: list[Event] = []
    export_peft(
        ExportConfig(adapter=tmp_path / "run", to="peft", output=tmp_path / "out", model=str(base)),
        events.append,
    )
    assert isinstance(events[0], Notice) and events[0].warning
    assert "Adapters of minicpm3 were never compared with PEFT" in events[0].text


def test_modules_that_transformers_has_not_are_refused_together(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "falcon_h1")
    adapted(base, tmp_path / "run", ["all-linear"])
    with pytest.raises(OrpoError, match="cannot be exported") as error:
        export_peft(
            ExportConfig(
                adapter=tmp_path / "run", to="peft", output=tmp_path / "out", model=str(base)
            )
        )
    lines = str(error.value).splitlines()[1:]
    assert any("o_proj: mlx-lm computes it from the checkpoint's" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    other = tiny.save_base(tmp_path / "other", hidden_size=128)
    with pytest.raises(OrpoError, match=r"q_proj: it was made for a weight of shape \(64, 64\)"):
        export_peft(ExportConfig(adapter=run, to="peft", output=tmp_path / "out", model=str(other)))


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"keys": ["self_attn.q_proj", "self_attn.v_proj"]}, "not an adapter parameter in the mod"),
        ({"num_layers": 1}, "not an adapter parameter in the model"),
        (
            {"keys": ["self_attn.q_proj", "lm_head"]},
            "lm_head: listed in keys, but it has no tensor",
        ),
        ({"rank": 2}, "has rank 4, the config gives 2"),
    ],
)
def test_an_adapter_whose_config_claims_others_is_refused_as_fuse_refuses_it(
    llama: Path, tmp_path: Path, claim: dict[str, Any], words: str
) -> None:
    run = tmp_path / "run"
    adapted(llama, run, ["all-linear"])
    config = json.loads((run / CONFIG).read_text())
    for key, value in claim.items():
        (config if key == "num_layers" else config["lora_parameters"])[key] = value
    (run / CONFIG).write_text(json.dumps(config))
    refusals = set()
    for command in (
        lambda: export_peft(ExportConfig(adapter=run, to="peft", output=tmp_path / "out")),
        lambda: fused(run, tmp_path / "out"),
        lambda: export_gguf(
            ExportConfig(adapter=run, to="gguf", output=tmp_path / "out"), lambda event: None
        ),
    ):
        with pytest.raises(OrpoError) as error:
            command()
        refusals.add(str(error.value))
    assert len(refusals) == 1
    assert words in refusals.pop()
    assert not (tmp_path / "out").exists()


def test_what_is_read_is_not_replaced(run: Path, peft: Path, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "mine")
    shutil.copytree(peft, tmp_path / "theirs")
    there = sorted(tmp_path.rglob("*"))
    for output, call in {
        "mine": lambda folder: export_peft(
            ExportConfig(adapter=folder, to="peft", output=folder, overwrite=True)
        ),
        "theirs": lambda folder: import_peft(
            ImportConfig(adapter=folder, model=llama, output=folder, overwrite=True)
        ),
    }.items():
        with pytest.raises(OrpoError, match=f"{output} holds the adapter. Name another folder."):
            call(tmp_path / output)
    assert sorted(tmp_path.rglob("*")) == there


def test_what_vllm_would_ask_for_is_reported(llama: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    adapted(llama, tmp_path / "run", ["embed_tokens"])
    export_peft(
        ExportConfig(adapter=tmp_path / "run", to="peft", output=tmp_path / "peft"), events.append
    )
    texts = [event.text for event in events if isinstance(event, Notice)]
    assert any(text.startswith("vLLM takes model.embed_tokens only for") for text in texts), texts


def test_an_output_that_exists_is_kept(run: Path, peft: Path, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OrpoError, match="exists. Replace it with --overwrite"):
        export_peft(ExportConfig(adapter=run, to="peft", output=tmp_path / "out"))
    with pytest.raises(OrpoError, match="exists. Replace it with --overwrite"):
        bring(peft, llama, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_trained_weights_are_not_an_adapter_for_peft(llama: Path, tmp_path: Path) -> None:
    adapted(llama, tmp_path / "run", ["all-linear"], "full")
    with pytest.raises(
        OrpoError, match="has trained weights, not an adapter. Fuse it instead: orpo"
    ):
        export_peft(ExportConfig(adapter=tmp_path / "run", to="peft", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["nonesuch", "olmo"])
def test_a_base_that_mlx_lm_cannot_build_is_an_error(
    run: Path, llama: Path, tmp_path: Path, kind: str
) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    for command in (export_peft, lambda options: export_gguf(options, lambda event: None)):
        to = "peft" if command is export_peft else "gguf"
        with pytest.raises(OrpoError, match=f"mlx-lm cannot build a model of type '{kind}'"):
            command(ExportConfig(adapter=run, to=to, output=tmp_path / "x", model=str(base)))
