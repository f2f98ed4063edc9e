"""Where to compute, and in which number format."""

import ctypes
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from utils.errors import InputError, StoppedError

DEVICES = "auto, cpu, cuda, cuda:N or mps"
COUNTS: dict[str, Callable[[], float]] = {
    "cpu": lambda: math.inf,
    "cuda": lambda: torch.cuda.device_count(),
    "mps": lambda: torch.mps.device_count(),
}


class DeviceError(InputError):
    """A device that is not there; one line."""


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one; ``cpu``, ``cuda``, ``cuda:N`` and ``mps`` insist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    wrong = DeviceError(f"--device must be {DEVICES}, got {name!r}")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise wrong from e
    if device.type not in COUNTS:
        raise wrong
    if (device.index or 0) >= (count := COUNTS[device.type]()):
        kind = device.type.upper()
        raise DeviceError(f"--device {name}: this machine has {count} {kind} devices; use cpu")
    return device


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def real_dtype(device: torch.device | str) -> torch.dtype:
    """The most precise type of number that the device has: float64, but on Apple's GPUs."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def double(x: Tensor) -> Tensor:
    """As float64; on the CPU where the device has none."""
    return x.to("cpu" if real_dtype(x.device) == torch.float32 else x.device).double()


# The words of the CPU's allocator, CUDA, MPS, cuBLAS, cuDNN, the reader of zip files, C++, and the
# loader of libraries, which also says "memory" of a table of its own (static TLS).
OUT_OF_MEMORY = re.compile(
    "allocate memory(?! in static TLS)|[Nn]ot enough memory|out of memory|ALLOC_FAILED"
    "|bad_alloc|bad allocation|failed to map segment"
)
# What oneDNN and cuBLAS say then, and seldom otherwise: it is quoted.
LIKELY = re.compile(
    "could not create a memory object|could not (create|execute) a primitive(?! desc)"
    "|CUBLAS_STATUS_NOT_INITIALIZED"
)
AMOUNT = re.compile("[Tt]ried to allocate ([0-9.]+ [A-Za-z]+)")
MAY_BE_MEMORY = (MemoryError, RuntimeError, OSError, ImportError)  # which of them is by chance


def out_of_memory(error: BaseException) -> str | None:
    """What to say if it is memory, of the machine or of the device, that could not be had."""
    if not isinstance(error, MAY_BE_MEMORY):
        return None
    words = str(error)
    if amount := AMOUNT.search(words):
        return f"out of memory, tried to allocate {amount[1]}"
    refused = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if refused or OUT_OF_MEMORY.search(words):
        return "out of memory"
    likely = LIKELY.search(words)
    return f"out of memory ({likely[0]})" if likely else None


@contextmanager
def memory_errors(advice: Callable[[], str]) -> Iterator[None]:
    """Turn lack of memory into a StoppedError: one line, which ends with the advice."""
    try:
        yield
    except MAY_BE_MEMORY as e:
        if line := out_of_memory(e):
            raise StoppedError(f"{line}: {advice()}") from e
        raise


# Of mallopt, from malloc.h of the GNU C library.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def tune(device: torch.device, deterministic: bool = False) -> None:
    """CUDA: TF32 and cuDNN autotuning. CPU: freed memory is kept; see keep_freed_memory.

    deterministic: kernels that give the same bits every time, in the whole process; cuDNN does not
    choose by timing then.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not deterministic
    else:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the GNU C library keep freed memory for the next step. Elsewhere it does nothing.

    By default malloc maps every tensor above 32 MB and unmaps it when freed, and the kernel clears
    the pages each time: a seventh of a step of the original preset, in float32.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_ARENA_MAX, 1)  # the thread of the backward pass frees what the main one took


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main_memory() -> float:
    """Bytes that the machine has; infinite where Python cannot tell, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def device_name(device: torch.device) -> str:
    """What computes: the GPU, or the CPU with its vector instructions and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
    return str(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes that the process has taken at most, of the GPU's memory or else of the main one.

    None where Python cannot tell, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def full_float32() -> Iterator[None]:
    """Within it, float32 matrices are multiplied as such, also where ``tune`` chose otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    abilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """``bf16``, ``fp32`` or ``auto``: bfloat16 where the hardware has it."""
    bf16 = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
