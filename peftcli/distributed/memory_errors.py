"""Turn what libraries raise when memory cannot be allocated into one message: when, how much, and what to lower.

The system's own remedy, to kill the process (Linux's out-of-memory killer, a container's limit), leaves no time for a
message; a killed run goes on with `--resume`.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from peftcli.errors import OutOfResources, PeftCliError

_TEXTS = re.compile(
    r"out of memory"  # CUDA, MPS, and torch's OutOfMemoryError
    r"|DefaultCPUAllocator: (?:can't allocate|not enough) memory"
    r"|unable to (?:mmap|allocate|alloc)\b"  # torch's and numpy's own words
    r"|failed to map segment"  # of a library that is loaded
    r"|Cannot allocate memory"  # ENOMEM, in whatever library's text
    r"|std::bad_alloc|ALLOC_FAILED"
    r"|can't start new thread",  # a thread's stack
    re.IGNORECASE,
)
_BROKEN_DEVICE = re.compile(
    r"\b(?:CUDA|HIP|cuBLAS|CUBLAS|cuDNN|XPU) error\b|device-side assert|CUBLAS_STATUS", re.IGNORECASE
)
_ASKED_BYTES = re.compile(r"tried to allocate (\d+) bytes|mmap (\d+) bytes")
_ASKED_SIZE = re.compile(r"(?:tried to|unable to) allocate ([\d.]+ [KMGTPE]i?B)", re.IGNORECASE)

OTHER_MACHINE = "close other programs, raise the limit on memory, or use a machine with more"


class OutOfMemory(OutOfResources):
    """Memory could not be allocated, on the CPU or on a device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of any library says that memory could not be allocated."""
    if isinstance(error, PeftCliError):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | OSError | ImportError | SystemError) and bool(_TEXTS.search(str(error)))


def says_nothing_of_the_model(error: BaseException) -> bool:
    """Return whether an error that a trial met is no answer to it: no memory, or a device that computes no more.

    After a failed assertion on a CUDA device (an index out of range) every further call in this process fails.
    """
    return is_out_of_memory(error) or (isinstance(error, RuntimeError) and bool(_BROKEN_DEVICE.search(str(error))))


def out_of_memory(error: BaseException, when: str, remedy: str) -> OutOfMemory:
    """Return the error for the user.

    Args:
        error: of a library.
        when: such as `at step 3`.
        remedy: what to lower.
    """
    size = _asked(str(error))
    asked = f": {size} more were asked for" if size else ""
    return OutOfMemory(f"out of memory {when}{asked}", suggestion=remedy)


def release(error: BaseException | None) -> None:
    """Let go of what the functions held in which an error was raised: telling of it takes memory, too."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


@contextmanager
def memory_for(when: str | Callable[[], str], remedy: str = OTHER_MACHINE) -> Iterator[None]:
    """Translate a failed allocation within the context; also a decorator.

    Args:
        when: what was being done, such as `while the base model was loaded`.
        remedy: what to lower.

    Raises:
        OutOfMemory: in place of the library's error.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, when if isinstance(when, str) else when(), remedy) from error


def _asked(text: str) -> str | None:
    if found := _ASKED_BYTES.search(text):
        return f"{int(found.group(1) or found.group(2)) / 1e6:,.1f} MB"
    found = _ASKED_SIZE.search(text)
    return found.group(1) if found else None
