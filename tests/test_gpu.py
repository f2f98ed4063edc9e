"""What a GPU has to do, as far as it can be told by equal numbers: ``pytest -m gpu``.

Without a CUDA device those tests are skipped. Each also runs on the CPU, in the fast or in the slow
tier, so that what is meant for the GPU has run at least there.
"""

import warnings
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from faults import NETWORK, Process, folder, result, run
from test_distributed import curve
from test_synchronization import CPU, streamed

from sample import load
from utils.seeding import image_noise

baselines = pytest.importorskip("benchmarks.baselines", exc_type=ImportError)  # diffusers
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 12
FLAGS = [*NETWORK, "--epochs", "0", "--max-steps", str(STEPS)]
WAYS = {
    "eager": [],
    "deterministic": ["--deterministic"],
    "importance": ["--deterministic", "--importance-sampling"],
    "compiled": ["--deterministic", "--compile", "on"],
}
FP32 = 1e-4  # images in [-1, 1] of the CPU and the GPU, without TF32
TF32 = 8 / 255  # and with it, as sample.py draws
BF16 = 1e-3  # losses of the first steps against float32, in the mean


@pytest.fixture(
    params=[pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=GPU)]
)
def device(request) -> str:
    """Where the test runs."""
    return request.param


def little_memory(_: int) -> None:
    """A hook: a five-hundredth of the GPU."""
    torch.cuda.set_per_process_memory_fraction(0.002)


def trained(device: str, way: str, *flags: str) -> str:
    """The digest of a training that nobody disturbs."""
    with folder() as where:
        ended = run(where, [*FLAGS, *WAYS[way], "--device", device, *flags])
        assert ended.code == 0, ended.err
        return result(where)


def resumed(device: str, way: str) -> str:
    """The digest of one that is killed in step 7 and resumed."""
    argv = [*FLAGS, *WAYS[way], "--device", device, "--resume", "auto", "--save-minutes", "0"]
    with folder() as where:
        process = Process(where, argv)
        assert process.wait_for(7)
        process.kill()
        process.end()
        ended = run(where, argv)
        assert ended.code == 0, ended.err
        assert "Resuming after step" in ended.out
        return result(where)


PAIRS = [pytest.param("cpu", way, marks=pytest.mark.slow) for way in WAYS]
PAIRS += [pytest.param("cuda", way, marks=GPU) for way in WAYS]


@pytest.mark.parametrize(("device", "way"), PAIRS, indirect=["device"])
def test_two_trainings_and_a_killed_one_have_the_same_bits(device, way):
    first = trained(device, way)
    assert trained(device, way) == first
    assert resumed(device, way) == first
    assert trained(device, way, "--seed", "1") != first  # control


@contextmanager
def exact_float32():
    """No TF32, whatever ``tune`` chose."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a network that learnt a little, on the CPU."""
    where = tmp_path_factory.mktemp("trained")
    assert run(where, [*FLAGS[:-1], "60", "--lr", "3e-3"]).code == 0
    return where / "Logs_Checkpoints"


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_images_are_those_of_the_cpu(checkpoint, device, sampler):
    settings = {"sampler": sampler, "steps": 10, "guidance": 2.0}
    on_cpu = load("latest", checkpoint, "cpu").sample(12, seed=0, **settings)
    model = load("latest", checkpoint, device)
    with exact_float32():
        exact = model.sample(12, seed=0, batch_size=5, **settings)
    assert (exact - on_cpu).abs().max() < FP32
    assert (model.sample(12, seed=0, **settings) - on_cpu).abs().max() < TF32
    assert (model.sample(12, seed=1, **settings) - on_cpu).abs().max() > 0.5  # control


def test_the_noise_of_an_image_is_the_same_everywhere(device):
    here, there = (image_noise(3, range(5), (1, 6, 6), torch.device(d)) for d in ("cpu", device))
    for _ in range(4):
        drawn = there()
        assert drawn.device.type == device
        assert torch.equal(drawn.cpu(), here())
    assert not torch.equal(here(), here())  # control


def test_bf16_has_the_losses_of_float32(device):
    curves = []
    for flags in (["--precision", "fp32"], ["--precision", "bf16"], ["--seed", "1"]):
        with folder() as where:
            assert run(where, [*FLAGS, "--device", device, *flags]).code == 0
            curves.append(curve(where))
    exact, rounded, other = curves
    assert 0 < np.abs(rounded / exact - 1).mean() < BF16
    assert np.abs(other / exact - 1).mean() > BF16  # control


def test_too_little_memory_is_one_line(device, tmp_path):
    large = ["--base-channels", "64", "--patch-size", "1", "--batch-size", "100"]
    argv = [*FLAGS, *(large if device == "cuda" else ()), "--device", device]
    shortage = {"cpu": ("sabotage.no_memory", 3), "cuda": ("test_gpu.little_memory", 0)}
    ended = run(tmp_path, argv, *shortage[device])
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("train.py: stopped: out of memory")
    assert "lower --batch-size" in ended.err


def test_two_processes_share_a_device(device, tmp_path):
    alone, processes = trained(device, "deterministic"), []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        argv = [*FLAGS, "--deterministic", "--device", device]
        processes.append(Process(tmp_path / name, argv))
    assert [process.end().code for process in processes] == [0, 0]
    assert {result(tmp_path / name) for name in ("first", "second")} == {alone}


def synchronizations(train_for: Callable[[int], None], steps: int) -> int:
    """How often CUDA says that so many steps waited for it; tests/test_synchronization.py counts
    without a GPU."""
    cuda = torch.cuda.is_available()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            train_for(steps)
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("stream", [False, True])
def test_ten_more_steps_wait_no_more(device, stream):
    task = baselines.Task("mnist", "fp32", torch.device(device), tiny=True)
    images = task.images(64)
    train_for = baselines.loop(
        task, streamed(images.to(CPU)).to(images.images.device) if stream else images
    )
    train_for(2)
    few = synchronizations(train_for, 3)
    assert synchronizations(train_for, 13) == few
    reading = synchronizations(lambda _: torch.ones(1, device=device).item(), 1)
    assert (reading > 0) == (device == "cuda")  # control
