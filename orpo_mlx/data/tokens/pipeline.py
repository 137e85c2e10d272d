"""From a source to its token ids: read, rendered, encoded, kept; in one process or in several."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from orpo_mlx.data.pairs.load import (
    RECOGNIZED_ROWS,
    PreferencePair,
    Reading,
    RowFormat,
    pair_rows,
    read_row,
    recognize_source,
)
from orpo_mlx.data.pairs.split import prompt_hash
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Chunk, Source, iter_chunks, iter_rows, rows_of
from orpo_mlx.data.tokens.cache import key_of, open_entry, prune
from orpo_mlx.data.tokens.encode import (
    BLOCK,
    count_reasoned,
    encode_rendered,
    render_block,
)
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.data.tokens.rendering.template import Rendered
from orpo_mlx.data.tokens.store import Store, encoded_batch, save_store
from orpo_mlx.data.tokens.workers import map_in_order, map_in_threads
from orpo_mlx.errors import OrpoError

# Starting processes takes as long as encoding a few thousand pairs.
BYTES_FOR_PROCESSES = 8_000_000
MOST_PROCESSES = 8
# Blocks under way: what one waits for in Python, the others compute in the tokenizer.
THREADS = 3
# Two or three cores are kept busy by one process, whose tokenizer has threads of its own.
CORES_FOR_PROCESSES = 4

Task = Chunk | list[PreferencePair]
Progress = Callable[[int, int], None]  # rows done, rows in all (0: not known)


class Block(NamedTuple):
    """The pairs of a chunk with their texts."""

    pairs: list[PreferencePair]
    texts: list[Rendered | None]
    prompt_hashes: list[int]
    report: ReadReport


class UnreadableError(Exception):
    """Rows cannot be read or rendered; nothing is kept."""

    def __init__(self, report: ReadReport):
        super().__init__("rows cannot be read")
        self.report = report


@dataclass(frozen=True)
class Loader:
    """How sources become token ids, and where those are kept."""

    encoder: Encoder
    reading: Reading
    cache: Path
    drop_bad: bool = False
    processes: int | None = None  # None: as many as pay

    def entry(self, source: Source) -> Path:
        """The folder of a source's token ids."""
        how = asdict(self.reading) | {"drop_bad": self.drop_bad}
        if not self.reading.sft:
            del how["sft"]  # the facts of pairs are what they were before there were SFT rows
        return self.cache / key_of(source, self.encoder, how)

    def cached(self, source: Source) -> Store | None:
        """The token ids of a source if they are there."""
        return open_entry(self.entry(source))

    def load(self, source: Source, progress: Progress = lambda done, total: None) -> Store:
        """The token ids of a source, made if they are not there.

        Raises UnreadableError for rows that cannot be read or rendered, all of them.
        """
        folder = self.entry(source)
        if (store := open_entry(folder)) is not None:
            return store
        prune()
        report = ReadReport()

        def facts() -> dict[str, Any]:
            if self.entry(source) != folder:
                raise OrpoError(
                    f"{source.name}: changed while it was being read. Run the command again."
                )
            return _as_facts(report)

        save_store(folder, self._batches(source, report, progress), facts)
        return Store(folder)

    def _batches(
        self, source: Source, report: ReadReport, progress: Progress
    ) -> Iterator[pa.RecordBatch]:
        """The ids of all rows; what happened to them is added to the report."""
        beginning = ReadReport()
        first = list(islice(iter_rows(source, beginning), RECOGNIZED_ROWS))
        if first:
            row_format = recognize_source(source, first, self.reading)
            report.source, report.read_as = source.name, row_format.sentence
            tasks = _with_estimates(source, _tasks(source, row_format, report))
            processes = self._processes(source)
            state = (self.encoder, row_format)
            # The tokenizer has threads of its own, and is faster in one process than in two.
            blocks = map_in_order(_render_task, state, tasks, processes) if processes > 1 else tasks

            def encode(numbered: tuple[int, Any]) -> tuple[pa.RecordBatch, ReadReport, int]:
                number, task = numbered
                block, total = task if processes > 1 else _render_task(state, task)
                batch = _encode(block, self.encoder, compared=number == 0)
                return batch, block.report, total

            for batch, own, total in map_in_threads(encode, enumerate(blocks), THREADS):
                yield batch
                report.add(own)
                progress(report.pairs, total)
            progress(report.pairs, report.pairs)
        elif beginning.problems:
            report.add(beginning)
        else:
            report.refuse(source.name, "the file is empty")
        if self.drop_bad:
            report.drop_bad()
        if report.bad:
            raise UnreadableError(report)

    def _processes(self, source: Source) -> int:
        """How many processes pay, this one among them."""
        if self.processes is not None:
            return self.processes
        size = sum(file.stat().st_size for file in source.files)
        cores = min(
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
            MOST_PROCESSES,
        )
        pays = size >= BYTES_FOR_PROCESSES and cores >= CORES_FOR_PROCESSES
        return cores if pays else 1


