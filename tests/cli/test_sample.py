"""The command as a person meets it."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from orpo_mlx.cli.sample import _table
from orpo_mlx.events import Progress
from orpo_mlx.judging.answers import load_answers
from orpo_mlx.sampling.sample import Sampled, SourceResult
from tests.cli.conftest import Cli
from tests.judging.sessions import answer
from tests.sampling.talkers import rows_of, save_prompts, save_talker

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("talker") / "base", ends=-0.5)


def test_a_table_a_sentence_on_cut_answers_and_the_file(
    cli: Cli, base: Path, tmp_path: Path
) -> None:
    prompts = save_prompts(tmp_path / "prompts.txt")
    result = cli("sample", "--model", base, "--prompts", prompts, "-n", 2, "--max-tokens", 8)
    assert result.status == 0
    rows = load_answers(Path("answers.jsonl"))
    cut, logps = sum(row.cut for row in rows), [row.logp for row in rows if row.logp is not None]
    assert 0 < cut < 6
    tokens = sum(row.tokens for row in rows) / 6
    cells = [cell.strip() for cell in result.out.splitlines()[4].split("│")[1:-1]]
    assert cells == ["base", "6", f"{cut}", f"{tokens:.0f}", f"{sum(logps) / len(logps):.3f}"]
    assert f"base: {cut} of 6 answers" in result.out
    assert result.out.splitlines()[-1] == "Written: answers.jsonl"


def test_a_folder_with_brackets_is_shown_as_it_is_called() -> None:
    row = answer("Hello.", name="a[b]")
    sampled = Sampled(Path("answers.jsonl"), 1, [SourceResult(row.source, [row], None)])
    console = Console(record=True, width=100, file=StringIO())
    console.print(_table(sampled))
    assert "a[b]" in console.export_text()


def test_json_is_one_object_a_source(cli: Cli, base: Path, tmp_path: Path) -> None:
    prompts = save_prompts(tmp_path / "prompts.txt")
    result = cli(
        "sample", "--model", base, "--prompts", prompts, "-n", 2, "--max-tokens", 8, "--json"
    )
    facts = json.loads(result.out)
    (source,) = facts.pop("sources")
    assert facts == {"output": "answers.jsonl", "prompts": 3}
    rows = load_answers(Path("answers.jsonl"))
    logps = [row.logp for row in rows if row.logp is not None]
    assert source.pop("mean_logp") == pytest.approx(sum(logps) / len(logps))
    assert source.pop("mean_tokens") == pytest.approx(sum(row.tokens for row in rows) / 6)
    cut = sum(row.cut for row in rows)
    enough = source.pop("enough_tokens")
    assert (source.pop("ended") > 0) == (enough is not None)
    assert enough is None or 8 < enough <= 32
    assert source == {"source": "base", "answers": 6, "cut": cut, "went_on": cut}


def test_ctrl_c_keeps_complete_prompts_and_shows_how_to_go_on(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = save_prompts(tmp_path / "my prompts.txt")
    arguments = ["--model", base, "--prompts", prompts, "-n", 2, "--max-tokens", 8]
    whole = cli("sample", *arguments, "--output", "whole.jsonl").out

    def interrupted(stage: str, done: int, total: int) -> Progress:
        if stage == "Answers of base" and done == 5:
            raise KeyboardInterrupt
        return Progress(stage, done, total)

    with monkeypatch.context() as patch:
        patch.setattr("orpo_mlx.sampling.sample.Progress", interrupted)
        result = cli("sample", *arguments, "--batch-size", 3)
    kept = len(load_answers(Path("answers.jsonl")))
    assert (result.status, result.out) == (130, "")
    assert 0 < kept < 6
    assert result.err.splitlines()[-1] == (
        f"Warning: Stopped; {kept} answers are in answers.jsonl. Go on with: orpo-mlx sample "
        f"--model {base} --max-tokens 8 --prompts '{prompts}' --answers 2 --batch-size 3 --resume"
    ).replace("--answers", "-n")
    again = cli("sample", *arguments, "--batch-size", 3, "--resume")
    assert again.status == 0
    assert again.out.splitlines()[:6] == whole.splitlines()[:6]
    texts = [[row["text"] for row in rows_of(Path(f"{n}.jsonl"))] for n in ("answers", "whole")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("done", [0, 4])
def test_ctrl_c_while_a_file_is_replaced(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """The file that was there is kept until a prompt is complete, and then gone on with."""
    Path("answers.jsonl").write_text("mine\n")

    def interrupted(stage: str, count: int, total: int) -> Progress:
        if stage == "Answers of base" and count == done:
            raise KeyboardInterrupt
        return Progress(stage, count, total)

    monkeypatch.setattr("orpo_mlx.sampling.sample.Progress", interrupted)
    prompts = save_prompts(tmp_path / "prompts.txt")
    arguments = ["--model", base, "--prompts", prompts, "-n", 2, "--max-tokens", 8]
    result = cli("sample", *arguments, "--batch-size", 2, "--overwrite")
    assert result.status == 130
    is_kept = Path("answers.jsonl").read_text() == "mine\n"
    assert is_kept == (done == 0)
    last = result.err.splitlines()[-1]
    assert last == "Warning: Stopped; no prompt was complete." if is_kept else "--resume" in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "0"], "-n 0: must be at least 1."),
        (["--overwrite", "--resume"], "--overwrite and --resume: give one of them, not both."),
        (["--adapter", "absent"], "Adapter absent: no such folder (from "),
    ],
)
def test_what_is_wrong_is_one_message(
    cli: Cli, tmp_path: Path, arguments: list[str], message: str
) -> None:
    prompts = save_prompts(tmp_path / "prompts.txt")
    result = cli("sample", "--model", "none", "--prompts", prompts, *arguments)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"Error: {message}")
