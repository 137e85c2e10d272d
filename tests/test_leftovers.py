"""Commands that are killed at any moment: what they leave, and what the next command does to it."""

import json
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx import files, leftovers
from orpo_mlx.config.data import DataConvertConfig, DataSplitConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.tokens import cache
from orpo_mlx.events import Event, Notice
from orpo_mlx.files import recover, replacing
from orpo_mlx.review.pairs.write import convert_pairs, split_pairs
from tests import tiny

pytestmark = pytest.mark.touchy

# The children touch no thread of their parent's.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

MOMENTS = ("os.rename", "exchange", "after exchange", "os.remove", "shutil.rmtree", "os.rmdir")


def killed_at(number: int, action: Callable[[], Any]) -> bool:
    """Run `action` in a child that kills itself at its `number`-th moment; whether it came to that.

    A moment is just before a file or a folder is renamed, swapped or removed.
    """
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        seen: Counter[str] = Counter()

        def moment(name: str, arguments: Any = ()) -> None:
            seen[name] += name in MOMENTS
            if name in MOMENTS and seen.total() == number:
                os.kill(os.getpid(), signal.SIGKILL)

        true = files._exchange

        def exchange(one: Path, other: Path) -> bool:
            moment("exchange")
            done = true(one, other)
            moment("after exchange")
            return done

        files._exchange = exchange
        sys.addaudithook(moment)
        action()
    finally:
        os._exit(0)


def kills(action: Callable[[], Any], *, most: int = 60) -> Iterator[int]:
    """The numbers of the moments of an action, one after another, each once it was killed there."""
    for number in range(1, most):
        if not killed_at(number, action):
            assert number > 1
            return
        yield number
    raise AssertionError("more moments than there can be")


def write(target: Path, text: str) -> None:
    with replacing(target) as made:
        made.mkdir()
        for name in ("a", "b"):
            (made / name).write_text(text)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def recovered(target: Path) -> list[str]:
    """What the next command with that target reports."""
    reported: list[Event] = []
    recover(target, reported.append)
    return [event.text for event in reported if isinstance(event, Notice)]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_killed_replacement_leaves_the_old_or_the_new_folder_complete(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system cannot swap folders, after the next command at the latest."""
    if not swaps:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target, ends = tmp_path / "out", []
    write(target, "old")
    for _ in kills(lambda: write(target, "new")):
        assert target.exists() or not swaps
        [left] = hidden(tmp_path) or [""]
        reported = recovered(target)
        assert len(reported) >= bool(left)
        assert all(str(target) in text or left in text for text in reported)
        ends.append({(target / name).read_text() for name in ("a", "b")})
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        write(target, "old")
    assert ends[0] == {"old"}
    assert {"new"} in ends
    assert all(len(end) == 1 for end in ends)


def test_folders_are_swapped_where_the_system_can(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write(tmp_path / name, name)
    (tmp_path / "link").symlink_to("other")
    assert files._exchange(tmp_path / "one", tmp_path / "link")
    assert (tmp_path / "one").is_symlink()
    assert (tmp_path / "link" / "a").read_text() == "one"
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "one", tmp_path / "missing")


def splits(folder: Path) -> dict[str, set[str]]:
    """The prompts of each file of a split that is there."""
    return {
        file.stem: {str(pair.prompt) for pair in load_pairs(file)}
        for file in folder.glob("*.jsonl")
    }


def test_a_killed_split_never_trains_on_what_it_holds_out(tmp_path: Path) -> None:
    data = tiny.save_pairs(tmp_path / "pairs.jsonl", 60)

    def split(seed: int) -> None:
        split_pairs(
            DataSplitConfig(
                data=[str(data)],
                output=tmp_path / "out",
                seed=seed,
                valid_fraction=0.3,
                test_fraction=0.3,
                overwrite=True,
            )
        )

    split(1)
    whole = [splits(tmp_path / "out")]
    split(2)
    whole.append(splits(tmp_path / "out"))
    mixed = whole[0]["train"] & (whole[1]["test"] | whole[1]["valid"])
    assert mixed, "the two splits must differ, or the test would show nothing"
    states = []
    for _ in kills(partial(split, 1)):
        state = splits(tmp_path / "out")
        assert "train" not in state or state in whole
        states.append("train" in state)
        split(2)
        assert hidden(tmp_path) == []
    assert {True, False} == set(states)


def test_what_a_killed_command_left_is_removed_and_reported_by_the_next(tmp_path: Path) -> None:
    data = tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    config = DataConvertConfig(data=[str(data)], output=tmp_path / "[x] out.jsonl")
    assert killed_at(1, lambda: convert_pairs(config))
    [left] = hidden(tmp_path)
    reported: list[Event] = []
    convert_pairs(config, reported.append)
    assert hidden(tmp_path) == []
    [text] = [e.text for e in reported if isinstance(e, Notice) and "killed command" in e.text]
    assert text.startswith(f"Removed {tmp_path / left}, which a killed command left (process ")


def signed(target: Path, **changes: Any) -> Path:
    """A folder that a writer is making `target` in."""
    folder = target.parent / f".{target.name}.abcd1234"
    folder.mkdir()
    (folder / leftovers.WRITER).write_text(json.dumps(leftovers._signature() | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, False),  # this very process
        ({"pid": 1}, True),  # its number was given to another one since
        ({"process_started": "another boot 12"}, True),
        ({"pid": 2**22 + 1}, True),  # above every number that Linux gives
        ({"pid": 2**22 + 1, "host": "elsewhere"}, False),  # who knows?
        ({"pid": "x"}, True),
    ],
)
def test_only_what_a_dead_process_of_this_machine_left_goes(
    changes: dict[str, Any], left: bool, tmp_path: Path
) -> None:
    folder = signed(tmp_path / "out", **changes)
    assert leftovers.is_busy(folder) == (not left)
    assert bool(recovered(tmp_path / "out")) == left
    assert folder.exists() == (not left)


def test_what_an_earlier_version_left_goes_after_a_day(tmp_path: Path) -> None:
    foreign, own = (tmp_path / f".out.{name}" for name in ("foreign1", "own23456"))
    for folder, name in ((foreign, "mine.txt"), (own, "replaced")):
        folder.mkdir()
        (folder / name).touch()
    assert recovered(tmp_path / "out") == []
    day_before = time.time() - 25 * 3600
    for path in (foreign / "mine.txt", own / "replaced", foreign, own):
        os.utime(path, (day_before, day_before))
    first, _ = recovered(tmp_path / "out")
    assert first.startswith(f"{tmp_path / 'out'} is back: a command that replaced it was killed")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.foreign1", "out"]


def test_writers_are_recognized_without_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, by what ps prints."""
    program = tmp_path / "ps"
    program.write_text(f'#!/bin/sh\n[ "$4" = {os.getpid()} ] && echo "Tue Dec  1 04:00:00 2026"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    true = Path.exists
    monkeypatch.setattr(Path, "exists", lambda p: str(p) != "/proc/self/stat" and true(p))
    assert leftovers._start_of(os.getpid()) == "Tue Dec  1 04:00:00 2026"
    assert leftovers._start_of(1) is None
    assert platform.node() in leftovers._host()


def test_names_as_long_as_a_disk_allows_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("é" * 127)
    write(target, "new")
    assert (target / "a").read_text() == "new"


def test_the_token_cache_loses_what_dead_processes_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path))
    (tmp_path / "tokens").mkdir()
    dead = signed(tmp_path / "tokens" / "0123", pid=2**22 + 1)
    alive = signed(tmp_path / "tokens" / "4567")
    cache.prune()
    assert (dead.exists(), alive.exists()) == (False, True)