def report_of(store: Store) -> ReadReport:
    """What happened to the rows of a stored source when its ids were made."""
    facts = store.facts["outcome"]
    return ReadReport(
        source=facts["source"],
        read_as=facts["read_as"],
        pairs=facts["pairs"],
        kept=facts["kept"],
        rows_left_out=Counter(facts["drops"]),
        pairs_left_out=Counter(facts["dropped"]),
        notes=Counter(facts["notes"]),
        reasoned=facts["reasoned"],
    )


def first_pairs(source: Source, reading: Reading) -> list[PreferencePair]:
    """The pairs of a source's first rows; faults are left for later."""
    report = ReadReport()
    rows = list(islice(iter_rows(source, report), RECOGNIZED_ROWS))
    if not rows:
        return []
    row_format = recognize_source(source, rows, reading)
    if row_format.grouped:
        return list(pair_rows(rows, row_format, report))
    return [pair for row in rows for pair in read_row(row, row_format, report)]


def _as_facts(report: ReadReport) -> dict[str, Any]:
    """A report as the file keeps it: `drops` are rows, `dropped` are pairs."""
    return {
        "outcome": {
            "source": report.source,
            "read_as": report.read_as,
            "pairs": report.pairs,
            "kept": report.kept,
            "dropped": report.pairs_left_out,
            "notes": report.located_notes(),
            "drops": report.rows_left_out,
            "reasoned": report.reasoned,
        }
    }


def _tasks(source: Source, row_format: RowFormat, report: ReadReport) -> Iterator[Task]:
    """Raw rows by the chunk, or pairs by the block where a pair is made of several rows."""
    if not row_format.grouped:
        yield from iter_chunks(source, report)
        return
    pairs = pair_rows(iter_rows(source, report), row_format, report)
    while block := list(islice(pairs, BLOCK)):
        yield block


def _with_estimates(
    source: Source, tasks: Iterator[Task]
) -> Iterator[tuple[Chunk | list[Any], int]]:
    """Tasks with an estimate of the rows in all, from the bytes of those so far; 0: none."""
    size = sum(file.stat().st_size for file in source.files)
    plain = all(file.suffix in (".jsonl", ".ndjson", ".json") for file in source.files)
    rows = read = 0
    for task in tasks:
        lines = task.content if plain and isinstance(task, Chunk) else []
        if lines and isinstance(lines[0], bytes):
            rows += len(lines)
            read += sum(map(len, lines))
        yield task, round(rows * max(size / read, 1)) if read else 0


def _render_task(state: tuple[Encoder, RowFormat], task: tuple[Task, int]) -> tuple[Block, int]:
    """The work of a process: a chunk of rows to texts."""
    (encoder, row_format), (rows, total) = state, task
    report = ReadReport()
    if isinstance(rows, Chunk):
        pairs = [
            pair for row in rows_of(rows, report) for pair in read_row(row, row_format, report)
        ]
    else:
        pairs = rows
    report.pairs, report.reasoned = len(pairs), count_reasoned(pairs)
    texts = render_block(pairs, encoder, report)
    return Block(pairs, texts, [prompt_hash(pair) for pair in pairs], report), total


def _encode(block: Block, encoder: Encoder, *, compared: bool) -> pa.RecordBatch:
    """The ids of a block's pairs that are not left out."""
    encoded = encode_rendered(block.pairs, block.texts, encoder, block.report, compared=compared)
    both = zip(encoded, block.prompt_hashes, strict=True)
    kept = [(pair, prompt) for pair, prompt in both if pair is not None]
    return encoded_batch([pair for pair, _ in kept], [prompt for _, prompt in kept])
