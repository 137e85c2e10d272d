"""Hidden states below the first trained block, kept on disk from one epoch to the next.

With adapters on the last blocks only, everything below gives the same numbers in every epoch.
"""

import json
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from orpo_mlx.data.batching.prefix_tree import Batch, build_batch
from orpo_mlx.data.tokens.encoder import EncodedPair, shared_inputs
from orpo_mlx.data.tokens.pair_facts import pair_lengths
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import replacing
from orpo_mlx.model.backbone import outer_slots
from orpo_mlx.model.base import Base, base_fingerprint
from orpo_mlx.model.layer_hooks import block_output, first_trained
from orpo_mlx.model.tree_forward import TreeCall, iter_calls
from orpo_mlx.training.forward_path import ForwardPath

STATES, FILLED, FACTS = "states.bin", "filled.npy", "facts.json"
# Of the disk's free space: the rest of the machine needs some too.
LARGEST_SHARE = 0.5
PROBE = 8  # tokens


class BoundarySpec(NamedTuple):
    """The states that enter the first trained block."""

    dtype: mx.Dtype
    width: int


class TrunkCache:
    """The states of every input of every pair, (tokens, D) in the model's dtype, filled as needed.

    Those of a pair depend on the pair alone, so that a run continues bit for bit without them.
    """

    def __init__(
        self,
        path: ForwardPath,
        pairs: Sequence[EncodedPair],
        folder: Path,
        facts: dict[str, Any],
        boundary: BoundarySpec,
    ):
        self._path, self._pairs, self._folder = path, pairs, folder
        self._dtype, width = boundary
        self._starts = np.concatenate([[0], np.cumsum(_tokens(pairs))])
        tokens = int(self._starts[-1])
        facts = facts | {"dtype": str(self._dtype), "width": width, "tokens": tokens}
        shape = (tokens, width)
        self._filled = _open_or_clear(folder, facts, len(pairs), tokens * width * self._dtype.size)
        mode: Any = "r+" if self._filled.any() else "w+"
        self._states = np.memmap(folder / STATES, _stored_as(self._dtype), mode, shape=shape)

    def states(self, batch: Batch) -> list[mx.array]:
        """The states that enter the first trained block, (N, T, D) for each call."""
        for index in batch.indices:
            if not self._filled[index]:
                self._fill(int(index))
        return [self._of_call(batch, call.ids.shape, call.origin) for call in batch.calls]

    def flush(self) -> None:
        """Write what is filled: the states first, then the list of which are there."""
        self._states.flush()
        with replacing(self._folder / FILLED) as file, file.open("wb") as stream:
            np.save(stream, self._filled)

    def _fill(self, index: int) -> None:
        """Run the frozen prefix on one pair."""
        batch = build_batch(self._pairs, [index])
        model, parts = self._path.model, self._path.parts
        assert parts is not None
        calls = [
            TreeCall(mx.array(c.ids), c.parent, mx.array(c.rows), mx.array(c.scored))
            for c in batch.calls
        ]
        with self._path.recurrence(), block_output(model, first_trained(model) - 1) as outputs:
            for _ in iter_calls(model, parts, calls):
                pass
        mx.eval(outputs)
        for call, states in zip(batch.calls, outputs, strict=True):
            values = _as_numpy(states)
            for row, origin in zip(values, call.origin, strict=True):
                self._states[self._rows(index, *origin, pairs=1)] = row[: origin[2]]
        self._filled[index] = True

    def _of_call(self, batch: Batch, shape: tuple[int, ...], origin: np.ndarray) -> mx.array:
        values = np.zeros((*shape, self._states.shape[1]), dtype=self._states.dtype)
        for row, (response, start, count) in zip(values, origin, strict=True):
            index = int(batch.indices[response % len(batch.indices)])
            rows = self._rows(index, response, start, count, pairs=len(batch.indices))
            row[:count] = self._states[rows]
        return mx.array(values).view(self._dtype)

    def _rows(self, index: int, response: int, start: int, count: int, *, pairs: int) -> np.ndarray:
        """Where the inputs of a response are kept: the part that both share, then the two tails."""
        prompt, chosen, rejected, *_ = self._pairs[index]
        shared = shared_inputs(len(prompt), chosen, rejected)
        inputs = np.arange(start, start + count)
        after = shared if response < pairs else max(shared, len(prompt) + len(chosen) - 1)
        return self._starts[index] + np.where(inputs < shared, inputs, after + inputs - shared)


