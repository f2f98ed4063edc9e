"""How throughput.py measures: interleaved repeats, peaks of the machine, the parts of a step."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import train
from diffusion import GaussianDiffusion
from models import PowerEMA
from training.optim import Muon
from utils.devices import cores
from utils.runs import git_revision

ROOT = Path(__file__).parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """What it takes once, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - began


def interleaved(
    actions: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every action, in turn, ``repeats`` times, so that all share the machine's state.

    Each runs once before, unmeasured.
    """
    for action in actions.values():
        action()
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, action in actions.items():
            times[name].append(seconds(action, device))
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def flops(action: Callable[[], object]) -> int:
    """Multiplications and additions of the matrix products and convolutions in it."""
    return sum(flops_by_operator(action).values())


def flops_by_operator(action: Callable[[], object]) -> dict[str, int]:
    """The same, by the name of the operator."""
    with FlopCounterMode(display=False) as counter:
        action()
    counts = counter.get_flop_counts().get("Global", {})
    return {str(operator): count for operator, count in counts.items()}


SMALL = (256, 2)


def peak_size(device: torch.device) -> tuple[int, int]:
    """Rows of the matrices and images of the convolution of ``peaks``: a GPU needs larger ones."""
    return (8192, 1024) if device.type == "cuda" else (2048, 64)


def peaks(
    device: torch.device, dtype: torch.dtype, size: tuple[int, int] | None = None
) -> dict[str, float]:
    """The best FLOP/s of a large matrix product, and of a large convolution with its gradient."""
    n, images = size or peak_size(device)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    conv = nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=dtype)
    conv = conv.to(memory_format=torch.channels_last)
    x = torch.randn(images, 256, 16, 16, device=device, dtype=dtype, requires_grad=True)
    x = x.to(memory_format=torch.channels_last)
    actions = {"matmul": lambda: a @ b, "convolution": lambda: conv(x).sum().backward()}
    work = {name: flops(action) for name, action in actions.items()}
    times = interleaved(actions, 8, device)
    return {name: work[name] / min(times[name]) for name in actions}


@contextmanager
def timed_parts(device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent within each part of train_step, while ``with`` lasts."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: object, **options: object) -> Any:
            results = []
            spent[name] += seconds(lambda: results.append(function(*arguments, **options)), device)
            return results[0]

        return wrapper

    places = {
        "sample t and noise": (train, "sample_inputs"),
        "forward": (GaussianDiffusion, "losses"),
        "backward": (torch.Tensor, "backward"),
        "clip": (nn.utils, "clip_grad_norm_"),
        "optimizer": (torch.optim.AdamW, "step"),
        "Muon": (Muon, "step"),
        "EMA": (PowerEMA, "update_parameters"),
        "whole step": (train, "train_step"),
    }
    with ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            function = timed(name, getattr(owner, attribute))
            stack.enter_context(patch.object(owner, attribute, function))
        yield spent


def peak_memory(loop: str, preset: str, precision: str, device: str, *flags: str) -> int:
    """Bytes at most in use while a process of its own trains two steps."""
    code = (
        "import sys; from benchmarks.measure import train_two_steps; train_two_steps(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, loop, preset, precision, device, *flags]
    return int(output(command).splitlines()[-1])


def train_two_steps(
    loop: str, preset: str, precision: str, device: str, checkpointing: str = ""
) -> None:
    """What peak_memory starts."""
    from benchmarks.baselines import LOOPS, Task

    on = torch.device(device)
    LOOPS[loop](Task(preset, precision, on, bool(checkpointing)))(2)
    print(torch.cuda.max_memory_allocated(on) if on.type == "cuda" else resident())


def resident() -> int:
    """Bytes of memory this process had at most. Linux; getrusage counts the parent's too."""
    if sys.platform != "linux":
        sys.exit("memory is measured on Linux alone")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def output(command: list[str], where: Path = ROOT) -> str:
    """What a program prints. Raises CalledProcessError where it fails."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=where, env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    return result.stdout


def start_up(device: str, train_flags: list[str], repeats: int = 3) -> dict[str, dict[str, float]]:
    """Seconds from typing to the first finished step; what of it is the import of torch."""
    wait = "train.torch.cuda.synchronize()" if device.startswith("cuda") else "pass"
    first_step = (
        "import os, sys, train; original = train.train_step\n"
        "def once(*arguments):\n"
        "    original(*arguments)\n"
        f"    {wait}\n"
        "    os._exit(0)\n"
        "train.train_step = once; train.main(sys.argv[1:])"
    )
    flags = ["--device", device]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        actions = {
            "first step": lambda: output(
                [sys.executable, "-c", first_step, *flags, *train_flags], where
            ),
            "import torch": lambda: output([sys.executable, "-c", "import torch"]),
        }
        times = interleaved(actions, repeats, torch.device("cpu"))
    return {name: spread(values) for name, values in times.items()}


def hardware(device: torch.device) -> dict[str, str | int]:
    """What the numbers depend on."""
    import diffusers

    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "bf16": "avx512_bf16" in flags or "amx_bf16" in flags,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "commit": git_revision(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
