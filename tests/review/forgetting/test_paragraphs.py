"""The text on which it is measured what was forgotten."""

import ast
import json
from pathlib import Path

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.review.forgetting.paragraphs import load_paragraphs


def test_the_bundled_text_has_twelve_paragraphs_of_each_of_five_kinds() -> None:
    paragraphs = load_paragraphs(None)
    assert len(paragraphs) == 60 == len(set(paragraphs))
    words = [len(paragraph.split()) for paragraph in paragraphs]
    # about 4,000 tokens, at 1.5 tokens a word of prose, code and sums
    assert 2_500 <= sum(words) <= 2_800
    dialogues, code, sums = paragraphs[24:36], paragraphs[36:48], paragraphs[48:]
    assert all('"' in text or ": " in text for text in dialogues)
    assert all("\n" in text for text in code)
    assert all(any(c.isdigit() for c in text) for text in sums)
    assert all("\n" not in text for text in paragraphs[:36] + sums)


def test_its_programs_are_programs() -> None:
    for text in load_paragraphs(None)[36:48]:
        if text.startswith(("def ", "class ", "import ")):
            ast.parse(text)
        if text.startswith("{"):
            json.loads(text)


def test_paragraphs_are_apart_by_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_bytes("\ufeff\n\nOne line,\nand another.\n \t\n\n  indented\n\r\n\r\nlast".encode())
    assert load_paragraphs(file) == ["One line,\nand another.", "  indented", "last"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold 2 paragraphs or more, apart by empty lines, found 0"),
        (b"only\none\n\n \n", "found 1"),
        (b"\xff\xfe", "cannot be read (not UTF-8 text)"),
        (None, "No such file"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "own.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OrpoError) as error:
        load_paragraphs(file)
    assert str(error.value).startswith(f"--forget-text {file}: ")
    assert message in str(error.value)


def test_a_folder_is_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(OrpoError, match=str(tmp_path)):
        load_paragraphs(tmp_path)
