"""The card of a set of pairs."""

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.hub.card import (
    DatasetFacts,
    build_dataset_card,
)
from orpo_mlx.interop.hub.card_data import CheckResult
from tests import tiny
from tests.interop.fuse.packing import packed


@pytest.mark.parametrize(
    ("pairs", "word"),
    [
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (2_000_000, "1M<n<10M"),
        (10**8, "100M<n<1B"),
    ],
)
def test_the_size_of_a_set_is_the_hubs_word(pairs: int, word: str) -> None:
    facts = DatasetFacts("a/b", [("train.jsonl", pairs)], "texts", CheckResult(0, []))
    assert build_dataset_card(facts).data.size_categories == [word]


def test_the_card_of_pairs_counts_them_and_says_what_checking_finds(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    tiny.save_pairs(folder / "train.jsonl", 30)
    tiny.save_pairs(folder / "test.jsonl", 4, start=50)
    (folder / "notes.txt").write_text("mine")
    bundle, notices = packed(folder, tmp_path)
    card = DatasetCard(bundle.card.decode())
    assert str(card).encode() == bundle.card
    assert {u.path for u in bundle.uploads} == {"README.md", "train.jsonl", "test.jsonl"}
    assert "| `train.jsonl` | 30 |" in card.text
    assert "| `test.jsonl` | 4 |" in card.text
    assert "the longer answer means chosen" in card.text
    assert card.data.to_dict()["size_categories"] == ["n<1K"]
    assert "Not pushed: notes.txt." in notices


def test_rows_that_are_not_pairs_are_not_pushed(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a"}\n')
    with pytest.raises(OrpoError, match="pairs.jsonl:2"):
        packed(file, tmp_path)
