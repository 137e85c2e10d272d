"""What the death of a child was, and whether it is tried again."""

import signal

import pytest

from orpo_mlx.supervisor.device_errors import is_device_failure
from orpo_mlx.supervisor.faults import DEVICE_STATUS, classify_death

# As MLX, numpy, C++ and the systems write it.
NO_MEMORY = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    "[metal::malloc] Attempting to allocate 9e10 bytes which is greater than the maximum",
    "[malloc] Unable to allocate 123 bytes.",
    "[malloc_or_wait] Unable to allocate 123 bytes.",
    "Unable to allocate 74.5 GiB for an array with shape (10000000000,)",
    "std::bad_alloc",
    "cudaMallocManaged(&data, size) failed: out of memory",
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS])
def test_signals_of_crashes_are_tried_again(number: signal.Signals) -> None:
    death = classify_death(-number, "")
    assert (death.retried, death.bare_signal, death.no_memory) == (True, number, False)
    assert death.text == f"was ended by {number.name}"


def test_a_failure_of_the_device_and_silence_are_tried_again() -> None:
    assert classify_death(DEVICE_STATUS, "[METAL] Impacting Interactivity").retried
    hung = classify_death(-signal.SIGKILL, "", hung_seconds=1200)
    assert hung == ("reported nothing for 20 minutes and was ended", True, False, 0, False)


@pytest.mark.parametrize("status", [0, 1, 2, 3, -signal.SIGILL, -signal.SIGUSR1, -50])
def test_other_ends_are_not_tried_again(status: int) -> None:
    death = classify_death(
        status, "Traceback (most recent call last):\nMemoryError: std::bad_alloc"
    )
    assert not death.retried and not death.asked_for


@pytest.mark.parametrize("status", [130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP])
def test_what_somebody_asked_for_is_not_tried_again(status: int) -> None:
    death = classify_death(status, "")
    assert not death.retried and death.asked_for


@pytest.mark.parametrize("text", NO_MEMORY)
@pytest.mark.parametrize("status", [DEVICE_STATUS, -signal.SIGABRT])
def test_a_lack_of_memory_is_read_from_the_message(text: str, status: int) -> None:
    death = classify_death(status, f"libc++abi: terminating due to uncaught exception: {text}")
    assert (death.retried, death.no_memory, death.bare_signal) == (True, True, 0)


@pytest.mark.parametrize("text", NO_MEMORY)
def test_a_device_without_memory_has_failed_not_the_program(text: str) -> None:
    assert is_device_failure(RuntimeError(text))
    assert not is_device_failure(ValueError(text))


def test_other_errors_are_the_programs() -> None:
    assert is_device_failure(MemoryError())
    assert is_device_failure(RuntimeError("[METAL] Command buffer execution failed: Hang"))
    assert not is_device_failure(RuntimeError("[matmul] Last dimension of first input"))
