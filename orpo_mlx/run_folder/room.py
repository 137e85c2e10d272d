"""Whether the disk has room for a run's checkpoints: before the start, and before each of them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.errors import DiskError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import size_text
from orpo_mlx.run_folder.checkpoints import checkpoints_of, last_checkpoint, what_is_kept

# Besides the tensors: the config, the checksums, and what a disk keeps for itself.
SPARE_BYTES = 65_536


class DiskNeed(NamedTuple):
    """What a run is to write from now on."""

    checkpoint_bytes: int
    final_bytes: int  # the adapter, after a full fine-tune the model too
    checkpoints: int  # that are still to be written
    keep: int | None  # of them, the last ones; None: all
    best: bool = False  # whether the best is kept besides


def report_disk_need(output: Path, need: DiskNeed, report: Callback) -> None:
    """Report what the run takes of the disk, as a warning if that is more than is free.

    Raises OrpoError if not even one checkpoint has room.
    """
    one, free = need.checkpoint_bytes, _free_bytes(output)
    if one + SPARE_BYTES > free:
        raise DiskError(
            f"--output {output}: a checkpoint takes {size_text(one)}, but only {size_text(free)} "
            "are free. Make room, or name an --output on another disk."
        )
    total = one * _most_at_once(output, need) + need.final_bytes
    last = f"the last {need.keep}{' and the best' * need.best}"
    kept = "all are kept" if need.keep is None else f"{last} are kept"
    text = (
        f"A checkpoint takes {size_text(one)}, {kept} (--keep-checkpoints): the run takes up to "
        f"{size_text(total)} more of the disk, {size_text(free)} are free."
    )
    if total + SPARE_BYTES > free:
        report(
            Notice(f"{text} Make room, or keep fewer: it ends where one has no room.", warning=True)
        )
    else:
        report(Notice(text))


def has_room(output: Path, size_bytes: int) -> bool:
    """Whether so many bytes can be written now."""
    return size_bytes + SPARE_BYTES <= _free_bytes(output)


def require_room(output: Path, what: str, size_bytes: int) -> None:
    """Raise OrpoError if what comes next has no room."""
    if not has_room(output, size_bytes):
        raise DiskError(
            f"The disk has no room for {what}: it takes {size_text(size_bytes)}, but only "
            f"{size_text(_free_bytes(output))} are free."
        )


@contextmanager
def explain_full_disk(output: Path) -> Iterator[None]:
    """A block in which a run trains: where the disk ends it, the error has what is kept of it and
    what to do."""
    try:
        yield
    except DiskError as error:
        resumable = last_checkpoint(output) is not None
        go_on = "continue with --resume" if resumable else "begin again with --overwrite"
        raise DiskError(f"{error} {what_is_kept(output)} Make room, then {go_on}.") from error


def _most_at_once(output: Path, need: DiskNeed) -> int:
    """How many checkpoints the disk holds besides those of now; the oldest goes after a new one."""
    if need.keep is None:
        return need.checkpoints
    kept = need.keep + need.best
    return min(need.checkpoints, max(kept + 1 - len(checkpoints_of(output)), 1))


def _free_bytes(output: Path) -> int:
    """On the disk of a folder, which is there."""
    return shutil.disk_usage(output).free
