"""Which deaths count as a lack of memory, and what is changed then."""

import signal
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.supervisor import memory
from orpo_mlx.supervisor.faults import DEVICE_STATUS, Death, classify_death
from orpo_mlx.supervisor.memory import MemoryFacts, smaller_settings, why_memory

KILLED = classify_death(-signal.SIGKILL, "")
CRASHED = classify_death(-signal.SIGSEGV, "")


@pytest.mark.parametrize(
    ("death", "facts", "counts"),
    [
        (classify_death(DEVICE_STATUS, "Insufficient Memory"), {}, True),
        (classify_death(DEVICE_STATUS, "Impacting Interactivity"), {}, False),
        (KILLED, {"oom_kills": 1}, True),
        (KILLED, {"bare_signals": 1}, False),
        (KILLED, {"bare_signals": 2}, True),
        (CRASHED, {"bare_signals": 2}, False),
        (CRASHED, {"bare_signals": 1, "malloc_fails": True}, False),
        (CRASHED, {"bare_signals": 2, "malloc_fails": True}, True),
        (CRASHED, {"last_peak_bytes": 91, "limit_bytes": 100}, True),
        (CRASHED, {"last_peak_bytes": 90, "limit_bytes": 100}, False),
        (CRASHED, {"last_peak_bytes": 91, "limit_bytes": 0}, False),
        (classify_death(1, "MemoryError"), {"oom_kills": 1, "bare_signals": 2}, False),
    ],
)
def test_a_lack_of_memory_needs_a_sign(death: Death, facts: dict[str, Any], counts: bool) -> None:
    assert bool(why_memory(death, MemoryFacts(**facts))) == counts


def test_checkpointing_comes_first_then_the_next_smaller_divisor() -> None:
    now: dict[str, Any] = {
        "grad_checkpoint": False,
        "micro_batch_size": 12,
        "batch_size": 12,
        "rules": 3,
    }
    chosen = []
    while (changes := smaller_settings(**now))[0]:
        now |= changes[0]
        chosen.append((changes[0], "of a step are rounded" in changes[1]))
    sizes = [6, 4, 3, 2, 1]
    assert chosen == [
        ({"grad_checkpoint": True}, False),
        *(({"micro_batch_size": size}, True) for size in sizes),
    ]
    assert "--max-seq-length" in changes[1]


@pytest.mark.parametrize("rules", [1, 2])
def test_runs_whose_steps_depend_on_micro_batches_keep_them(rules: int) -> None:
    now: dict[str, Any] = {"micro_batch_size": 4, "batch_size": 4, "rules": rules}
    assert smaller_settings(grad_checkpoint=False, **now)[0] == {"grad_checkpoint": True}
    changes, text = smaller_settings(grad_checkpoint=True, **now)
    assert not changes
    assert "these are not made smaller" in text


def test_where_no_micro_batch_was_begun_the_base_is_too_large() -> None:
    changes, text = smaller_settings(
        grad_checkpoint=True, micro_batch_size=0, batch_size=8, rules=3
    )
    assert not changes
    assert text.startswith("The base with --grad-checkpoint took too much memory.")


def test_the_kernels_count_is_read_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"vmstat": "pgfault 9\noom_kill 3\n", "none": "pgfault 9\n"}.items():
        (tmp_path / name).write_text(text)
    assert memory._count(tmp_path / "vmstat", "oom_kill") == 3
    assert memory._count(tmp_path / "none", "oom_kill") == 0
    assert memory._count(tmp_path / "missing", "oom_kill") == 0
    events, control = tmp_path / "a" / "memory.events", tmp_path / "memory" / "b"
    events.parent.mkdir()
    control.mkdir(parents=True)
    events.write_text("low 0\noom_kill 2\n")
    (control / "memory.oom_control").write_text("under_oom 0\noom_kill 5\n")
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/b\n0::/a\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", own)
    monkeypatch.setattr(memory, "_VMSTAT", tmp_path / "vmstat")
    assert memory.oom_kills() == 10
