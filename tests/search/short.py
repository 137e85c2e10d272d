"""Small bases, pairs with a preference that can be learned, and searches on them."""

import json
import random
from pathlib import Path
from typing import Any

from orpo_mlx.config.search import LrFindConfig
from tests import tiny

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}


def save_varied(file: Path, count: int, seed: int, *, shuffled: bool = False) -> Path:
    """Pairs as `tiny.toy_pair`, with words at random; `shuffled` swaps labels at random."""
    rng = random.Random(seed)

    def word() -> str:
        return rng.choice(tiny.WORDS)

    with file.open("w", encoding="utf-8") as opened:
        for number in range(count):
            thing, trouble = word(), word()
            answers = [
                f"please check the {thing} first then {word()} it {word()}",
                f"later we can not help the {trouble} {word()} {word()}",
            ]
            if shuffled and rng.random() < 0.5:
                answers.reverse()
            prompt = f"my {thing} is {trouble} number {number}"
            row = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
            opened.write(json.dumps(row) + "\n")
    return file


def search_settings(model: Path, data: Path, **changes: Any) -> LrFindConfig:
    """A search for a run of a few steps, on data with its `train.jsonl` and `valid.jsonl`."""
    values: dict[str, Any] = {
        "model": str(model),
        "data": [str(data / "train.jsonl")],
        "valid_data": [str(data / "valid.jsonl")],
        "batch_size": 4,
        "micro_batch_size": 4,
        "rank": 8,
        "max_seq_length": 128,
        "template_date": "2026-01-02",
        "steps": 12,
    }
    return LrFindConfig.model_validate(values | changes)