def open_trunk_cache(
    path: ForwardPath,
    base: Base,
    pairs: Sequence[EncodedPair],
    data: str,  # their fingerprint
    folder: Path,
    report: Callback,
) -> TrunkCache | None:
    """The cache in a folder, new or with the states that it holds already; reported.

    None where more than the states enters the first trained block, or the disk has no room, which
    is reported.
    """
    with path.recurrence():
        boundary = find_boundary(path)
    if boundary is None:
        return None
    needed = trunk_bytes(boundary, pairs)
    size = f"{needed / 1e9:.1f} GB" if needed >= 1e9 else f"{needed / 1e6:.1f} MB"
    first = first_trained(path.model)
    below = f"block {first + 1}, the first that is trained"
    if not room_for(needed, folder):
        report(Notice(f"The disk has no room to keep the states below {below} ({size})."))
        return None
    facts = {
        "data": data,
        "base": base_fingerprint(base),
        "block": first,
        "mlx": [metadata.version(name) for name in ("mlx", "mlx-lm")],
    }
    if path.form != "loop":
        facts["recurrence"] = path.form
    cache = TrunkCache(path, pairs, folder, facts, boundary)
    report(Notice(f"Later epochs start at {below}; kept for them: {size} in {folder}."))
    return cache


def trunk_tokens(pairs: Sequence[EncodedPair]) -> int:
    """How many states of these pairs are kept, each computed once for that."""
    return int(_tokens(pairs).sum())


def trunk_bytes(boundary: BoundarySpec, pairs: Sequence[EncodedPair]) -> int:
    """The size of the kept states of these pairs."""
    return trunk_tokens(pairs) * boundary.width * boundary.dtype.size


def find_boundary(path: ForwardPath) -> BoundarySpec | None:
    """What enters the first trained block, found by trying; None if more than the states."""
    model, parts = path.model, path.parts
    first = first_trained(model)
    if parts is None or path.layout != "tree" or not 0 < first < len(model.layers):
        return None
    # An embedding that is trained is below the blocks.
    if outer_slots(model):
        return None
    ids = mx.arange(1, PROBE + 1)[None]
    call = TreeCall(ids, -1, mx.zeros(1, dtype=mx.int32), mx.array([PROBE - 1]))
    (expected,) = iter_calls(model, parts, [call])
    try:
        with block_output(model, first - 1) as outputs:
            list(iter_calls(model, parts, [call]))
        (resumed,) = iter_calls(model, parts, [call._replace(states=outputs[0])])
    except (AttributeError, TypeError, ValueError, KeyError, IndexError):
        return None
    same: Any = mx.array_equal(expected, resumed)
    return BoundarySpec(outputs[0].dtype, outputs[0].shape[-1]) if same.item() else None


def room_for(size: int, folder: Path) -> bool:
    """Whether the disk has enough room to keep so many bytes, those already there not counted."""
    there = sum(file.stat().st_blocks * 512 for file in folder.glob("*"))
    while not folder.exists():
        folder = folder.parent
    return size - there <= LARGEST_SHARE * shutil.disk_usage(folder).free


def _tokens(pairs: Sequence[EncodedPair]) -> np.ndarray:
    """(N,) inputs of each pair, those that both rows share counted once."""
    prompt, chosen, rejected, shared = pair_lengths(pairs).astype(np.int64).T
    return shared + sum(np.maximum(prompt + r - 1 - shared, 0) for r in (chosen, rejected))


def _stored_as(dtype: mx.Dtype) -> Any:
    return np.float32 if dtype == mx.float32 else np.uint16


def _as_numpy(states: mx.array) -> np.ndarray:
    """Bit for bit: numpy has no bfloat16."""
    return np.array(states if states.dtype == mx.float32 else states.view(mx.uint16))


def _open_or_clear(folder: Path, facts: dict[str, Any], pairs: int, size: int) -> np.ndarray:
    """Which pairs the folder holds states of, (N,) bool; it is emptied if its facts differ."""
    try:
        if json.loads((folder / FACTS).read_text(encoding="utf-8")) == facts:
            filled = np.load(folder / FILLED)
            if filled.shape == (pairs,) and (folder / STATES).stat().st_size == size:
                return filled
    except (OSError, ValueError):
        pass
    if folder.exists():
        shutil.rmtree(folder)
    with replacing(folder / FACTS) as file:
        file.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return np.zeros(pairs, dtype=bool)
