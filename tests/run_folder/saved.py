"""Tiny checkpoints, and what may happen to a file of one."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from orpo_mlx.run_folder.checksums import SUMS
from orpo_mlx.training.checkpoint import Checkpoint, save_checkpoint

FILES = (
    "adapters.safetensors",
    "adapter_config.json",
    "weights.safetensors",
    "optimizer.safetensors",
    "state.json",
)


def save(output: Path, *steps: int) -> list[Path]:
    """Checkpoints of two numbers each."""
    tensors = {"a": mx.array([1.5, 2.5])}
    return [
        save_checkpoint(
            output, Checkpoint(step, tensors, {"step": mx.array(step)}, "abc", "spans"), tensors, {}
        )
        for step in steps
    ]


def flip(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x20
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 512)


def append_space(file: Path) -> None:
    """What no reader of JSON minds."""
    file.write_bytes(file.read_bytes() + b"\n")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def unlink(file: Path) -> None:
    file.unlink()


DAMAGES: dict[Callable[[Path], None], str] = {
    flip: "its content has changed",
    cut: "{less} bytes instead of {size}",
    append: "{more} bytes instead of {size}",
    empty: "0 bytes instead of {size}",
    unlink: "missing",
}


def problem_of(file: Path, damage: Callable[[Path], None]) -> str:
    """What is to be reported of a file that will be damaged so."""
    if file.name == SUMS and damage is not unlink:
        return f"{SUMS}: its content has changed"
    size = file.stat().st_size
    return f"{file.name}: {DAMAGES[damage].format(size=size, less=size - 1, more=size + 512)}"
