import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, train_adapter


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run folder. Do not write there."""
    return train_adapter(llama, tmp_path_factory.mktemp("run"), num_layers=2)


def test_an_adapter_goes_to_peft_and_comes_back_to_measure_the_same(
    cli: Cli, llama: Path, pairs_file: Path, adapter: Path
) -> None:
    out = cli("export", adapter, "--to", "peft", "--output", "peft", "--json")
    assert out.status == 0, out.err
    facts = json.loads(out.out)
    assert (facts["output"], facts["rank"], facts["alpha"]) == ("peft", 16, 32)
    back = cli("import", "peft", "--model", llama, "--output", "back", "--json")
    assert back.status == 0, back.err
    assert json.loads(back.out)["num_layers"] == 2
    measure = ("evaluate", "--model", llama, "--data", pairs_file, "--json", "--adapter")
    first, again = (json.loads(cli(*measure, folder).out) for folder in (adapter, "back"))
    assert first["adapter"] == again["adapter"]
    assert first["adapter"]["loss"] < first["base"]["loss"]


def test_the_output_is_what_is_printed(cli: Cli, adapter: Path) -> None:
    result = cli("export", adapter, "--to", "peft", "--output", "peft")
    assert (result.status, result.out) == (0, "peft\n")


def test_a_run_starts_from_what_was_imported(
    cli: Cli, llama: Path, pairs_file: Path, adapter: Path
) -> None:
    cli("export", adapter, "--to", "peft", "--output", "peft")
    cli("import", "peft", "--model", llama, "--output", "back")
    result = cli(
        "train", "--model", llama, "--data", pairs_file, "--adapter", "back", "--output", "more",
        "--steps", 1, "--batch-size", 4,
    )  # fmt: skip
    assert result.status == 0, result.err
    assert Path("more/adapters.safetensors").is_file()


def test_wrong_settings_are_reported_together(cli: Cli) -> None:
    result = cli("export", "--to", "onnx")
    assert (result.status, result.out) == (1, "")
    for wanted in ("ADAPTER", "--output", "--to"):
        assert wanted in result.err


def test_a_folder_without_adapter_is_one_message(cli: Cli, tmp_path: Path) -> None:
    result = cli("export", tmp_path, "--to", "peft", "--output", "peft")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        f"Error: Adapter {tmp_path}: no adapter_config.json there: not an adapter folder.\n"
    )


def test_an_import_of_nothing_is_one_message(cli: Cli, llama: Path, tmp_path: Path) -> None:
    result = cli("import", tmp_path, "--model", llama, "--output", "back")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        f"Error: Adapter {tmp_path}: no adapter_model.safetensors in {tmp_path}: not a PEFT "
        "adapter.\n"
    )
