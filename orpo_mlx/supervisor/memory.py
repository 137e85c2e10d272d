"""Whether a child died for its memory, and which settings take less of it."""

import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.supervisor.faults import Death

NEAR_LIMIT = 0.9
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_VMSTAT = Path("/proc/vmstat")
WHAT_ELSE = (
    "Give shorter pairs (--max-seq-length), adapt fewer blocks (--num-layers), train on a base of "
    "fewer bits (orpo-mlx convert), or close other programs; then continue with --resume, or begin "
    "again with --overwrite."
)


class MemoryFacts(NamedTuple):
    """What is known of the memory around a death."""

    oom_kills: int = 0  # by the kernel, while the child ran
    last_peak_bytes: float = 0  # of MLX's arrays, in the child's last step
    limit_bytes: int = 0  # what these may take; 0 where that is not known
    bare_signals: int = 0  # in a row without a checkpoint between, this one included
    malloc_fails: bool = False  # where memory is limited by number, MLX's CPU code ends by SIGSEGV


def why_memory(death: Death, facts: MemoryFacts) -> str:
    """Why a death counts as one for lack of memory, as a clause; "" if it does not."""
    if not death.retried:
        return ""
    if death.no_memory:
        return "it reported that memory was lacking"
    if facts.oom_kills:
        return "the system ended it for its memory"
    if facts.limit_bytes and facts.last_peak_bytes > NEAR_LIMIT * facts.limit_bytes:
        return (
            f"its last step took {facts.last_peak_bytes / 1e9:.1f} of the "
            f"{facts.limit_bytes / 1e9:.1f} GB that it may take"
        )
    silent = death.bare_signal == signal.SIGKILL
    if facts.malloc_fails:
        silent |= death.bare_signal in (signal.SIGSEGV, signal.SIGABRT)
    if silent and facts.bare_signals > 1:
        return "it was ended twice without a word and without a checkpoint between"
    return ""


def smaller_settings(
    *,
    grad_checkpoint: bool,
    micro_batch_size: int,  # 0 where it is not known
    batch_size: int,
    rules: int,
) -> tuple[dict[str, int], str]:
    """Settings that take less memory, and a sentence on what they change.

    Without settings the sentence says why there are none.
    """
    if not grad_checkpoint:
        text = (
            "From now on with --grad-checkpoint: the pairs, steps and masks are the same, sums "
            "over shared prefixes may be rounded in another order."
        )
        return {"grad_checkpoint": True}, text
    if rules < 3:
        return {}, (
            "It was begun by an earlier version, under rules by which the pairs of a step depend "
            f"on the size of its micro-batches: these are not made smaller. {WHAT_ELSE}"
        )
    if micro_batch_size < 2:
        size = "Micro-batches of one pair" if micro_batch_size else "The base"
        return {}, f"{size} with --grad-checkpoint took too much memory. {WHAT_ELSE}"
    smaller = max(n for n in range(1, micro_batch_size) if batch_size % n == 0)
    text = (
        f"From now on with --micro-batch-size {smaller} (it was {micro_batch_size}): the sums of "
        "a step are rounded in another order, and with --dropout the masks are others."
    )
    return {"micro_batch_size": smaller}, text


def oom_kills() -> int:
    """How many processes the kernel has ended for lack of memory, as far as it reports that."""
    counted = [_count(_VMSTAT, "oom_kill")]
    counted += [_count(file, "oom_kill") for file in _cgroup_files()]
    return sum(counted)


def _cgroup_files() -> list[Path]:
    """Where the memory cgroups of this process count, of either version."""
    files = []
    with suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                files.append(_CGROUPS / path.lstrip("/") / "memory.events")
            elif controllers == "memory":
                files.append(_CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control")
    return files


def _count(file: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def malloc_may_fail() -> bool:
    """Whether memory is limited by number here, so that it is refused, not taken away."""
    limits = (resource.RLIMIT_DATA, resource.RLIMIT_AS)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return True
    with suppress(OSError):
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    return False
