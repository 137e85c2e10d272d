"""What is asked of all pairs of a run at once, stored or in a list."""

from collections.abc import Sequence

import numpy as np

from orpo_mlx.data.tokens.encoder import EncodedPair, shared_inputs
from orpo_mlx.data.tokens.store import StoredPairs


def ids_beyond(pairs: Sequence[EncodedPair], rows: int) -> list[tuple[str, int]]:
    """Pairs with a token id of `rows` or more: location and that id, the first of each pair."""
    if isinstance(pairs, StoredPairs):
        return pairs.ids_beyond(rows)
    beyond = []
    for pair in pairs:
        ids = np.concatenate([pair.prompt, pair.chosen, pair.rejected])
        if len(wrong := ids[ids >= rows]):
            beyond.append((pair.location, int(wrong[0])))
    return beyond


def is_weighted(pairs: Sequence[EncodedPair]) -> bool:
    """Whether the loss of a pair counts other than once."""
    if isinstance(pairs, StoredPairs):
        return pairs.weighted
    return any(pair.weight != 1 for pair in pairs)


def count_rows(pairs: Sequence[EncodedPair]) -> dict[str, int]:
    """How many pairs and how many SFT rows an epoch takes; empty where there are pairs alone."""
    sft = int((pair_lengths(pairs)[:, 2] == 0).sum())
    return {"train_pairs": len(pairs) - sft, "sft_rows": sft} if sft else {}


def pair_lengths(pairs: Sequence[EncodedPair]) -> np.ndarray:
    """(N, 4) int32: tokens of prompt, chosen and rejected, and inputs that both rows have alike."""
    if isinstance(pairs, StoredPairs):
        return pairs.lengths
    shared = [shared_inputs(len(p.prompt), p.chosen, p.rejected) for p in pairs]
    sizes = [(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs]
    return np.column_stack([np.array(sizes, np.int32), np.array(shared, np.int32)])


def longest_row(lengths: np.ndarray) -> int:
    """Tokens of the longest prompt with its longer response, from `pair_lengths`."""
    return int((lengths[:, 0] + lengths[:, 1:3].max(axis=1)).max())
