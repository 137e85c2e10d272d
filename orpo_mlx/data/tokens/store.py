"""Token ids of pairs on disk: an Arrow file, memory-mapped, complete or absent, checked when read.

Knows nothing of how ids are made, nor of what makes an entry the right one (cache.py).
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from orpo_mlx.data.tokens.encoder import EncodedPair, shared_inputs
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import remove, replacing

PAIRS_FILE, LENGTHS, PROMPTS, FACTS = "pairs.arrow", "lengths.bin", "prompts.bin", "facts.json"
LISTED_TOGETHER = 256
IDS = ("prompt", "chosen", "rejected")
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.list_(pa.int32()), nullable=False) for name in IDS),
        pa.field("shared", pa.int32(), nullable=False),  # inputs that both rows have alike
        pa.field("prompt_hash", pa.uint64(), nullable=False),
        pa.field("place", pa.utf8(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
    ]
)
CHECKED = (*IDS, "place", "weight")  # with a checksum a batch
LOCATION, WEIGHT = len(IDS), len(IDS) + 1


class Prompts(NamedTuple):
    """Prompts that are stored together: those of `pairs[positions]` are slices of `ids`."""

    positions: np.ndarray  # (n,)
    ids: np.ndarray  # int32
    starts: np.ndarray  # (n,)
    lengths: np.ndarray  # (n,)


def encoded_batch(pairs: Sequence[EncodedPair], prompt_hashes: Sequence[int]) -> pa.RecordBatch:
    """Pairs as a record batch of SCHEMA."""
    ids = ([p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs])
    columns = [_id_lists(rows) for rows in ids]
    shared = [shared_inputs(len(p.prompt), p.chosen, p.rejected) for p in pairs]
    hashes = np.array(prompt_hashes, dtype=np.uint64)
    locations = pa.array([p.location for p in pairs], pa.utf8())
    weights = pa.array(np.array([p.weight for p in pairs], np.float32))
    return pa.record_batch(
        [*columns, pa.array(shared, pa.int32()), pa.array(hashes), locations, weights],
        schema=SCHEMA,
    )


def save_store(
    folder: Path, batches: Iterable[pa.RecordBatch], facts: Callable[[], Mapping[str, Any]]
) -> None:
    """Write batches, and what is known of them when they are through.

    Nothing is left in `folder` if the batches, or the disk, end in an error.
    """
    with replacing(folder) as made:
        made.mkdir()
        digests = [hashlib.sha256() for _ in range(2 * len(IDS))]
        weights: list[np.ndarray] = []
        counts, checks, index = [], [], [0, 0]
        lengths, prompts = (made / LENGTHS).open("wb"), (made / PROMPTS).open("wb")
        with pa.ipc.new_file(str(made / PAIRS_FILE), SCHEMA) as writer, lengths, prompts:
            for batch in filter(len, batches):
                writer.write_batch(batch)
                sizes = _sizes(batch)
                for part, file in enumerate((lengths, prompts)):
                    content = (sizes, _numbers(batch, "prompt_hash"))[part].tobytes()
                    index[part] = zlib.crc32(content, index[part])
                    file.write(content)
                for part, name in enumerate(IDS):
                    digests[2 * part].update(_bytes(sizes[:, part]))
                    digests[2 * part + 1].update(_bytes(_id_bytes(batch.column(name))))
                weights.append(_numbers(batch, "weight"))
                counts.append(len(batch))
                checks.append([_check(batch.column(name)) for name in CHECKED])
        known = dict(facts()) | {"counts": counts, "checks": checks, "index": index}
        if any((part != 1).any() for part in weights):
            every = np.concatenate(weights)
            mean = every.mean(dtype=np.float64)
            known["weights"] = [float(every.min()), float(every.max()), float(mean)]
            digests.append(hashlib.sha256(_bytes(every)))
        # Without weights the digest is what it was before there were any.
        known["digest"] = hashlib.sha256(b"".join(d.digest() for d in digests)).hexdigest()
        text = json.dumps(known, sort_keys=True)
        line = f"{zlib.crc32(text.encode())} {text}"
        (made / FACTS).write_text(line, encoding="utf-8")


class Store:
    """A folder that `save_store` wrote. Raises OSError, ValueError or KeyError if it is incomplete.

    A batch that is damaged is found when it is first read: OrpoError, and the folder is removed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        check, _, content = (folder / FACTS).read_text(encoding="utf-8").partition(" ")
        if int(check) != zlib.crc32(content.encode()):
            raise ValueError("damaged")
        self.facts: dict[str, Any] = json.loads(content)
        self.starts = np.concatenate([[0], np.cumsum(self.facts["counts"], dtype=np.int64)])
        count = len(self)
        self.lengths = _mapped(folder / LENGTHS, np.int32, (count, 4))
        self.prompt_hashes = _mapped(folder / PROMPTS, np.uint64, (count,))
        if [zlib.crc32(_bytes(self.lengths)), zlib.crc32(_bytes(self.prompt_hashes))] != self.facts[
            "index"
        ]:
            raise ValueError("damaged")
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / PAIRS_FILE)))
        self._checked = np.zeros((len(self.facts["counts"]), len(CHECKED)), dtype=bool)
        self._last: tuple[int, Any] = -1, None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def weights(self) -> tuple[float, float, float] | None:
        """The least and the largest weight and their mean; None where all are 1."""
        known = self.facts.get("weights")
        return None if known is None else (known[0], known[1], known[2])

    def verify(self) -> None:
        """Read every batch; raises OrpoError for one that is damaged."""
        for number in range(len(self.facts["counts"])):
            for part in range(len(CHECKED)):
                self._verify(number, part)

    def pair(self, row: int) -> EncodedPair:
        """The pair of a row, its ids views into the file."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        within = row - int(self.starts[number])
        parts = []
        for part in range(len(IDS)):
            ids, offsets = self.column(number, part)
            parts.append(ids[offsets[within] : offsets[within + 1]])
        prompt, chosen, rejected = parts
        weight = float(np.asarray(self._verify(number, WEIGHT))[within]) if self.weights else 1.0
        return EncodedPair(prompt, chosen, rejected, self._location(number, within), weight)

    def column(self, number: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and offsets of prompts (part 0), chosen (1) or rejected (2) of a batch."""
        column = self._verify(number, part)
        return _values(column), _offsets(column)

    def ids_beyond(self, rows: int) -> list[tuple[str, int]]:
        """Pairs with a token id of `rows` or more: location and that id."""
        beyond: dict[int, int] = {}  # by row
        for number in range(len(self.facts["counts"])):
            for part in range(len(IDS)):
                ids, offsets = self.column(number, part)
                if not len(ids) or ids[offsets[0] : offsets[-1]].max(initial=0) < rows:
                    continue
                for position in np.flatnonzero(ids >= rows):
                    within = int(np.searchsorted(offsets, position, side="right")) - 1
                    if 0 <= within < len(offsets) - 1:
                        beyond.setdefault(int(self.starts[number]) + within, int(ids[position]))
        return [(self.pair(row).location, token) for row, token in sorted(beyond.items())]

    def _location(self, number: int, within: int) -> str:
        return str(self._verify(number, LOCATION)[within].as_py())

    def _verify(self, number: int, part: int) -> Any:
        """A column of a batch, its checksum compared once."""
        if self._last[0] != number:
            self._last = number, self._reader.get_batch(number)
        column = self._last[1].column(CHECKED[part])
        if not self._checked[number, part]:
            if _check(column) != self.facts["checks"][number][part]:
                remove(self.folder)
                raise OrpoError(
                    f"The cached tokens in {self.folder} are damaged (batch {number + 1}) "
                    "and have been removed; run the command again to rebuild them."
                )
            self._checked[number, part] = True
        return column


