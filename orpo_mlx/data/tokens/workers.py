"""Work on a stream of tasks in several processes, results in order. Knows nothing of the work.

This process works too, from the start on. The others are new processes (no fork: MLX and tokenizers
have threads) and import nothing of the caller's own script, so that a script needs no
`if __name__ == "__main__"`.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from typing import Any, BinaryIO

from orpo_mlx.errors import OrpoError

# Results a process that may wait for an earlier one; a process that starts takes a few seconds.
WAITING = 16


def map_in_order(
    work: Callable[[Any, Any], Any],  # a function of a module: (state, task) -> result
    state: Any,
    tasks: Iterable[Any],
    processes: int,
) -> Iterator[Any]:
    """`work(state, task)` of every task, in order, in this process and `processes` - 1 others.

    State, tasks and results of the others are pickled; a few tasks a process are under way at a
    time. Raises what `work` raises, and OrpoError if a process dies.
    """
    others = processes - 1
    if others < 1:
        yield from (work(state, task) for task in tasks)
        return
    with ExitStack() as stack:
        idle: SimpleQueue[_Process] = SimpleQueue()
        for _ in range(others):
            idle.put(stack.enter_context(_process(work, state)))
        pool = stack.enter_context(ThreadPoolExecutor(others))

        def futures() -> Iterator[Future[Any]]:
            sent: list[Future[Any]] = []
            for task in tasks:
                sent = [future for future in sent if not future.done()]
                if len(sent) < 2 * others:
                    sent.append(pool.submit(_call, idle, task))
                    yield sent[-1]
                else:
                    done: Future[Any] = Future()
                    done.set_result(work(state, task))
                    yield done

        yield from _in_order(futures(), WAITING * processes)


def map_in_threads(work: Callable[[Any], Any], tasks: Iterable[Any], threads: int) -> Iterator[Any]:
    """`work(task)` of every task, in order, several at a time: for work that leaves Python.

    Three results a thread may wait, so that none waits for one that is late.
    """
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order((pool.submit(work, task) for task in tasks), 3 * threads)


def _in_order(futures: Iterable[Future[Any]], most: int) -> Iterator[Any]:
    """The results, while at most so many are waited for; the rest is cancelled at an early end."""
    pending: deque[Future[Any]] = deque()
    try:
        for future in futures:
            pending.append(future)
            while pending and (pending[0].done() or len(pending) > most):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


class _Process:
    """One started process and its two pipes."""

    def __init__(self, process: subprocess.Popen[bytes]):
        assert process.stdin and process.stdout
        self._process, self._to, self._from = process, process.stdin, process.stdout

    def send(self, message: Any) -> None:
        try:
            pickle.dump(message, self._to, protocol=pickle.HIGHEST_PROTOCOL)
            self._to.flush()
        except BrokenPipeError:
            raise self._died() from None

    def receive(self) -> Any:
        try:
            result, error = pickle.load(self._from)
        except (EOFError, pickle.UnpicklingError):
            raise self._died() from None
        if error is not None:
            raise error
        return result

    def _died(self) -> OrpoError:
        status = self._process.wait()
        why = " (out of memory?)" if status == -signal.SIGKILL else ""
        return OrpoError(
            f"A process that read the data ended with status {status}{why}. Try --num-proc 1."
        )


@contextmanager
def _process(work: Callable[[Any, Any], Any], state: Any) -> Iterator[_Process]:
    command = [sys.executable, "-m", "orpo_mlx.data.tokens.workers"]
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"PYTHONPATH": paths}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
        try:
            worker = _Process(process)
            worker.send((work, state))
            yield worker
        finally:
            process.kill()


def _call(idle: "SimpleQueue[_Process]", task: Any) -> Any:
    worker = idle.get()
    try:
        worker.send(task)
        return worker.receive()
    finally:
        idle.put(worker)


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    """The other process: answers tasks until the pipe is closed."""
    work = state = None
    while True:
        try:
            if work is None:
                work, state = pickle.load(source)
            task = pickle.load(source)
        except (EOFError, pickle.UnpicklingError):  # cut off where the parent has died
            return
        try:
            answer: tuple[Any, BaseException | None] = (work(state, task), None)
        except Exception as error:
            answer = (None, error)
        pickle.dump(answer, sink, protocol=pickle.HIGHEST_PROTOCOL)
        sink.flush()


if __name__ == "__main__":
    # Ctrl-C goes to the whole group; the parent decides. What is printed must not meet the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(BrokenPipeError):  # the parent has ended: nobody waits for an answer
        _serve(sys.stdin.buffer, answers)
    os._exit(0)  # nor for what the buffer still holds
