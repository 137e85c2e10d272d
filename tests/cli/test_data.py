"""`orpo-mlx data`: the group, and what its commands share."""

import json
from pathlib import Path

import pytest

from orpo_mlx.cli.data import COMMANDS
from tests import tiny
from tests.cli.conftest import Cli
from tests.cli.test_main import HEAVY, loaded


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    shown = cli("data")
    assert (shown.status, shown.out) == (0, cli("data", "--help").out)
    assert list(COMMANDS) == ["preview", "check", "stats", "split", "convert"]
    for name, text in COMMANDS.items():
        assert f"  {name}" in shown.out, text


@pytest.mark.touchy
@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_no_heavy_module_no_other_command_and_builds_no_options(name: str) -> None:
    text, status, modules, built, declared = loaded(f"data {name}")
    assert (status, built) == (0, [])
    assert declared
    assert text.startswith(f"Usage: orpo-mlx data {name} [OPTIONS] SOURCE...")
    assert "SOURCE...    " in text
    assert not HEAVY & {module.split(".")[0] for module in modules}
    others = {f"orpo_mlx.cli.data_{other}" for other in COMMANDS if other != name}
    assert not others & set(modules)


def test_an_unknown_command_is_answered_with_the_nearest(cli: Cli) -> None:
    result = cli("data", "prevew")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "Error: No such command 'prevew'. Did you mean preview? "
        f"All commands: {', '.join(COMMANDS)}. See: orpo-mlx data --help\n"
    )


def test_a_source_is_needed(cli: Cli) -> None:
    result = cli("data", "preview")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "Error: SOURCE is missing: Preference pairs: files, folders, globs or Hub ids.\n"
    )


def test_all_that_is_wrong_with_options_and_sources_is_reported_at_once(cli: Cli) -> None:
    result = cli("data", "preview", "a.jsonl", "--modle", "m", "-n", "0", "a.jsonl")
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines() == [
        "Error: Wrong options:",
        "  --modle: no such option. Did you mean --model?",
        "  SOURCE a.jsonl,a.jsonl: names a.jsonl twice.",
        "  -n 0: must be at least 1.",
    ]


def test_sources_are_taken_anywhere_between_options_or_in_a_file(cli: Cli, tmp_path: Path) -> None:
    for name in "abc":
        row = {"prompt": name, "chosen": "yes", "rejected": "no"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "o.yaml").write_text("data: [c.jsonl]\n")
    arguments = ("data", "stats", "--json", "a.jsonl", "--bad-rows", "stop", "b.jsonl")
    assert json.loads(cli(*arguments).out)["splits"]["all"]["pairs"] == 2
    from_file = cli("data", "stats", "--config", "o.yaml", "--json")
    assert json.loads(from_file.out)["splits"]["all"]["pairs"] == 1


def test_weights_are_refused_where_a_file_is_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    assert (
        json.loads(cli("data", "stats", "a.jsonl:2", "--json").out)["splits"]["all"]["pairs"] == 1
    )
    assert cli("data", "preview", "a.jsonl:2").status == 0
    result = cli("data", "convert", "a.jsonl:2", "--output", "b.jsonl")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "Error: SOURCE a.jsonl: weights are for orpo-mlx train; here each pair counts once.\n"
    )


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_split_of_ties_has_no_bars(cli: Cli, tmp_path: Path, more: tuple[str, ...]) -> None:
    tiny.save_pairs(tmp_path / "train.jsonl", 4)
    answers = [{"text": "yes", "score": 1.0}, {"text": "no", "score": 1.0}]
    tie = {"prompt": "hi", "completions": answers}
    (tmp_path / "valid.jsonl").write_text(json.dumps(tie) + "\n")
    result = cli("data", "stats", tmp_path, *more)
    assert result.status == 0, result.err
    if not more:
        assert "valid: 0 pairs" in result.out and "left out: 1 x" in result.out
