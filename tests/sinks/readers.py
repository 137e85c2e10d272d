"""What a sink holds of a run, by each program's own reader, or by the format's description."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from trackio.sqlite_storage import SQLiteStorage
from wandb.proto.wandb_internal_pb2 import Record

from orpo_mlx.run_folder.folder import SINKS

Points = dict[str, list[tuple[int, float]]]  # metric -> its (step, value), as often as they are


def tensorboard_points(output: Path) -> Points:
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={SCALARS: 0}).Reload()
    names = events.Tags()[SCALARS]
    # Files that were begun in one second are read in the order of their writers' process ids.
    return {name: sorted((e.step, e.value) for e in events.Scalars(name)) for name in names}


def trackio_points(output: Path) -> Points:
    name = f"{output.name}-{json.loads((output / SINKS).read_text())['id']}"
    points: Points = {}
    for row in SQLiteStorage.get_logs("orpo-mlx", name):
        for metric in row.keys() - {"step", "timestamp"}:
            points.setdefault(metric, []).append((row["step"], row[metric]))
    return points


def wandb_points(output: Path) -> Points:
    points: Points = {}
    for record in wandb_records(output):
        items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
        for metric in items.keys() - {"step", "_step", "_timestamp", "_runtime"}:
            points.setdefault(metric, []).append((items["step"], items[metric]))
    return points


def wandb_records(output: Path) -> Iterator[Record]:
    """By LevelDB's description of its log: 32 KiB blocks; crc, length and type before each part."""
    for file in sorted(output.glob("wandb/*run-*/*.wandb")):
        log = file.read_bytes()
        parts, at = b"", 7
        while at + 7 <= len(log):
            if at % 32768 > 32768 - 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", log, at)
            if kind == 0:
                break
            parts += log[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # FULL, LAST
                yield Record.FromString(parts)
                parts = b""
