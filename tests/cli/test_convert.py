import json
from pathlib import Path

from tests import tiny
from tests.cli.conftest import Cli


def test_convert_reports_the_size_before_and_after(cli: Cli, llama: Path, tmp_path: Path) -> None:
    result = cli("convert", llama, "--output", "out", "--bits", 4, "--group-size", 32)
    assert result.status == 0, result.err
    assert result.out == "out: 89.3 kB of weights, 6.10 bits each.\n"
    assert result.err.startswith("468.7 kB of weights become 89.3 kB, on disk and in memory")
    assert "[INFO]" not in result.err
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_convert_json_is_one_object_with_the_report(cli: Cli, llama: Path) -> None:
    arguments = ("convert", llama, "--output", "out", "--mode", "mxfp8", "--report", "--json")
    result = cli(*arguments, "--quiet")
    facts = json.loads(result.out)
    assert (facts["folder"], facts["source_bytes"] > facts["size_bytes"] > 0) == ("out", True)
    assert facts["divergence"].keys() == {
        "tokens",
        "perplexity_original",
        "perplexity",
        "kl",
        "top1_agreement",
    }
    assert result.err == ""


def test_convert_shows_the_report_as_a_table(cli: Cli, llama: Path) -> None:
    result = cli("convert", llama, "--output", "out", "--mode", "mxfp8", "--report")
    for measure in ("perplexity", "KL from the original, nats", "same likeliest next token"):
        assert f"│ {measure} " in result.out


def test_a_folder_that_exists_is_one_message(cli: Cli, llama: Path) -> None:
    assert cli("convert", llama, "--output", "out").status == 0
    again = cli("convert", llama, "--output", "out")
    assert (again.status, again.out) == (1, "")
    assert again.err == (
        "Error: out exists. Replace it with --overwrite, or name another folder.\n"
    )
    assert cli("convert", llama, "--output", "out", "--overwrite").status == 0


def test_settings_that_do_not_go_together_are_one_message(cli: Cli, llama: Path) -> None:
    result = cli(
        "convert", llama, "--output", "out", "--bits", 4, "--mode", "mxfp8", "--group-size", 64
    )
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "Error: --group-size 64: not with --mode mxfp8 (allowed: 32); "
        "--bits 4: not with --mode mxfp8 (allowed: 8).\n"
    )


def test_other_bits_are_answered_with_those_that_are_allowed(cli: Cli, llama: Path) -> None:
    result = cli("convert", llama, "--output", "out", "--bits", 7)
    assert result.err == "Error: --bits 7: must be one of 2, 3, 4, 5, 6 or 8.\n"


def test_one_source_is_needed(cli: Cli, llama: Path) -> None:
    assert cli("convert", "--output", "out").err.startswith("Error: SOURCE is missing")
    assert cli("convert", "a", "b", "--output", "out").err.startswith("Error: SOURCE a,b: must be")


def test_a_damaged_gguf_file_is_one_message(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 64)
    result = cli("convert", "x.gguf", "--output", "out")
    assert (result.status, result.out) == (1, "")
    assert "Error: x.gguf is broken: its header cannot be read" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_a_model_of_unknown_kind_is_one_message(cli: Cli, tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base")
    config = json.loads((source / "config.json").read_text()) | {"model_type": "unheard"}
    (source / "config.json").write_text(json.dumps(config))
    result = cli("convert", source, "--output", "out")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"Error: SOURCE {source} cannot be loaded:")
