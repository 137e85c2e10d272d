"""`orpo-mlx data convert`, `data split` and `data stats` as a person meets them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.pairs.split import prompt_hash, split_by_prompt
from tests import tiny
from tests.cli.conftest import Cli

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Sixty pairs over forty prompts, in a CSV of other names."""
    lines = ["question,good,bad"]
    lines += [f'"what, {n % 40}?",yes {n},"no\n{n}"' for n in range(60)]
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


COLUMNS = ("--columns", "prompt=question,chosen=good,rejected=bad")


def content(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", ["out.jsonl", "deep/er/out.parquet"])
def test_convert_writes_canonical_rows(cli: Cli, rows: Path, tmp_path: Path, name: str) -> None:
    result = cli("data", "convert", rows, *COLUMNS, "--output", name)
    assert (result.status, result.out) == (0, f"{name}: 60 pairs\n")
    pairs = load_pairs(tmp_path / name)
    assert [pair.chosen["content"] for pair in pairs] == [f"yes {n}" for n in range(60)]
    assert [pair.messages[0]["content"] for pair in pairs[:2]] == ["what, 0?", "what, 1?"]
    assert pairs[7].rejected == {"role": "assistant", "content": "no\n7"}
    assert not list(tmp_path.glob("**/.*"))


@pytest.mark.parametrize("command", ["convert", "split"])
def test_weights_of_a_csv_are_kept(cli: Cli, tmp_path: Path, command: str) -> None:
    lines = ["prompt,chosen,rejected,weight"]
    lines += [f"what {n}?,yes,no,{'' if n % 3 else n / 2}" for n in range(30)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    target = "out.parquet" if command == "convert" else "out"
    assert cli("data", command, "rows.csv", "--output", target).status == 0
    files = [tmp_path / target] if command == "convert" else (tmp_path / target).glob("*.jsonl")
    pairs = [pair for file in files for pair in load_pairs(file)]
    weights = {pair.messages[0]["content"]: pair.weight for pair in pairs}
    assert weights == {f"what {n}?": 1.0 if n % 3 else n / 2 for n in range(30)}


def test_convert_reports_what_became_no_pair(cli: Cli, tmp_path: Path) -> None:
    result = cli("data", "convert", FIXTURES / "nectar.jsonl", "--output", "o.jsonl", "--json")
    facts = json.loads(result.out)
    assert facts["files"] == {"o.jsonl": len(content(tmp_path / "o.jsonl"))}
    assert "rank" in result.err


def test_bad_rows_leave_no_file_and_are_all_reported(cli: Cli, tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for name in ("a", "b"):
        lines = [good, good | {"chosen": None}, good | {"rejected": ""}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for arguments in (("convert", "--output", "o.jsonl"), ("split", "--output", "o")):
        result = cli("data", arguments[0], "a.jsonl", "b.jsonl", *arguments[1:], "--quiet")
        assert (result.status, result.out) == (1, "")
        assert [line for line in result.err.splitlines() if not line.startswith("A row")] == [
            "Error: 4 bad lines in the data:",
            '  a.jsonl:2: column "chosen" is null',
            '  a.jsonl:3: "rejected" is empty',
            '  b.jsonl:2: column "chosen" is null',
            '  b.jsonl:3: "rejected" is empty',
        ]
        assert sorted(f for f in tmp_path.rglob("*") if f.is_file()) == [
            tmp_path / "a.jsonl",
            tmp_path / "b.jsonl",
        ]
    dropped = cli("data", "convert", "a.jsonl", "--output", "o.jsonl", "--bad-rows", "drop")
    assert dropped.out.splitlines()[0] == "o.jsonl: 1 pair"
    assert set(dropped.out.splitlines()[1:]) == {
        'left out: 1 x bad row: column "chosen" is null',
        'left out: 1 x bad row: "rejected" is empty',
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "--output", "o.csv"), "--output o.csv: must end in .jsonl or .parquet."),
        (
            ("convert", "--output", "rows.csv.jsonl"),
            "--output rows.csv.jsonl exists. Replace it with --overwrite, or name another.",
        ),
        (("split", "--output", "rows.csv"), "--output rows.csv is a file. Name a folder."),
        (
            ("split", "--output", "o", "--valid-fraction", "0.6", "--test-fraction", "0.4"),
            "--valid-fraction 0.6 and --test-fraction 0.4: leave no pairs to train on.",
        ),
    ],
)
def test_an_output_that_cannot_be_is_one_message(
    cli: Cli, rows: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "rows.csv.jsonl").write_text("mine")
    result = cli("data", arguments[0], rows, *COLUMNS, *arguments[1:])
    assert (result.status, result.out, result.err) == (1, "", f"Error: {message}\n")
    assert (tmp_path / "rows.csv.jsonl").read_text() == "mine"


def test_split_puts_every_pair_into_one_file_and_no_prompt_into_two(
    cli: Cli, rows: Path, tmp_path: Path
) -> None:
    fractions = ("--valid-fraction", 0.2, "--test-fraction", 0.1)
    result = cli("data", "split", rows, *COLUMNS, "--output", "out", *fractions)
    assert "draw" not in result.err
    names = ("train", "valid", "test")
    parts = [content(tmp_path / "out" / f"{name}.jsonl") for name in names]
    assert result.out.splitlines() == [
        f"out/{name}.jsonl: {len(part)} pairs" for name, part in zip(names, parts, strict=True)
    ]
    answers = [row["chosen"][0]["content"] for part in parts for row in part]
    assert sorted(answers) == sorted(f"yes {n}" for n in range(60))
    prompts = [{row["prompt"][0]["content"] for row in part} for part in parts]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 40


def test_valid_is_what_training_would_hold_out(cli: Cli, rows: Path, tmp_path: Path) -> None:
    arguments = ("--output", "out", "--valid-fraction", 0.1, "--test-fraction", 0.2, "--seed", 3)
    assert cli("data", "split", rows, *COLUMNS, *arguments).status == 0
    cli("data", "convert", rows, *COLUMNS, "--output", "all.jsonl")
    pairs = load_pairs(tmp_path / "all.jsonl")
    hashes = np.asarray([prompt_hash(pair) for pair in pairs], np.uint64)
    (mask,), _ = split_by_prompt(hashes, [0.1], 3)
    held = [pair.chosen for pair, out in zip(pairs, mask, strict=True) if out]
    assert [pair.chosen for pair in load_pairs(tmp_path / "out" / "valid.jsonl")] == held


def test_a_file_that_no_prompt_falls_into_gets_one_which_is_reported(
    cli: Cli, tmp_path: Path
) -> None:
    tiny.save_pairs(tmp_path / "a.jsonl", 8)
    fractions = ("--valid-fraction", 1e-9, "--test-fraction", 0.99)
    result = cli("data", "split", "a.jsonl", "--output", "out", *fractions)
    assert result.out.splitlines() == [
        "out/train.jsonl: 1 pair",
        "out/valid.jsonl: 1 pair",
        "out/test.jsonl: 6 pairs",
    ]
    for name, which in (("train", "highest"), ("valid", "nearest")):
        sentence = f"No prompt's draw falls into {name}.jsonl: it gets the one with the {which}"
        assert sentence in result.err
    assert "falls into test.jsonl" not in result.err


def test_split_replaces_only_when_asked_and_leaves_no_old_split(
    cli: Cli, rows: Path, tmp_path: Path
) -> None:
    split = ("data", "split", rows, *COLUMNS, "--output", "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "test.jsonl").write_text("old")
    refused = cli(*split, "--test-fraction", 0)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == (
        "Error: --output out/test.jsonl exists. Replace it with --overwrite, or name another.\n"
    )
    assert cli(*split, "--test-fraction", 0, "--overwrite").status == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["notes.txt", "train.jsonl", "valid.jsonl"]


def test_too_few_prompts_are_one_message(cli: Cli, tmp_path: Path) -> None:
    rows = ({"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in "pq")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = cli("data", "split", "a.jsonl", "--output", "o", "--quiet")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "Error: train, valid and test need a prompt each (prompts found: 2). Leave one out with "
        "--valid-fraction 0 or --test-fraction 0.\n"
    )


def test_stats_count_every_split_of_a_folder(
    cli: Cli, rows: Path, llama: Path, tmp_path: Path
) -> None:
    cli("data", "split", rows, *COLUMNS, "--output", "out")
    result = cli("data", "stats", "out", "--model", llama, "--max-seq-length", 8, "--json")
    assert result.status == 0, result.err
    splits = json.loads(result.out)["splits"]
    assert list(splits) == ["train", "valid", "test"]
    written = [len(content(tmp_path / "out" / f"{name}.jsonl")) for name in splits]
    assert [part["pairs"] for part in splits.values()] == written
    assert all(part["over_max_seq_length"] == part["pairs"] for part in splits.values())
    assert splits["train"]["characters"]["chosen"]["max"] == len("yes 59")


def test_stats_show_lengths_and_bars(cli: Cli, llama: Path, pairs_file: Path) -> None:
    result = cli("data", "stats", pairs_file, "--model", llama)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[:2] == ["all: 16 pairs, 16 different prompts", "turns of the user: 16 x 1"]
    assert "over --max-seq-length 2,048: 0 pairs" in lines
    bars = lines[lines.index("prompt + longer response, in tokens:") + 1 :]
    counts = [int(line.rpartition(" ")[2]) for line in bars if "█" in line]
    assert sum(counts) == 16


def test_stats_of_rows_that_the_template_refuses_are_reported(
    cli: Cli, llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.jinja").write_text("{{ raise_exception('never') }}")
    row = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"})
    (tmp_path / "a.jsonl").write_text(row + "\n")
    result = cli("data", "stats", "a.jsonl", "--model", llama, "--chat-template", "t.jinja")
    assert result.status == 0, result.err
    assert "left out: 1 x no tokens: the template refuses it: never" in result.out


def test_stats_of_nothing_is_one_message(cli: Cli, tmp_path: Path) -> None:
    result = cli("data", "stats", "a.jsonl")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("Error: SOURCE a.jsonl: ")


@pytest.mark.parametrize("source", ["pairs.jsonl", "*.jsonl", "."])
def test_nothing_is_written_over_what_is_read(cli: Cli, tmp_path: Path, source: str) -> None:
    file = tiny.save_pairs(Path("pairs.jsonl"), 8)
    before = file.read_bytes()
    tiny.save_pairs(Path("train.jsonl"), 4, start=20)
    for command in (
        ("convert", source, "--output", "pairs.jsonl"),
        ("preview", source, "--html", "pairs.jsonl"),
        ("check", source, "--html", "pairs.jsonl"),
    ):
        result = cli("data", *command, "--overwrite")
        assert result.status == 1
        assert "belongs to the source, which is never overwritten" in result.err
    assert file.read_bytes() == before
    result = cli("data", "split", ".", "--output", ".", "--overwrite")
    assert result.status == 1 and "belongs to the source" in result.err
