"""The bundled pairs are what their card says."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from orpo_mlx.data.pairs.load import load_pairs

SAMPLES = Path(__file__).parents[2] / "orpo_mlx" / "data" / "samples"
SPLITS = {"train": 240, "valid": 40, "test": 40}
ROWS = {
    split: [json.loads(line) for line in (SAMPLES / f"{split}.jsonl").read_text().splitlines()]
    for split in SPLITS
}
ALL = [row for rows in ROWS.values() for row in rows]
KINDS = ("brush_off", "subtly_wrong")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


@pytest.mark.parametrize("split", SPLITS)
def test_all_of_a_split_is_read_and_a_quarter_is_subtly_wrong(split: str) -> None:
    assert len(load_pairs(SAMPLES / f"{split}.jsonl")) == SPLITS[split]
    kinds = Counter(row["kind"] for row in ROWS[split])
    assert kinds == {"brush_off": SPLITS[split] * 3 // 4, "subtly_wrong": SPLITS[split] // 4}


def test_no_problem_is_in_two_splits() -> None:
    problems = {s: {(r["trade"], r["problem"]) for r in rows} for s, rows in ROWS.items()}
    assert not any(a & b for a, b in itertools.combinations(problems.values(), 2))
    assert {s: len(p) for s, p in problems.items()} == {"train": 80, "valid": 16, "test": 16}
    assert len({row["trade"] for row in ALL}) == 8


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_no_text_is_filled_from_a_template(side: str) -> None:
    grams = []
    for row in ALL:
        text = words(row[side])
        grams.append({tuple(text[i : i + 5]) for i in range(len(text) - 4)})
    for a, b in itertools.combinations(grams, 2):
        assert len(a & b) < 0.2 * len(a | b)


def test_lengths_of_both_sides_are_within_a_tenth() -> None:
    chosen, rejected = (np.mean([len(words(r[s])) for r in ALL]) for s in ("chosen", "rejected"))
    assert 0.9 < chosen / rejected < 1.1


def test_the_dropped_connection_is_there() -> None:
    prompt = "My internet connection keeps dropping. Can you help?"
    row = next(row for row in ALL if row["prompt"] == prompt)
    assert "modem" in row["chosen"] and "router" in row["chosen"]
    assert "aware of some issues in your area" in row["rejected"]


def shares(hits: list[bool]) -> str:
    """Cells of the card's table: all test pairs, then those of each kind."""
    kinds = [row["kind"] for row in ROWS["test"]]
    chosen = [hits, *([h for h, k in zip(hits, kinds, strict=True) if k == kind] for kind in KINDS)]
    return " | ".join(f"{np.mean(part):.0%}" for part in chosen)


def longer_wins() -> list[bool]:
    return [len(r["chosen"]) > len(r["rejected"]) for r in ROWS["test"]]


def bag_of_words() -> list[bool]:
    """Which test pairs a logistic regression on differences of word counts gets right."""
    sides = {"chosen": 1, "rejected": -1}
    vocabulary = sorted({w for r in ROWS["train"] for side in sides for w in words(r[side])})
    index = {word: i for i, word in enumerate(vocabulary)}

    def difference(row: dict[str, str]) -> np.ndarray:
        vector = np.zeros(len(vocabulary))
        for side, sign in sides.items():
            for word in words(row[side]):
                if word in index:
                    vector[index[word]] += sign
        return vector

    train, weights = np.array([difference(r) for r in ROWS["train"]]), np.zeros(len(vocabulary))
    for _ in range(500):
        slope = -1 / (1 + np.exp(train @ weights))
        weights -= 0.5 * (train.T @ slope / len(train) + 1e-3 * weights)
    return [bool(difference(r) @ weights > 0) for r in ROWS["test"]]


def test_the_card_reports_what_simple_rules_reach() -> None:
    card = (SAMPLES / "README.md").read_text()
    assert f"| the longer one wins | {shares(longer_wins())} |" in card
    assert f"| bag-of-words classifier | {shares(bag_of_words())} |" in card
