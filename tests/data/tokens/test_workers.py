"""Tasks worked on in other processes: in order, with their errors, without the caller's main."""

import operator
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpo_mlx.data.tokens.workers import WAITING, map_in_order
from orpo_mlx.errors import OrpoError
from tests.alarm import HANG_SECONDS

pytestmark = pytest.mark.touchy

ROOT = Path(__file__).parents[3]


def scaled(state: int, task: int) -> tuple[int, int]:
    if task == 13:
        raise OrpoError("thirteen")
    if task == 14:
        os._exit(3)
    os.write(1, b"this must not meet the results")
    return state * task, os.getpid()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(processes: int) -> None:
    results = list(map_in_order(scaled, 10, range(12), processes))
    assert [value for value, _ in results] == [10 * task for task in range(12)]
    others = {process for _, process in results} - {os.getpid()}
    assert bool(others) == (processes > 1) and len(others) < processes


def test_an_error_of_a_task_is_raised_here_in_its_turn() -> None:
    results = map_in_order(scaled, 1, [1, 13, 2], 2)
    assert next(results)[0] == 1
    with pytest.raises(OrpoError, match="thirteen"):
        next(results)


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(OrpoError, match="ended with status 3.*--num-proc 1"):
        list(map_in_order(scaled, 1, [14], 2))


def test_tasks_are_read_as_they_are_worked_on() -> None:
    started = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            if number not in (13, 14):
                started.append(number)
                yield number

    results = map_in_order(scaled, 1, tasks(), 2)
    next(results)
    assert len(started) <= 2 * WAITING + 2
    results.close()


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from orpo_mlx.data.tokens.workers import map_in_order\n"
        "import operator\n"
        "print(list(map_in_order(operator.add, 1, range(4), 2)))\n"
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (done.stdout, done.stderr) == ("[1, 2, 3, 4]\n", "")


@pytest.mark.parametrize("left", ["answer", "task"])
def test_a_process_whose_parent_has_died_ends_without_a_word(left: str) -> None:
    """An answer that nobody reads any more, and a task that was cut off."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "orpo_mlx.data.tokens.workers"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT) as process:
        assert process.stdin and process.stdout and process.stderr
        message = pickle.dumps((operator.mul, "x" * 1_000_000)) + pickle.dumps(7)
        process.stdout.close()
        process.stdin.write(message if left == "answer" else message[:1000])
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(HANG_SECONDS) == 0