class StoredPairs(Sequence[EncodedPair]):
    """Pairs of one or several stores, all or chosen rows, in the given order."""

    def __init__(self, stores: Sequence[Store], rows: np.ndarray | None = None):
        self._stores = list(stores)
        self._starts = np.concatenate([[0], np.cumsum([len(s) for s in stores], dtype=np.int64)])
        self._rows = None if rows is None else rows.astype(np.int32)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        row = range(len(self))[index]
        row = row if self._rows is None else int(self._rows[row])
        store = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._stores[store].pair(row - int(self._starts[store]))

    def select(self, positions: np.ndarray) -> "StoredPairs":
        """These positions alone."""
        rows = positions if self._rows is None else self._rows[positions]
        return StoredPairs(self._stores, rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N, 4) int32: tokens of prompt, chosen and rejected, and inputs that both rows share."""
        return self._gather([store.lengths for store in self._stores])

    @property
    def prompt_hashes(self) -> np.ndarray:
        """(N,) uint64, equal where prompts are."""
        return self._gather([store.prompt_hashes for store in self._stores])

    @property
    def weighted(self) -> bool:
        """Whether a row of the stores has a weight other than 1."""
        return any(store.weights for store in self._stores)

    @property
    def digest(self) -> str:
        """Of all ids and their order, and of weights where there are any."""
        digest = hashlib.sha256("".join(str(s.facts["digest"]) for s in self._stores).encode())
        if self._rows is not None:
            digest.update(self._rows.tobytes())
        return digest.hexdigest()

    def iter_prompts(self) -> Iterator[Prompts]:
        """All prompts, those of a batch together."""
        rows = np.arange(len(self), dtype=np.int32) if self._rows is None else self._rows
        order = np.argsort(rows, kind="stable").astype(np.int32)
        rows = rows[order]
        for first, store in zip(self._starts, self._stores, strict=False):
            cuts = np.searchsorted(rows, first + store.starts)
            for number in np.flatnonzero(np.diff(cuts)):
                inside = slice(cuts[number], cuts[number + 1])
                within = rows[inside] - int(first + store.starts[number])
                ids, offsets = store.column(int(number), 0)
                starts = offsets[within]
                yield Prompts(order[inside], ids, starts, offsets[within + 1] - starts)

    def ids_beyond(self, rows: int) -> list[tuple[str, int]]:
        """`ids_beyond` of all that the stores hold, chosen rows or not."""
        return [entry for store in self._stores for entry in store.ids_beyond(rows)]

    def _gather(self, parts: list[np.ndarray]) -> np.ndarray:
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole if self._rows is None else whole[self._rows]


def iter_prompts(pairs: Sequence[EncodedPair], members: np.ndarray) -> Iterator[Prompts]:
    """The prompts of some pairs, stored or in a list, many together; positions are in `members`."""
    if isinstance(pairs, StoredPairs):
        yield from pairs.select(members).iter_prompts()
        return
    for start in range(0, len(members), LISTED_TOGETHER):
        prompts = [pairs[int(m)].prompt for m in members[start : start + LISTED_TOGETHER]]
        lengths = np.array([len(p) for p in prompts], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(start, start + len(prompts))
        yield Prompts(positions, np.concatenate(prompts), starts, lengths)


def _id_lists(rows: Sequence[np.ndarray]) -> Any:
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int32)
    values = np.concatenate([*rows, np.zeros(0, np.int32)])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _sizes(batch: pa.RecordBatch) -> np.ndarray:
    """(n, 4) int32, a row of `Store.lengths` for each pair."""
    parts = [np.diff(_offsets(batch.column(name))) for name in IDS]
    return np.column_stack([*parts, _numbers(batch, "shared")]).astype(np.int32)


def _offsets(column: Any) -> np.ndarray:
    return np.asarray(column.offsets)


def _values(column: Any) -> np.ndarray:
    """The ids of a list column; its offsets count from them."""
    return np.asarray(column.values)


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return np.asarray(batch.column(name))


def _id_bytes(column: Any) -> np.ndarray:
    offsets = _offsets(column)
    return _values(column)[offsets[0] : offsets[-1]]


def _bytes(array: Any) -> memoryview:
    content: Any = np.ascontiguousarray(array)
    return memoryview(content)


def _check(column: Any) -> int:
    """A checksum of what a column holds: ids, text or numbers."""
    if pa.types.is_floating(column.type):
        return zlib.crc32(_bytes(np.asarray(column)))
    if pa.types.is_list(column.type):
        return zlib.crc32(_bytes(_id_bytes(column)), zlib.crc32(_bytes(_offsets(column))))
    _, offsets, text = column.buffers()
    ends = np.frombuffer(offsets, np.int32, len(column) + 1)
    content = memoryview(text)[ends[0] : ends[-1]] if text else b""
    return zlib.crc32(content, zlib.crc32(_bytes(ends)))


def _mapped(file: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file; an empty file cannot be mapped."""
    return np.memmap(file, dtype, "r", shape=shape) if shape[0] else np.empty(shape, dtype)
