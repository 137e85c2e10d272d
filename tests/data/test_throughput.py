"""How fast pairs become cached token ids, by what the tokenizer alone reaches on the same texts in
the same run: on those that the chat template makes of the pairs."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from orpo_mlx.data.cache import token_cache
from orpo_mlx.data.formats import Reading, load_pairs
from orpo_mlx.data.pipeline import Loader
from orpo_mlx.data.sources import find_sources
from orpo_mlx.data.store import StoredPairs
from orpo_mlx.export.demo_base import fetch_demo_base
from orpo_mlx.training import setup
from orpo_mlx.training.plan import Plan
from tests.training.runs import settings

pytestmark = pytest.mark.long
SAMPLES = Path(__file__).parents[2] / "orpo_mlx" / "data" / "samples" / "train.jsonl"
COUNT, ROUNDS = 15_000, 3
# 0.7 to 0.8 on two quiet cores; other work on them costs the two sides unlike parts.
LEAST = 0.55

# The tokenizer's own batches of the same texts, in one process with its threads.
ALONE = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [text for line in open(sys.argv[2]) for text in json.loads(line).values()]
started = time.perf_counter()
for start in range(0, len(texts), 750):
    batch = tokenizer.encode_batch_fast(texts[start : start + 750], add_special_tokens=False)
    assert all(encoding.ids for encoding in batch)
print(time.perf_counter() - started)
"""


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of about 400 tokens, made of the bundled pairs' words."""
    rows = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    words = " ".join(r[name] for r in rows for name in ("prompt", "chosen", "rejected")).split()
    drawn, file = random.Random(0), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for number in range(COUNT):
            text = drawn.sample(words, 312)
            row = {"prompt": [str(number), *text[:78]], "chosen": text[78:195],
                   "rejected": text[195:]}  # fmt: skip
            stream.write(json.dumps({k: " ".join(v) for k, v in row.items()}) + "\n")
    return file


def test_pairs_are_cached_at_a_good_part_of_the_tokenizers_own_rate(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = fetch_demo_base()
    config = settings(base, pairs_file, tmp_path / "run", max_seq_length=2048)
    encoder = setup.build_encoder(
        setup.open_tokenizer(config, str(base)), setup.template_of(config), thinking=False
    )
    (source,) = find_sources([str(pairs_file)], splits=["train"])
    texts = tmp_path / "texts.jsonl"
    with texts.open("w", encoding="utf-8") as stream:
        for pair in load_pairs(pairs_file):
            rendered = encoder.render_pair(pair, Counter())
            stream.write(json.dumps(rendered._asdict()) + "\n")
    own, alone = [], []
    for number in range(ROUNDS):
        monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / str(number)))
        loader = Loader(encoder, Reading(), token_cache(), processes=1)
        started = time.perf_counter()
        assert len(loader.load(source)) == COUNT
        own.append(time.perf_counter() - started)
        command = [sys.executable, "-c", ALONE, str(base / "tokenizer.json"), str(texts)]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        alone.append(float(done.stdout))
    assert sum(alone) / sum(own) >= LEAST, (own, alone)

    started = time.perf_counter()
    stored = StoredPairs([loader.load(source)])
    plan = Plan(stored, config, rounded=False)
    assert all(len(stored[int(i)].prompt) for part in plan.step(0) for i in part)
    assert time.perf_counter() - started < 1
