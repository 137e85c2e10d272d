"""What the benchmark computes: pairs of given lengths, tokens drawn with seed 0."""

from typing import NamedTuple

import numpy as np

SEED = 0
# (prompt, chosen, rejected), like UltraFeedback's.
MIX = (
    (132, 159, 172), (9, 810, 512), (79, 395, 280), (63, 455, 185),
    (79, 132, 316), (99, 336, 150), (124, 123, 414), (132, 289, 306),
    (21, 68, 80), (255, 251, 489), (226, 266, 280), (92, 422, 104),
    (72, 272, 811), (51, 108, 155), (289, 195, 581), (16, 506, 474),
)  # fmt: skip


class Workload(NamedTuple):
    """Lengths in tokens; prompts begin with `system` tokens that all of them share."""

    lengths: tuple[tuple[int, int, int], ...]  # prompt after `system`, chosen, rejected
    batch_size: int  # pairs in a step
    system: int = 0


class Tokens(NamedTuple):
    """Token ids of one pair."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


WORKLOADS = {
    "short": Workload(((48, 64, 64),) * 4, 4),
    "system": Workload(((48, 96, 96),) * 4, 4, system=512),
    "long-prompt": Workload(((768, 96, 96),) * 2, 2),
    "long-response": Workload(((64, 512, 512),) * 2, 2),
    "mix": Workload(MIX, 2),
}


def draw_pairs(workload: Workload, vocabulary: int) -> list[Tokens]:
    """The pairs of a workload, the same ones on every machine."""
    random = np.random.default_rng(SEED)

    def draw(count: int) -> list[int]:
        ids: list[int] = random.integers(0, vocabulary, count).tolist()
        return ids

    system = draw(workload.system)
    return [Tokens(system + draw(p), draw(c), draw(r)) for p, c, r in workload.lengths]


def count_tokens(pairs: list[Tokens]) -> int:
    """Tokens of prompt + chosen and of prompt + rejected, whoever computes the prompt once."""
    return sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
