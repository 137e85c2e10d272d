"""Token ids for which a base has no rows are refused: MLX would read other memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import load_model
from transformers import AutoTokenizer

from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.config.train import EvaluateConfig, GenerateConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.pair_facts import ids_beyond
from orpo_mlx.errors import OrpoError
from orpo_mlx.model.base import vocabulary_rows
from orpo_mlx.review.answers.generate import generate, open_chat
from orpo_mlx.review.pairs.check import check_data
from orpo_mlx.training.evaluate import evaluate
from orpo_mlx.training.loop import train
from tests import tiny
from tests.families import FAST
from tests.training.runs import settings

EXTRA = [f"<|extra_{number}|>" for number in range(60)]
# Which text of a pair holds the token.
TEXTS = ("prompt", "chosen", "rejected")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """384 rows, and a tokenizer with more tokens. Do not write there."""
    folder = tiny.save_base(tmp_path_factory.mktemp("beyond") / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": EXTRA})
    tokenizer.save_pretrained(folder)
    return folder


def beyond_rows(base: Path) -> tuple[int, str, int]:
    """The rows of the base, and the last token with its id."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    token_id = tokenizer.convert_tokens_to_ids(EXTRA[-1])
    assert token_id >= rows
    return rows, EXTRA[-1], token_id


def pairs_with(token: str, where: str, file: Path) -> Path:
    """Eight pairs; the fifth has the token in one of its texts."""
    pairs = [tiny.toy_pair(number) for number in range(8)]
    pairs[4][where] = f"{token} {pairs[4][where]}"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return file


def by_training(base: Path, file: Path, output: Path) -> Any:
    return train(settings(base, file, output, steps=2))


def by_validating(base: Path, file: Path, output: Path) -> Any:
    good = tiny.save_pairs(file.with_name("good.jsonl"), 8, start=50)
    return train(settings(base, good, output, steps=2, valid_data=[str(file)]))


def by_evaluating(base: Path, file: Path, output: Path) -> Any:
    return evaluate(EvaluateConfig(model=base, data=[file]))


def by_checking(base: Path, file: Path, output: Path) -> Any:
    return check_data(DataCheckConfig(model=base, data=[file]))


@pytest.mark.parametrize("where", TEXTS)
@pytest.mark.parametrize("use", [by_training, by_validating, by_evaluating, by_checking])
def test_pairs_with_such_an_id_are_refused_by_row_token_id_and_rows(
    base: Path, tmp_path: Path, use: Callable[[Path, Path, Path], Any], where: str
) -> None:
    rows, token, token_id = beyond_rows(base)
    file = pairs_with(token, where, tmp_path / "pairs.jsonl")
    with pytest.raises(OrpoError) as caught:
        use(base, file, tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{base} has {rows} rows of embeddings")
    assert lines[1] == f"  {file}:5: token '{token}' has id {token_id}"
    assert len(lines) == 3


@pytest.mark.parametrize("use", [by_training, by_evaluating, by_checking])
def test_tokens_that_no_pair_uses_are_left_alone(
    base: Path, tmp_path: Path, use: Callable[[Path, Path, Path], Any]
) -> None:
    use(base, tiny.save_pairs(tmp_path / "pairs.jsonl", 8), tmp_path / "run")


def test_cached_ids_are_checked_as_well(base: Path, llama: Path, tmp_path: Path) -> None:
    """The cache knows the tokenizer, not the model: another base may have the rows."""
    _, token, _ = beyond_rows(base)
    file = pairs_with(token, "chosen", tmp_path / "pairs.jsonl")
    wide = tiny.save_base(tmp_path / "wide", vocab_size=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (wide / name).write_bytes((base / name).read_bytes())
    train(settings(wide, file, tmp_path / "a", steps=1))
    with pytest.raises(OrpoError, match=r"pairs\.jsonl:5: token '<\|extra_59\|>'"):
        train(settings(base, file, tmp_path / "b", steps=1))


def test_a_prompt_with_such_an_id_is_refused(base: Path) -> None:
    rows, token, token_id = beyond_rows(base)
    config = GenerateConfig(model=base, prompt=f"hi {token}", max_tokens=2)
    chat = open_chat(config)
    with pytest.raises(OrpoError, match=rf"the prompt: token '.*59\|>' has id {token_id}"):
        list(generate(chat, config.prompt, config))
    assert rows == vocabulary_rows(chat.model)


def test_the_rows_are_the_fewer_of_embedding_and_head(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base", tie_word_embeddings=False)
    model = load_model(folder)[0]
    rows = model.model.embed_tokens.weight.shape[0]
    assert vocabulary_rows(model) == rows
    model.lm_head = nn.Linear(64, rows - 3, bias=False)
    assert vocabulary_rows(model) == rows - 3
    model.lm_head = nn.Linear(64, rows + 3, bias=False)
    assert vocabulary_rows(model) == rows


@pytest.mark.parametrize("family", FAST)
def test_the_rows_of_every_family_are_its_configs(family: str) -> None:
    model, config = tiny.build_model(family)
    text = config.get("text_config", config)
    assert vocabulary_rows(model) == text["vocab_size"]


def test_ids_of_pairs_in_a_list_are_found_one_a_pair() -> None:
    random = np.random.default_rng(0)
    pairs = [
        EncodedPair(*(random.integers(0, 100, n).astype(np.int32) for n in (9, 4, 5)), f"a:{row}")
        for row in range(30)
    ]
    for rows in (100, 99, 90, 50, 0):
        expected = []
        for pair in pairs:
            wrong = [int(i) for part in pair[:3] for i in part if i >= rows]
            expected += [(pair.location, wrong[0])] if wrong else []
        assert ids_beyond(pairs, rows) == expected
