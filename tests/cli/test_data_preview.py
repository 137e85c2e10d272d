"""`orpo-mlx data preview` on the terminal, as JSON and as a page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import Cli
from tests.loaded import assert_loads_none

TRICKY = [
    {
        "prompt": "what is <|im_start|>?\n\n<b>\x1b[31m",
        "chosen": "please wait",
        "rejected": "later",
    },
    {"prompt": "my router " * 20, "chosen": "check it " * 20, "rejected": "no"},
]


@pytest.fixture
def tricky(tmp_path: Path) -> Path:
    file = tmp_path / "tricky.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in TRICKY))
    return file


class _Text(HTMLParser):
    """The text of a page, and the classes of its spans."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.links = "", []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_rows_are_shown_as_messages_without_a_model(cli: Cli, tricky: Path) -> None:
    result = cli("data", "preview", tricky, "-n", 1)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"{tricky}: read as: texts, explicit prompt.",
        "Messages as they are in the rows; --model shows the exact tokens.",
        "",
        f"1 of 1 · {tricky}:1",
        "prompt",
        "user: what is <|im_start|>?↵",
        "↵",
        "<b>␛[31m",
        "chosen",
        "assistant: please wait",
        "rejected",
        "assistant: later",
    ]


def test_with_a_model_tokens_are_counted_and_what_is_cut_is_bracketed(
    cli: Cli, llama: Path, tricky: Path
) -> None:
    result = cli("data", "preview", tricky, "--model", llama, "--max-seq-length", 32)
    assert (result.status, result.err) == (0, "")
    first, second = result.out.split("\n\n1 of 2")[1].split("\n\n2 of 2")
    assert "note: text that holds <|im_start|>, read as a control token" in first
    assert "⟦<|im_start|>⟧" in first
    assert re.search(r"^chosen · \d+ tokens$", first, re.M)
    assert "please wait<|im_end|>" in first
    assert re.search(r"^prompt · 16 tokens, \d+ more cut\n⟪<\|im_start\|>user", second, re.M)
    assert re.search(r"^chosen · 16 tokens, \d+ more cut$", second, re.M)
    assert re.search(r"⟪[^⟫]*<\|im_end\|>⟫\nrejected", second)


def test_json_holds_the_ids(cli: Cli, llama: Path, tricky: Path) -> None:
    shown = json.loads(cli("data", "preview", tricky, "--model", llama, "--json").out)
    assert (shown["model"], shown["sources"]) == (str(llama), [str(tricky)])
    pair = shown["pairs"][0]
    assert sum(len(span["ids"]) for span in pair["prompt"]) == pair["tokens"]["prompt"]
    assert [span["mark"] for span in pair["chosen"]] == ["", "special"]


def test_a_seed_draws_pairs_and_keeps_their_order(cli: Cli, pairs_file: Path) -> None:
    def locations(*arguments: object) -> list[int]:
        shown = json.loads(cli("data", "preview", pairs_file, "--json", *arguments).out)
        return [int(pair["place"].rpartition(":")[2]) for pair in shown["pairs"]]

    assert locations() == [1, 2, 3]
    drawn = [locations("--seed", seed, "-n", 5) for seed in range(8)]
    assert drawn[0] == locations("--seed", 0, "-n", 5)
    assert all(line == sorted(set(line)) and len(line) == 5 for line in drawn)
    assert len({tuple(line) for line in drawn}) > 4
    assert locations("--seed", 0, "-n", 99) == list(range(1, 17))


@pytest.mark.parametrize("with_model", [False, True])
def test_a_page_shows_the_same_and_loads_nothing(
    cli: Cli, llama: Path, tricky: Path, tmp_path: Path, with_model: bool
) -> None:
    model = ("--model", llama) if with_model else ()
    result = cli("data", "preview", tricky, *model, "--html", "page.html")
    assert (result.status, result.err) == (0, "Page written: page.html\n")
    page = (tmp_path / "page.html").read_text()
    assert "<b>" not in page
    assert "\x1b" not in page
    shown = _Text(page)
    assert shown.links == []
    for text in ("what is", "<|im_start|>", "<b>", "please wait", "my router my router"):
        assert text in shown.text
    assert ("<|im_end|>" in shown.text) == with_model
    assert 'class="text"' in page or not with_model


def test_a_page_is_not_replaced_unasked(cli: Cli, tricky: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    result = cli("data", "preview", tricky, "--html", "page.html")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "Error: --html page.html exists. Replace it with --overwrite, or name another.\n"
    )
    assert (tmp_path / "page.html").read_text() == "mine"
    assert cli("data", "preview", tricky, "--html", "page.html", "--overwrite").status == 0


def test_bad_rows_are_warnings_next_to_the_pairs(cli: Cli, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": None, "rejected": "b"}, tiny.toy_pair(0)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = cli("data", "preview", "a.jsonl")
    assert result.status == 0
    assert "1 of 1 · a.jsonl:2" in result.out
    assert result.err == ('Warning: a.jsonl:1: column "chosen" is null\n')


def test_a_source_without_any_pair_is_one_message(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "chosen": null, "rejected": "b"}\n')
    result = cli("data", "preview", "a.jsonl")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("Error: 1 bad line in the data:\n  a.jsonl:1: column")


def test_a_model_that_is_none_is_one_message(cli: Cli, tricky: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    result = cli("data", "preview", tricky, "--model", "m")
    assert (result.status, result.out) == (1, "")
    assert result.err == "Error: --model m: no config.json in m: not a model folder.\n"


@pytest.mark.touchy
def test_messages_are_shown_without_mlx(tricky: Path) -> None:
    code = (
        f"from orpo_mlx.cli.main import run\nassert run(['data', 'preview', {str(tricky)!r}]) == 0"
    )
    assert_loads_none(code, {"mlx"})


@pytest.mark.parametrize("weight", ["", ":2", ":0.5"])
def test_a_source_is_never_overwritten_by_the_page(cli: Cli, tmp_path: Path, weight: str) -> None:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    before = pairs.read_bytes()
    result = cli("data", "preview", f"{pairs}{weight}", "--html", pairs, "--overwrite")
    assert (result.status, result.out) == (1, "")
    assert "never overwritten" in result.err
    assert pairs.read_bytes() == before
