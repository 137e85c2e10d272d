import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.parity.peft_bases import random_adapter


@pytest.fixture(scope="module")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter on the tiny llama. Do not write there."""
    folder = tmp_path_factory.mktemp("adapter") / "polite"
    random_adapter(llama, folder, ["q_proj"])
    return folder


def test_export_writes_an_adapter_and_says_how_to_run_it(cli: Cli, run: Path) -> None:
    result = cli("export", run, "--to", "gguf", "--output", "out")
    assert result.status == 0, result.err
    assert result.out == "out\n"
    assert "Run it: llama-cli -m BASE.gguf --lora out/adapter.gguf" in result.err
    assert sorted(p.name for p in Path("out").iterdir()) == ["Modelfile", "adapter.gguf"]


def test_json_names_the_files_and_nothing_else_is_on_standard_output(cli: Cli, run: Path) -> None:
    result = cli("export", run, "--to", "gguf", "--output", "out", "--with-base", "--json")
    assert json.loads(result.out) == {
        "output": "out",
        "files": ["Modelfile", "adapter.gguf", "base.gguf"],
        "architecture": "llama",
        "outtype": "f16",
        "tensors": 6,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--to", "peft", "--fused", "--outtype", "f16"],
            "Error: --fused: only with --to gguf; --outtype: only with --to gguf.\n",
        ),
        (
            ["--to", "gguf", "--fused", "--with-base"],
            "Error: --fused and --with-base: the fused model needs no base.\n",
        ),
        (
            ["--to", "gguf", "--outtype", "q8_0"],
            "Error: --outtype q8_0: an adapter is f32 or f16 (with --fused: q8_0 too).\n",
        ),
    ],
)
def test_options_that_do_not_fit_each_other_are_named(
    cli: Cli, run: Path, arguments: list[str], message: str
) -> None:
    result = cli("export", run, "--output", "out", *arguments)
    assert (result.status, result.out, result.err) == (1, "", message)
    assert not Path("out").exists()
