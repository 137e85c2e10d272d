"""Which prompts become pairs and which the verdict is about, and those of a round. No mlx.

A prompt's side is drawn once and kept: what is trained on is never what is judged.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from orpo_mlx.data.pairs.split import split_by_prompt
from orpo_mlx.errors import OrpoError
from orpo_mlx.loops.state import Round, Side


def sides_of(
    hashes: Sequence[int],  # of the prompts
    kept: Mapping[str, Side],  # by id, from earlier rounds
    *,
    verdict_share: float,
    seed: int,
) -> dict[str, Side]:
    """The side of every prompt, by id: the one that it had, else drawn."""
    unique = np.array(list(dict.fromkeys(hashes)), np.uint64)
    (is_verdict,) = split_by_prompt(unique, [verdict_share], seed).masks
    drawn: dict[str, Side] = {
        prompt_id(int(prompt)): "verdict" if verdict else "pairs"
        for prompt, verdict in zip(unique, is_verdict, strict=True)
    }
    return {**drawn, **kept}


def prompt_id(prompt: int) -> str:
    """A prompt's hash as answers have it (`SampledAnswer.prompt_id`)."""
    return f"{prompt:016x}"


def prompts_of_round(
    asked: Iterable[str],  # ids of the prompts that there are
    sides: Mapping[str, Side],
    rounds: Sequence[Round],
    *,
    counts: Mapping[Side, int],
    seed: int,
) -> dict[Side, list[str]]:
    """For each side so many prompts or all, those first that fewest rounds had.

    Raises OrpoError if a side has none.
    """
    asked = list(asked)
    uses = Counter(prompt for one in rounds for prompt in one.asked)

    def rank(prompt: str) -> tuple[int, bytes]:
        return uses[prompt], blake2b(f"{seed} {prompt}".encode(), digest_size=8).digest()

    chosen: dict[Side, list[str]] = {
        side: sorted((p for p in asked if sides[p] == side), key=rank)[:count]
        for side, count in counts.items()
    }
    if empty := [side for side, prompts in chosen.items() if not prompts]:
        raise OrpoError(
            f"--prompts: {len(asked)} prompt{'s' * (len(asked) != 1)}, and none for "
            f"{' and '.join(empty)}. About half become pairs, the verdict is about the others: "
            "give some more."
        )
    return chosen
