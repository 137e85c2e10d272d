"""Which errors are a device that failed or has no memory left: in a new process work may go on."""

import re

# MLX on Metal, on CUDA and on the CPU; numpy; C++.
_NO_MEMORY = re.compile(
    r"Unable to allocate|\[metal::malloc\]|std::bad_alloc|Insufficient Memory"
    r"|kIOGPUCommandBufferCallbackErrorOutOfMemory|out of memory",
    re.IGNORECASE,
)
_METAL = re.compile(r"kIOGPU|METAL")


def is_out_of_memory(text: str) -> bool:
    """Whether what a process printed, or an error's text, names a lack of memory."""
    return bool(_NO_MEMORY.search(text))


def is_metal_failure(text: str) -> bool:
    """Whether an error's text is Metal's: work that it ended."""
    return bool(_METAL.search(text))


def is_device_failure(error: BaseException) -> bool:
    """Whether an error comes from the device or from a lack of memory, not from the program."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (is_metal_failure(text) or is_out_of_memory(text))
