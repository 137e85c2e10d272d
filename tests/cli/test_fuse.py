import json
import shutil
from pathlib import Path

import mlx_lm
import pytest

from tests.cli.conftest import Cli, train_adapter


@pytest.fixture(scope="module")
def adapter(quantized_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run folder. Do not write there."""
    return train_adapter(quantized_llama, tmp_path_factory.mktemp("run"))


def test_fuse_needs_the_run_alone_and_says_what_it_cost(
    cli: Cli, adapter: Path, tmp_path: Path
) -> None:
    result = cli("fuse", "--adapter", adapter, "--output", "out")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "out: 73.9 kB, 21 weights changed."
    assert lines[1].startswith("21 were quantized again: ")
    assert lines[2] == "All 29 weights are base + adapter, as mlx-lm loads them."
    assert lines[3].startswith("From base + adapter, ")
    assert "KL, nats a token" in result.out
    assert "same likeliest next token" in result.out
    mlx_lm.load(str(tmp_path / "out"))


def test_the_fused_model_answers_and_is_measured_like_base_and_adapter(
    cli: Cli, adapter: Path, quantized_llama: Path, pairs_file: Path
) -> None:
    fuse = ("fuse", "--adapter", adapter, "--output", "out", "--dequantize", "--dtype", "float32")
    assert cli(*fuse, "--quiet").status == 0
    both = cli(
        "evaluate", "--model", quantized_llama, "--adapter", adapter, "--data", pairs_file, "--json"
    )
    fused = cli("evaluate", "--model", "out", "--data", pairs_file, "--json")
    expected, facts = json.loads(both.out)["adapter"], json.loads(fused.out)["base"]
    for name, value in expected.items():
        assert facts[name] == pytest.approx(value, abs=1e-5), name  # float32
    assert json.loads(both.out)["base"]["loss"] > expected["loss"] + 0.01


def test_fuse_json_is_one_object(cli: Cli, adapter: Path, pairs_file: Path) -> None:
    result = cli("fuse", "--adapter", adapter, "--output", "out", "--data", pairs_file, "--json")
    facts = json.loads(result.out)
    assert (facts["output"], facts["changed"], facts["requantized"]) == ("out", 21, 21)
    assert 0 < facts["survived"] < 1.2
    assert facts["drift"]["kl_base"] > facts["drift"]["kl_fused"] > 0


def test_without_verify_nothing_is_compared(cli: Cli, adapter: Path) -> None:
    arguments = ("fuse", "--adapter", adapter, "--output", "out", "--dequantize", "--json")
    facts = json.loads(cli(*arguments, "--no-verify").out)
    assert (facts["checked"], facts["drift"]) == (0, None)


def test_every_command_takes_a_folder_with_the_two_files_alone(
    cli: Cli, adapter: Path, quantized_llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """As mlx_lm.lora leaves one: no config.yaml, no tokenizer."""
    (tmp_path / "bare").mkdir()
    for name in ("adapters.safetensors", "adapter_config.json"):
        shutil.copy(adapter / name, tmp_path / "bare")
    (tmp_path / "bare" / "0000002_adapters.safetensors").write_bytes(b"a checkpoint")
    model = ("--model", quantized_llama, "--adapter", "bare")
    result = cli("evaluate", *model, "--data", pairs_file, "--json")
    expected = cli("evaluate", *model[:3], adapter, "--data", pairs_file, "--json")
    assert json.loads(result.out) == json.loads(expected.out)
    assert cli("generate", *model, "--prompt", "my bill", "--max-tokens", 4).status == 0
    assert cli("fuse", "--adapter", "bare", "--output", "out", "--no-verify").status == 0
    assert cli("export", "bare", "--to", "peft", "--output", "peft").status == 0


def test_all_that_is_wrong_is_reported(cli: Cli) -> None:
    result = cli("fuse", "--adapter", "a:half", "--dtype", "int8")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "Error: Wrong options:\n"
        "  --output is missing: Folder to write.\n"
        "  --dtype int8: must be one of float16, bfloat16 or float32.\n"
        "  --adapter a:half: the share after the colon must be a number, found 'half'.\n"
    )


def test_a_folder_without_adapter_is_one_message(cli: Cli, tmp_path: Path) -> None:
    result = cli("fuse", "--adapter", tmp_path, "--output", "out")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        f"Error: Adapter {tmp_path}: no adapter_config.json there: not an adapter folder.\n"
    )
    assert not (tmp_path / "out").exists()
