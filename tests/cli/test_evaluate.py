import json
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import Cli, train_adapter
from tests.data.tokens.lossy import LOSSY, encoder_of


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run folder. Do not write there."""
    return train_adapter(llama, tmp_path_factory.mktemp("run"))


def test_evaluate_shows_base_and_adapter_side_by_side(
    cli: Cli, llama: Path, pairs_file: Path, adapter: Path
) -> None:
    result = cli("evaluate", "--model", llama, "--adapter", adapter, "--data", pairs_file)
    assert result.status == 0, result.err
    assert result.out.startswith("16 held-out pairs")
    rows = {
        cells[1].strip(): cells[2:4]
        for line in result.out.splitlines()[4:-1]
        if len(cells := line.split("│")) > 3
    }
    assert {"loss", "rewards/accuracies", "logps/chosen", "saturated_pairs"} <= set(rows)
    assert float(rows["loss"][1]) < float(rows["loss"][0])


def test_evaluate_json_is_one_object(
    cli: Cli, llama: Path, pairs_file: Path, adapter: Path
) -> None:
    arguments = ("evaluate", "--model", llama, "--data", pairs_file, "--pairs", 8, "--json")
    base_only = json.loads(cli(*arguments).out)
    both = json.loads(cli(*arguments, "--adapter", adapter).out)
    assert (base_only["pairs"], base_only["adapter"]) == (8, None)
    assert both["base"] == base_only["base"]
    assert both["adapter"]["logps/chosen"] > both["base"]["logps/chosen"]


def test_an_adapter_of_another_model_is_one_message(
    cli: Cli, pairs_file: Path, adapter: Path, tmp_path: Path
) -> None:
    other = tiny.save_base(tmp_path / "other", hidden_size=128)
    result = cli("evaluate", "--model", other, "--adapter", adapter, "--data", pairs_file)
    assert (result.status, result.out) == (1, "")
    assert "does not fit this model" in result.err


def test_a_folder_without_adapter_is_one_message(
    cli: Cli, llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    result = cli("evaluate", "--model", llama, "--adapter", tmp_path, "--data", pairs_file)
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        f"Error: Adapter {tmp_path}: no adapter_config.json there: not an adapter folder.\n"
    )


def test_rows_without_tokens_are_named_or_left_out(cli: Cli, tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    encoder_of(LOSSY["unigram"]()).tokenizer.save_pretrained(str(base))
    rows = [{"prompt": "hello", "chosen": c, "rejected": "later"} for c in ("please", "好的")]
    data = tmp_path / "zh.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("evaluate", "--model", base, "--data", data)
    refused = cli(*arguments)
    assert refused.status == 1
    assert "zh.jsonl:2: no tokens for 2 of 2 characters ('好的') of chosen" in refused.err
    dropped = cli(*arguments, "--bad-rows", "drop")
    assert dropped.status == 0
    assert "row left out: row that the tokenizer has few tokens for" in dropped.err
