"""A run's metrics for Weights & Biases, online or (WANDB_MODE=offline) in the run folder.

Of this machine nothing is sent: neither host, paths, code, packages nor hardware.
"""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orpo_mlx.errors import OrpoError
from orpo_mlx.extras import import_extra
from orpo_mlx.run_folder.folder import WANDB
from orpo_mlx.sinks.record import PROJECT, Row, Sent, SinkRun, sent_rows

# The log of a run, as LevelDB writes one: blocks of records, each with a header of its checksum,
# length and type; a record that ends in this fragment is FULL or LAST.
HEADER_BYTES, BLOCK_BYTES, FILE_HEADER_BYTES = 7, 32_768, 7
FULL, LAST = 1, 4
LOG_TRIES, LOG_SECONDS = 500, 0.01
QUIET: dict[str, Any] = {
    "silent": True, "console": "off", "host": "-", "disable_git": True, "disable_code": True,
    "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": 30.0, "finish_timeout": 60.0,
    # A kill loses what is not in the log yet.
    "x_transaction_log_flush_interval": 1.0,
}  # fmt: skip


class WandbWriter:
    """Logs each row as a row of the run's history, with `step` as every metric's axis."""

    def __init__(self, run: SinkRun):
        wandb = import_extra("wandb", "wandb")
        _check_login(wandb)
        self.sent = _read_back(run)
        self._sink_run = run
        self._last: Row = {}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.output),
            config=run.settings,
            reinit="create_new",
            settings=wandb.Settings(**QUIET),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        self._run.log(dict(row))
        self._last = row

    def close(self) -> None:
        self._run.finish()
        # That returns before the end of the log is written, from which the next process reads.
        for _ in range(LOG_TRIES):
            if not (self._last and _logs(self._sink_run)):
                return
            if _read_back(self._sink_run).has(self._last):
                return
            time.sleep(LOG_SECONDS)


def open_wandb(run: SinkRun) -> WandbWriter:
    """The run at Weights & Biases; raises OrpoError if wandb is not installed."""
    return WandbWriter(run)


def _check_login(wandb: Any) -> None:
    """Raise OrpoError without a key for an online run: wandb would ask for one on the terminal."""
    online = wandb.setup().settings.mode not in ("offline", "disabled", "dryrun")
    if online and wandb.run is None and not wandb.login(prompt=False, verify=False):
        raise OrpoError("you are not logged in: run wandb login, or set WANDB_MODE=offline")


def _read_back(run: SinkRun) -> Sent:
    """What wandb's own logs in the run folder hold of this run, offline or not."""
    record_kind = import_extra("wandb.proto.wandb_internal_pb2", "wandb").Record
    return sent_rows(row for log in _logs(run) for row in _rows(log, record_kind))


def _logs(run: SinkRun) -> list[Path]:
    return sorted((run.output / WANDB).glob(f"*run-*/run-{run.id}.wandb"))


def _rows(log: Path, record_kind: Any) -> Iterator[Row]:
    for content in log_records(log.read_bytes()):
        record = record_kind.FromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
            if "step" in items:
                loss = "eval_loss" if "eval_loss" in items else "loss"
                yield {"step": int(items["step"]), loss: 0.0}


def log_records(log: bytes) -> Iterator[bytes]:
    """The records of a .wandb file; of one that a kill cut short, those that are whole."""
    position, record = FILE_HEADER_BYTES, b""
    while position + HEADER_BYTES <= len(log):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < HEADER_BYTES:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, position)
        start = position + HEADER_BYTES
        if kind == 0 or start + length > len(log):
            return
        record += log[start : start + length]
        position = start + length
        if kind in (FULL, LAST):
            yield record
            record = b""
