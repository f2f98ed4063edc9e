"""What a lack of memory is, in the words of those who say it."""

import errno
import os

import pytest

from utils.devices import memory_errors, out_of_memory
from utils.errors import StoppedError

SHORT = [
    MemoryError(),
    MemoryError("Unable to allocate 8.00 GiB for an array"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "file"),
    OSError("libx.so: cannot map zero-fill pages: Cannot allocate memory"),
    ImportError("libx.so: failed to map segment from shared object"),
    ImportError("libx.so: cannot create shared object descriptor: Cannot allocate memory"),
    *map(
        RuntimeError,
        [
            "std::bad_alloc",
            "bad allocation",
            "could not create a primitive",
            "could not execute a primitive",
            "could not create a memory object",
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 ...",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 512 bytes. Error code 12 (Cannot allocate memory)",
        ],
    ),
]
OTHER = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file"),
    ImportError("libx.so: cannot allocate memory in static TLS block"),
    ImportError("No module named 'tensorboard'"),
    RuntimeError("could not create a primitive descriptor for a convolution"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", SHORT, ids=repr)
def test_a_lack_of_memory_is_one_line_with_advice(error):
    line = r"^out of memory.*: lower it$"
    with pytest.raises(StoppedError, match=line), memory_errors(lambda: "lower it"):
        raise error


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_what_is_none_stays_what_it_is(error):
    """The control."""
    assert out_of_memory(error) is None
    with pytest.raises(type(error)) as raised, memory_errors(lambda: "lower it"):
        raise error
    assert raised.value is error


def test_words_that_mean_little_are_quoted_and_the_amount_is_said():
    assert out_of_memory(RuntimeError("could not create a primitive")) == (
        "out of memory (could not create a primitive)"
    )
    line = out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0"))
    assert line == "out of memory, tried to allocate 20.00 MiB"
