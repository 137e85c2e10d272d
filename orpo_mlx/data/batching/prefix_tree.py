"""Micro-batches as prefix trees: what runs through the backbone, what is scored, for whom."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from orpo_mlx.data.tokens.encoder import EncodedPair, common_prefix, shared_inputs

# What one more call of the backbone costs, in tokens: it reads all weights again (measured: 20 to
# 33, less next to others). A level or a call that saves less is not made.
CALL_TOKENS = 16
# Scored positions of a row that others continue, unless its responses begin alike for longer.
FEW_SCORED = 8
# Recurrent layers take a kernel without a gradient for one token that continues a state (Metal).
SHORTEST = 2
PAIRS_AT_ONCE = 65_536  # whose shapes are counted together


class Call(NamedTuple):
    """Rows that run through the backbone at once, each after one row of an earlier call."""

    ids: np.ndarray  # (N, T) int32, right-padded only where no call continues it
    parent: int  # index of the call that it continues; -1: none
    rows: np.ndarray  # (N,) int32, the parent's row that each row continues
    scored: np.ndarray  # (S_i,) int32 into its N * T positions, those whose next token is scored
    origin: np.ndarray  # (N, 3) int32: a response row that each row is part of, from where, tokens


class Batch(NamedTuple):
    """B pairs or SFT rows. The S scored positions are those of the calls, one after another."""

    calls: tuple[Call, ...]
    targets: np.ndarray  # (S,) int32, the token after each scored position
    weights: np.ndarray  # (2B, S) float32: chosen, then rejected; rows add up to 1, or are 0
    nll_weights: np.ndarray | None  # (B, S) float32, where the likelihood part is not -chosen's
    paired: np.ndarray | None  # (B,) bool, False for SFT rows; None: all are pairs
    indices: np.ndarray  # (B,) positions of the pairs in the data
    tokens: int  # non-padding tokens of prompt + chosen and of prompt + rejected
    computed: int  # positions that run through the backbone, padding included
    padding: int  # of them, those that hold no token


class _Tree:
    """Calls as they are made, and for every response row where each of its inputs is computed."""

    def __init__(self, count: int):
        self.ids: list[np.ndarray] = []
        self.links: list[tuple[int, np.ndarray]] = []
        self.origins: list[np.ndarray] = []
        self.cells: list[list[np.ndarray]] = [[] for _ in range(count)]  # flat positions
        self.computed = self.filled = 0

    def add(
        self,
        pieces: Sequence[np.ndarray],  # the tokens of each row
        owners: Sequence[Sequence[int]],  # the response rows that each row belongs to
        parent: int,
        rows: Sequence[int],
        length: int = 0,
    ) -> int:
        """A call of these rows, padded to `length` at least; returns its index."""
        length = max(length, max(map(len, pieces)))
        ids = np.zeros((len(pieces), length), dtype=np.int32)
        done = [sum(map(len, self.cells[owned[0]])) for owned in owners]
        origin = [(o[0], d, len(p)) for o, d, p in zip(owners, done, pieces, strict=True)]
        self.origins.append(np.array(origin, dtype=np.int32))
        for row, (piece, owned) in enumerate(zip(pieces, owners, strict=True)):
            ids[row, : len(piece)] = piece
            start = self.computed + row * length
            for owner in owned:
                self.cells[owner].append(np.arange(start, start + len(piece)))
        self.ids.append(ids)
        self.links.append((parent, np.asarray(rows, dtype=np.int32)))
        self.computed += ids.size
        self.filled += sum(map(len, pieces))
        return len(self.ids) - 1


def build_batch(
    pairs: Sequence[EncodedPair],
    indices: Sequence[int] | np.ndarray,
    *,
    layout: str = "tree",
    nll_on: str = "response",
    rounding: int = 0,
    limit: int | None = None,
) -> Batch:
    """The pairs at `indices` as calls of the backbone.

    `layout`: "tree" computes every token once; "padded" is one call of 2B right-padded rows;
    "rows" a call for each response, unpadded. `rounding` > 0 rounds the tree's lengths to so many
    values an octave: inner levels down, tails up, so that few shapes occur. `limit` bounds the
    batch prefix.
    """
    chosen = [pairs[i] for i in indices]
    count = len(chosen)
    prompts = [p.prompt for p in chosen] * 2
    responses = [p.chosen for p in chosen] + [p.rejected for p in chosen]
    paired = np.array([not p.is_sft for p in chosen])
    given = [row for row, response in enumerate(responses) if len(response)]
    tree = _Tree(2 * count)
    if layout == "tree":
        _add_levels(tree, prompts, responses, rounding, limit)
    else:
        inputs = [np.concatenate([p, r[:-1]]) for p, r in zip(prompts, responses, strict=True)]
        size = len(given) if layout == "padded" else 1
        for start in range(0, len(given), size):
            rows = given[start : start + size]
            tree.add([inputs[r] for r in rows], [[r] for r in rows], -1, [0] * size)
    calls, targets, weights, nll_weights = _score_positions(
        tree, prompts, responses, nll_on, rounding
    )
    return Batch(
        calls=calls,
        targets=targets,
        weights=weights,
        nll_weights=nll_weights,
        paired=None if paired.all() else paired,
        indices=np.asarray(indices),
        tokens=sum(len(prompts[row]) + len(responses[row]) for row in given),
        computed=tree.computed,
        padding=tree.computed - tree.filled,
    )


def _add_levels(
    tree: _Tree,
    prompts: list[np.ndarray],
    responses: list[np.ndarray],
    rounding: int,
    limit: int | None,
) -> None:
    """The batch prefix, the pair prefixes and the tails."""
    count = len(prompts) // 2
    inputs = [np.concatenate([p, r]) for p, r in zip(prompts, responses, strict=True)]
    first, last = min(prompts[:count], key=tuple), max(prompts[:count], key=tuple)
    shared = min(common_prefix(first, last), min(map(len, prompts)) - SHORTEST)
    shared = shared if limit is None else min(shared, limit)
    shared = _level(shared, (count - 1) * shared, rounding) if count > 1 else 0
    root = -1
    if shared:
        root = tree.add([inputs[0][:shared]], [range(2 * count)], -1, [0])
    # An SFT row has nothing to share: it is a tail as a whole.
    lengths = [
        _level(length, length, rounding) if len(responses[count + pair]) else 0
        for pair in range(count)
        for length in [
            shared_inputs(len(prompts[pair]), responses[pair], responses[count + pair]) - shared
        ]
    ]
    by_length = sorted(range(count), key=lambda pair: lengths[pair])
    ascending = [lengths[pair] for pair in by_length]
    for part in _cuts(count, lambda s, e: _cost_of_level(ascending[s:e])):
        members, length = sorted(by_length[part]), ascending[part.start]
        parent, rows, start = root, [0] * len(members), shared + length
        if length:
            pieces = [inputs[pair][shared:start] for pair in members]
            owners = [[pair, count + pair] for pair in members]
            parent, rows = tree.add(pieces, owners, root, rows), list(range(len(members)))
        tails = {}
        for pair, row in zip(members, rows, strict=True):
            for response in (pair, count + pair):
                if len(responses[response]) and len(tail := inputs[response][start:-1]):
                    tails[response] = tail, row
        _add_tails(tree, tails, parent, rounding)


def _add_tails(
    tree: _Tree,
    tails: dict[int, tuple[np.ndarray, int]],  # response row: its tokens, its row in the parent
    parent: int,
    rounding: int,
) -> None:
    """Right-padded calls, several where padding would cost more than another call."""
    sizes = {r: max(round_up(len(tail), rounding), SHORTEST) for r, (tail, _) in tails.items()}
    order = sorted(sizes, key=lambda response: sizes[response])
    ascending = [sizes[response] for response in order]
    for part in _cuts(len(order), lambda start, end: ascending[end - 1] * (end - start)):
        chosen = sorted(order[part])
        tree.add(
            [tails[r][0] for r in chosen],
            [[r] for r in chosen],
            parent,
            [tails[r][1] for r in chosen],
            ascending[part.stop - 1],
        )


def _level(length: int, saved: int, rounding: int) -> int:
    """The length of a level of its own, 0 if the tokens that it saves are fewer than it costs."""
    return round_down(length, rounding) if saved >= CALL_TOKENS and length >= SHORTEST else 0


def _cost_of_level(lengths: list[int]) -> int:
    """Tokens that are computed twice if pairs share a level as long as their shortest, besides the
    one call that its tails cost more."""
    return sum(lengths) - len(lengths) * lengths[0] + CALL_TOKENS


def _cuts(count: int, cost: Callable[[int, int], int]) -> list[slice]:
    """Where to cut `count` rows in order into calls: the least `cost(start, end)`, in tokens, and
    that of each call."""
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first n rows, start of their last call
    for end in range(1, count + 1):
        best.append(min((best[s][0] + CALL_TOKENS + cost(s, end), s) for s in range(end)))
    parts: list[slice] = []
    end = count
    while end:
        parts.append(slice(best[end][1], end))
        end = best[end][1]
    return parts[::-1]


def round_down(length: int, rounding: int) -> int:
    """The largest of `rounding` values an octave that is at most `length`; 0: `length` itself."""
    if not rounding or length <= rounding:
        return length
    step = 2 ** math.floor(math.log2(length / rounding))
    return length // step * step


def round_up(length: int, rounding: int) -> int:
    """The smallest of `rounding` values an octave that is at least `length`."""
    down = round_down(length, rounding)
    if down == length:
        return length
    return down + 2 ** math.floor(math.log2(length / rounding))


def _score_positions(
    tree: _Tree,
    prompts: list[np.ndarray],
    responses: list[np.ndarray],
    nll_on: str,
    rounding: int,
) -> tuple[tuple[Call, ...], np.ndarray, np.ndarray, np.ndarray | None]:
    """The positions to score, each once whoever shares it, with their targets and weights."""
    count = len(prompts) // 2
    with_prompt = nll_on == "prompt+response"
    cells, targets, rows, in_response = [], [], [], []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(response):
            continue
        whole = np.concatenate([prompt, response])
        start = 0 if with_prompt and row < count else len(prompt) - 1
        cells.append(np.concatenate(tree.cells[row])[start : len(whole) - 1])
        targets.append(whole[start + 1 :])
        rows.append(np.full(len(cells[-1]), row))
        in_response.append(np.arange(start, len(whole) - 1) >= len(prompt) - 1)
    keys = np.concatenate(cells).astype(np.int64) << 32 | np.concatenate(targets)
    entries, entry = np.unique(keys, return_inverse=True)
    owner = np.concatenate(rows)
    calls, kept = _calls(tree, entries >> 32, rounding)
    placed = np.zeros(sum(len(c.scored) for c in calls), dtype=np.int32)
    placed[kept] = entries & 0xFFFFFFFF
    of_response = np.concatenate(in_response)
    weights = _means(owner[of_response], kept[entry[of_response]], (2 * count, len(placed)))
    nll_weights = None
    if with_prompt:
        of_chosen = owner < count
        nll_weights = _means(owner[of_chosen], kept[entry[of_chosen]], (count, len(placed)))
    return calls, placed, weights, nll_weights


def _calls(tree: _Tree, cells: np.ndarray, rounding: int) -> tuple[tuple[Call, ...], np.ndarray]:
    """The calls with their scored positions, and the index of each entry among all of them."""
    calls, kept, start, placed = [], np.zeros(len(cells), dtype=np.int64), 0, 0
    inner = {parent for parent, _ in tree.links}
    for index, (ids, (parent, rows)) in enumerate(zip(tree.ids, tree.links, strict=True)):
        inside = np.flatnonzero((cells >= start) & (cells < start + ids.size))
        scored = (cells[inside] - start).astype(np.int32)
        kept[inside] = placed + np.arange(len(inside))
        if rounding and len(scored):
            # Filled up with positions of no weight: their number, too, is part of the shape.
            room = ids.size
            if index in inner:
                few = np.bincount(scored // ids.shape[1]).max() <= FEW_SCORED
                room = FEW_SCORED * len(ids) if few else ids.size + len(tree.cells)
            scored = np.pad(scored, (0, room - len(scored)))
        calls.append(Call(ids, parent, rows, scored, tree.origins[index]))
        placed += len(scored)
        start += ids.size
    return tuple(calls), kept


def _means(rows: np.ndarray, entries: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Weights that make means over the entries of each row; 0 for one without entries."""
    weights = np.zeros(shape, dtype=np.float32)
    np.add.at(weights, (rows, entries), 1.0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    return weights


def pair_shapes(
    lengths: np.ndarray,  # (N, 4): of prompt, chosen, rejected, and inputs that both rows share
    depths: np.ndarray,  # (N,) tokens of each that a batch prefix takes
    rounding: int,
) -> np.ndarray:
    """(N, 4): the tree's lengths of each pair after its `depths`: the part that both rows share,
    the shorter and the longer tail; and of the shared part 0, 1 or 2 for no, few or more positions
    to score."""
    longest = int((lengths[:, 0] + lengths[:, 1:3].max(axis=1)).max(initial=0)) + 1
    levels = np.array([_level(n, n, rounding) for n in range(longest)], np.int32)
    rounded = np.array([round_up(n, rounding) for n in range(longest)], np.int32)
    shapes = np.empty((len(lengths), 4), dtype=np.int32)
    for first in range(0, len(lengths), PAIRS_AT_ONCE):
        part = slice(first, first + PAIRS_AT_ONCE)
        shapes[part] = _shapes(lengths[part], depths[part], levels, rounded)
    return shapes


def _shapes(
    lengths: np.ndarray, depths: np.ndarray, levels: np.ndarray, rounded: np.ndarray
) -> np.ndarray:
    """`pair_shapes` with every length's level and rounding looked up."""
    prompt, *responses = lengths[:, :3].T
    together = lengths[:, 3] - depths
    paired = responses[1] > 0
    level = levels[together] * paired
    start = depths + level
    tails = [
        np.maximum(prompt + response - 1 - start, 0) * (response > 0) for response in responses
    ]
    scored = np.maximum(start - prompt + 1, 0)
    # Two targets where the responses diverge.
    scored += (level == together) & (lengths[:, 3] < prompt + np.minimum(*responses))
    kinds = np.where((level == 0) | (scored == 0), 0, 1 + (scored > FEW_SCORED))
    shorter, longer = np.minimum(*tails), np.maximum(*tails)
    return np.column_stack([level, rounded[shorter], rounded[longer], kinds])
