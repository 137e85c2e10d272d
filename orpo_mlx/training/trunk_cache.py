"""Hidden states below the first trained block, kept on disk from one epoch to the next.

With adapters on the last blocks only, everything below gives the same numbers in every epoch.
"""

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
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice, log_once
from orpo_mlx.files import write_error
from orpo_mlx.model.backbone import outer_slots
from orpo_mlx.model.base import Base, base_fingerprint
from orpo_mlx.model.layer_hooks import block_output, first_trained
from orpo_mlx.model.tree_forward import TreeCall, iter_calls
from orpo_mlx.run_folder.pair_file import PairFile, save_not_kept, was_kept
from orpo_mlx.training.forward_path import ForwardPath

# Of the disk's free space: the rest of the machine needs some too.
LARGEST_SHARE = 0.5
PROBE = 8  # tokens


class BoundarySpec(NamedTuple):
    """The states that enter the first trained block."""

    dtype: mx.Dtype
    width: int


class TrunkCache:
    """The states of every input of every pair, (tokens, D) in the model's dtype, filled as needed.

    Those of a pair depend on the pair alone, so that a run continues bit for bit without them: what
    the disk does not keep, or returns otherwise than it was written, is computed again, reported.
    """

    def __init__(
        self,
        path: ForwardPath,
        pairs: Sequence[EncodedPair],
        folder: Path,
        facts: dict[str, Any],
        boundary: BoundarySpec,
        report: Callback = lambda event: None,
        *,
        no_room: str = "",  # a sentence, where nothing is to be written
    ):
        self._path, self._pairs = path, pairs
        self._dtype, self._width = boundary
        self._starts = np.concatenate([[0], np.cumsum(_tokens(pairs))])
        self._report = log_once(report, warning=True)
        tokens, stored = int(self._starts[-1]), _stored_as(self._dtype)
        facts = facts | {"dtype": str(self._dtype), "width": self._width, "tokens": tokens}
        self._file: PairFile | None = None
        if no_room:
            self._report_loss(no_room)
            return
        try:
            self._file = PairFile(folder, facts, self._starts, stored, self._width)
        except (OSError, OrpoError) as error:
            self._report_loss(_reason(folder, error))

    @property
    def is_kept(self) -> bool:
        """Whether states are on the disk; else they are computed in each epoch."""
        return self._file is not None

    def states(self, batch: Batch) -> list[mx.array]:
        """The states that enter the first trained block, (N, T, D) for each call."""
        pairs = [self._of_pair(int(index)) for index in batch.indices]
        return [self._of_call(batch, pairs, call.ids.shape, call.origin) for call in batch.calls]

    def flush(self) -> None:
        """Write what is filled."""
        if self._file is not None:
            try:
                self._file.flush()
            except (OSError, OrpoError) as error:
                self.discard(_reason(self._file.states, error))

    def discard(self, reason: str) -> None:
        """Remove the file, if there is one, and report the reason, a sentence."""
        if self._file is not None:
            self._file.remove()
            self._file = None
            self._report_loss(reason)

    def _report_loss(self, reason: str) -> None:
        self._report(
            f"{reason} The states below the first trained block are computed again in every epoch "
            "from now on: slower, the same numbers."
        )

    def _of_pair(self, index: int) -> np.ndarray:
        """(T, D) the kept states of one pair."""
        if self._file is None:
            return self._compute(index)
        kept = self._file.read(index)
        if kept is None and self._file.has(index):
            self._report(
                f"{self._file.states} is damaged: what has changed there is computed again."
            )
        return self._fill(index) if kept is None else kept

    def _fill(self, index: int) -> np.ndarray:
        """Compute the states of one pair and keep them, unless the disk refuses."""
        states = self._compute(index)
        assert self._file is not None
        try:
            self._file.write(index, states)
        except OSError as error:
            self.discard(_reason(self._file.states, error))
        return states

    def _compute(self, index: int) -> np.ndarray:
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
        tokens = int(self._starts[index + 1] - self._starts[index])
        kept = np.zeros((tokens, self._width), dtype=_stored_as(self._dtype))
        for call, states in zip(batch.calls, outputs, strict=True):
            for row, origin in zip(_as_numpy(states), call.origin, strict=True):
                kept[self._rows(index, *origin, pairs=1)] = row[: origin[2]]
        return kept

    def _of_call(
        self, batch: Batch, pairs: Sequence[np.ndarray], shape: tuple[int, ...], origin: np.ndarray
    ) -> mx.array:
        values = np.zeros((*shape, self._width), dtype=_stored_as(self._dtype))
        for row, (response, start, count) in zip(values, origin, strict=True):
            number = response % len(pairs)
            index = int(batch.indices[number])
            row[:count] = pairs[number][self._rows(index, response, start, count, pairs=len(pairs))]
        return mx.array(values).view(self._dtype)

    def _rows(self, index: int, response: int, start: int, count: int, *, pairs: int) -> np.ndarray:
        """Which of a pair's states the inputs of a response are: the part that both share, then the
        two tails."""
        prompt, chosen, rejected, *_ = self._pairs[index]
        shared = shared_inputs(len(prompt), chosen, rejected)
        inputs = np.arange(start, start + count)
        after = shared if response < pairs else max(shared, len(prompt) + len(chosen) - 1)
        return np.where(inputs < shared, inputs, after + inputs - shared)


def open_trunk_cache(
    path: ForwardPath,
    base: Base,
    pairs: Sequence[EncodedPair],
    data: str,  # their fingerprint
    folder: Path,
    report: Callback,
) -> TrunkCache | None:
    """The cache in a folder, new or with the states that it holds already; reported.

    None where more than the states enters the first trained block, or the disk had no room when the
    run began, which is reported: kept states are other products, so a run has them from its first
    step or never.
    """
    with path.recurrence():
        boundary = find_boundary(path)
    if boundary is None:
        return None
    needed = trunk_bytes(boundary, pairs)
    size = f"{needed / 1e9:.1f} GB" if needed >= 1e9 else f"{needed / 1e6:.1f} MB"
    first = first_trained(path.model)
    below = f"block {first + 1}, the first that is trained"
    no_room = f"The disk has no room to keep the states below {below} ({size})."
    has_room, kept = room_for(needed, folder), was_kept(folder)
    if kept is False or (kept is None and not has_room):
        report(Notice(no_room if kept is None else no_room.replace("has", "had")))
        save_not_kept(folder)
        return None
    facts = {
        "data": data,
        "base": base_fingerprint(base),
        "block": first,
        "mlx": [metadata.version(name) for name in ("mlx", "mlx-lm")],
    }
    if path.form != "loop":
        facts["recurrence"] = path.form
    no_room = "" if has_room else no_room
    cache = TrunkCache(path, pairs, folder, facts, boundary, report, no_room=no_room)
    if cache.is_kept:
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


def _reason(file: Path, error: OSError | OrpoError) -> str:
    return str(write_error(file, error) if isinstance(error, OSError) else error)
