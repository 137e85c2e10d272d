"""Many pairs take no more memory than a few: measured on processes of their own, on Linux."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.repeats import repeats

pytestmark = pytest.mark.touchy
ROOT = Path(__file__).parents[3]
FEW = 4_000
MOST_MORE_BYTES = 40e6  # 20,000 more pairs have 64 MB of ids

# Reading, splitting by prompt, tokenizing, bucketing, one epoch's order. Memory is looked at after
# each block of pairs and each of those steps: as often on a slow machine as on a fast one.
RUN = """
import os, sys
from pathlib import Path
from orpo_mlx import backend
backend.prepare()
import numpy as np
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.cache import token_cache
from orpo_mlx.data.pairs.load import Reading
from orpo_mlx.data.tokens.pipeline import Loader
from orpo_mlx.data.reading.sources import find_sources
from orpo_mlx.data.pairs.split import split_by_prompt
from orpo_mlx.data.tokens.store import StoredPairs
from orpo_mlx.training.plan import Plan
from tests.data.rows import build

def private_bytes(process):
    # Of a process and those that it started, shared pages by their share.
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    own = next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return own + sum(map(private_bytes, children))

peak = 0
def look(*progress):
    global peak
    peak = max(peak, private_bytes(os.getpid()))

file, processes = sys.argv[1], int(sys.argv[2])
loader = Loader(build(), Reading(), token_cache(), processes=processes)
pairs = StoredPairs([loader.load(find_sources([file], splits=("train",))[0], look)])
look()
(held,), _ = split_by_prompt(pairs.prompt_hashes, [0.05], 0)
pairs = pairs.select(np.flatnonzero(~held))
look()
config = TrainConfig(model="m", data=[file], output="o", batch_size=8, micro_batch_size=4)
plan = Plan(pairs, config, rounded=False)
look()
steps = len(pairs) // config.batch_size
tokens = sum(len(pairs[int(i)].prompt) for s in range(0, steps, steps // 50)
             for part in plan.step(s) for i in part)
look()
print(len(pairs), tokens, peak)
"""


def write_pairs(file: Path, count: int) -> None:
    """Pairs of about 400 tokens, no prompt like another."""
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            words = [tiny.WORDS[(number * (k + 3) + k * k) % len(tiny.WORDS)] for k in range(200)]
            row = {
                "prompt": f"{number} " + " ".join(words[:50]),
                "chosen": " ".join(words[50:125]),
                "rejected": " ".join(words[125:]),
            }
            stream.write(json.dumps(row) + "\n")


def peak_bytes(file: Path, cache: Path, processes: int) -> int:
    environment = os.environ | {"ORPO_MLX_CACHE": str(cache)}
    command = [sys.executable, "-c", RUN, str(file), str(processes)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    pairs, tokens, peak = map(int, done.stdout.split())
    with file.open("rb") as lines:
        assert tokens > 0 and pairs > 0.9 * sum(1 for _ in lines)
    return peak


@pytest.mark.parametrize("many", repeats(24_000, 400_000))
@pytest.mark.parametrize("processes", [1, 2])
def test_memory_does_not_grow_with_the_number_of_pairs(
    tmp_path: Path, processes: int, many: int
) -> None:
    peaks = []
    for count in (FEW, many):
        file = tmp_path / f"{count}.jsonl"
        write_pairs(file, count)
        peaks.append(peak_bytes(file, tmp_path / "cache", processes))
        file.unlink()
    assert peaks[1] - peaks[0] <= MOST_MORE_BYTES
