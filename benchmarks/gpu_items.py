"""What on_gpu.py measures: a function for each item, which returns what goes into its JSON.

Right: tests and exact resume. Fast: loops, batch sizes, sampling, start-up. Good: trainings whose
samples are scored. In a rehearsal the networks, sets and steps are tiny.
"""

import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure, sampling
from benchmarks.baselines import LOOPS, Task, sampling_model
from benchmarks.trials import CORES, Place
from config import Config
from data import Loading, load_splits
from data.digits import draw_digits
from diffusion import Sampler, generate
from evaluation.features import MAX_REAL, LabeledImages, cache_path, load_or_train
from evaluation.tasks import task_of
from training.setup import CACHE, CLASSIFIERS, data_options
from utils import checkpoint
from utils.devices import peak_memory, tune
from utils.runs import run_of

Found = dict[str, Any]
LOOP_NAMES = ("ours", "bare", "plain", "diffusers")
MODES = {"eager": "", "compiled": "default", "graphs": "reduce-overhead"}
BATCHES = (32, 64, 128, 256, 512, 1024)
MANY = 50_000  # samples
BATCH_OF_MANY = 1000
TINY = (  # of train.py
    "--base-channels 8 --emb-channels 16 --channel-multipliers 1 --attention-levels --heads 2 "
    "--patch-size 7 --image-size 28 --timesteps 50 --steps 2 --warmup-steps 2 --batch-size 20"
)


@dataclass(frozen=True)
class Setting:
    """Where to measure, and how much: rehearse: on tiny networks, for a few steps.

    data_root: of MNIST. out: folder of the JSON files and pictures; runs: of the trainings.
    """

    device: torch.device
    data_root: str
    out: Path
    runs: Path
    rehearse: bool

    def task(self, preset: str, precision: str = "bf16", **changes: Any) -> Task:
        """Of the benchmarks' loops."""
        precision = "fp32" if self.rehearse else precision  # which all CPUs have
        return Task(preset, precision, self.device, tiny=self.rehearse, **changes)

    def flags(self, *own: str) -> list[str]:
        """Of train.py: the images, the device, and in a rehearsal a tiny network on few digits."""
        device = ["--device", str(self.device)]
        if not self.rehearse:
            return [*own, *device, "--dataset", "mnist", "--data-root", self.data_root]
        return [*own, *device, "--dataset", "folder", "--data-root", few(self.runs), *TINY.split()]


@dataclass(frozen=True)
class Item:
    """seconds: what it takes, about; guessed for a large GPU, where none was measured yet."""

    seconds: float
    work: Callable[[Setting], Found]


def few(folder: Path) -> str:
    """A file of a few drawn digits, made where it is not there."""
    path = folder / "digits.npz"
    if not path.exists():
        parts = {"train": draw_digits(True, 600), "test": draw_digits(False, 300)}
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"x_{part}": images[:, 0].numpy() for part, (images, _) in parts.items()}
        arrays |= {f"y_{part}": labels.numpy() for part, (_, labels) in parts.items()}
        np.savez(path, **arrays)
    return str(path)


# Right.


def tests(setting: Setting) -> Found:
    """``pytest -m gpu``; in a rehearsal what of it runs on a CPU."""
    chosen = ["-m", "gpu"]
    if setting.rehearse:
        chosen = ["-m", "not slow", "-k", "cpu", "tests/test_gpu.py"]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-rfs", *chosen]
    ended = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True)
    lines = ended.stdout.splitlines()
    told = [line[:300] for line in lines if re.match("FAILED|ERROR|SKIPPED|E   ", line)]
    return {"exit_code": ended.returncode, "last": lines[-1] if lines else "", "told": told[:60]}


def prove_resume(flags: str, setting: Setting) -> Found:
    """``train.py --prove-resume``: a killed and resumed training equals an unbroken one."""
    own = setting.flags(*flags.split())
    command = [sys.executable, "train.py", "--prove-resume", *own]
    ended = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True)
    printed = (ended.stdout + ended.stderr).strip().splitlines()
    return {"exit_code": ended.returncode, "flags": flags, "last": printed[-1] if printed else ""}


# Fast.


def peaks(setting: Setting) -> Found:
    """FLOP/s of a large matrix product and convolution."""
    tune(setting.device)
    size = measure.SMALL if setting.rehearse else measure.peak_size(setting.device)
    kinds = ("fp32",) if setting.rehearse else ("fp32", "bf16")
    return {kind: measure.peaks(setting.device, measure.DTYPES[kind], size) for kind in kinds}


def speed(preset: str, mode: str, setting: Setting) -> Found:
    """Steps per second of every loop with bf16, in turn; memory; seconds to its first step."""
    tune(setting.device)
    task = setting.task(preset, compile=MODES[mode])
    return loops(task, LOOP_NAMES, setting) | {"preset": preset, "mode": mode}


def recipe(setting: Setting) -> Found:
    """The original's: its network in a plain loop in float32, with PyTorch's own settings."""
    return loops(setting.task("original", "fp32"), ("plain",), setting)


def batches(preset: str, setting: Setting) -> Found:
    """Of our loop, and of its network alone, at several batch sizes, not compiled."""
    tune(setting.device)
    found = {}
    for size in (2, 4) if setting.rehearse else BATCHES:
        task = setting.task(preset, batch_size=size)
        found[str(size)] = loops(task, ("ours", "bare"), setting)
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def loops(task: Task, names: Sequence[str], setting: Setting) -> Found:
    """Steps a second of these loops (median, low, high), and what else is known of them."""
    device, runs = task.device, {}
    found = {"batch": task.config.train.batch_size, "flops_of_a_step": flops_of_a_step(task)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for name in names:
        began = time.perf_counter()
        runs[name] = LOOPS[name](task)
        measure.seconds(lambda name=name: runs[name](2), device)
        found[f"{name}_first_seconds"] = time.perf_counter() - began
        if name == "ours":
            found["memory_bytes"] = peak_memory(device)
    once = measure.seconds(lambda: runs[names[0]](3), device) / 3
    steps, repeats = (2, 1) if setting.rehearse else (math.ceil(1 / once), 3)
    actions = {name: partial(run, steps) for name, run in runs.items()}
    for name, times in measure.interleaved(actions, repeats, device).items():
        found[name] = measure.spread([steps / seconds for seconds in times])
    return found


def flops_of_a_step(task: Task) -> int:
    """Of the passes of our network, which a compiled one would not show."""
    run = LOOPS["bare"](replace(task, compile=""))
    return measure.flops(lambda: run(1))


def first_step(setting: Setting) -> Found:
    """Seconds from typing to the first step."""
    return {
        name: measure.start_up(str(setting.device), setting.flags(*flags), repeats=1)
        for name, flags in (
            ("mnist", []),
            ("original", ["--preset", "original"]),
            ("original, compiled", ["--preset", "original", "--compile", "on"]),
        )
        if not (setting.rehearse and "compiled" in name)
    }


def samplers(setting: Setting) -> Found:
    """Images a second, by sampler and batch size, without guidance."""
    tune(setting.device)
    model, found = sampling_model(setting.task("mnist", "fp32")), {}
    for size in (8,) if setting.rehearse else (100, BATCH_OF_MANY):
        labels = torch.arange(size) % model.num_classes
        draw = partial(generate, model, indices=range(size), labels=labels, batch_size=size)
        ways = {
            name: partial(draw, sampler=Sampler(name, steps))
            for name, steps in sampling.STEPS.items()
        }
        for name, times in measure.interleaved(
            ways, 1 if setting.rehearse else 3, setting.device
        ).items():
            steps = sampling.STEPS[name]
            rates = measure.spread([size / seconds for seconds in times])
            found[f"{name}, {steps} steps, batch {size}"] = rates
    return found


# Good.


def trained(name: str, setting: Setting, flags: Sequence[str]) -> tuple[Path, Found]:
    """The last checkpoint of a training, which goes on where it was stopped; the time it took."""
    root, place = setting.runs / name, place_of(setting)
    known = checkpoint.find("latest", root) if list(root.glob("checkpoints/*/step_*.pt")) else None
    resume = ["--resume", "auto", "--device", str(setting.device)]
    place.run("train.py", "--run-root", str(root), *(resume if known else flags))
    path = checkpoint.find("latest", root)
    state = checkpoint.load(path)
    return path, {"step": state["step"], "seconds": state["seconds"], "flags": " ".join(flags)}


def place_of(setting: Setting) -> Place:
    """Where evaluate.py and sample.py find the images."""
    root = few(setting.runs) if setting.rehearse else setting.data_root
    return Place(setting.runs, root, CORES)


def good(preset: str, setting: Setting) -> Found:
    """A preset trained on MNIST for 30 epochs (``original`` at batches of 128) and scored."""
    name, short = f"good-{preset}", ["--epochs", "0", "--max-steps", "4"]
    own = ["--preset", preset] if preset != "mnist" else []
    path, found = trained(name, setting, setting.flags(*own, *(short if setting.rehearse else ())))
    place = place_of(setting)
    if setting.rehearse:
        store_extractor(path)
    scores = place.score(path, 300 if setting.rehearse else 5000, [])
    shutil.copy(place.draw(path, []), setting.out / f"{name}.png")
    return found | {"scores": scores["rows"]}


def store_extractor(path: Path) -> None:
    """A feature extractor of a few steps, where evaluate.py looks for that of this run's images."""
    root = run_of(path).logs.parent.parent
    config = Config.from_dict(checkpoint.load(path)["config"])
    sets = load_splits(data_options(config), None, Loading(root / CACHE, silent=True))
    task = task_of(sets[0])
    train, test = (LabeledImages.of(part, MAX_REAL) for part in sets)
    load_or_train(train, test, task, cache_path(root / CLASSIFIERS, sets[0], task), steps=5)


def many(setting: Setting) -> Found:
    """Seconds from typing to a file of 50,000 samples of the trained ``mnist``."""
    path = checkpoint.find("latest", setting.runs / "good-mnist")
    num = 40 if setting.rehearse else MANY
    folder = setting.runs / "many"
    flags = ["--num", str(num), "--batch-size", str(BATCH_OF_MANY), "--save", "npz", "--overwrite"]
    draw = ["--ckpt", str(path), "--device", str(setting.device), "--out", str(folder), *flags]
    began = time.perf_counter()
    place_of(setting).run("sample.py", *draw)
    return {"num": num, "seconds": time.perf_counter() - began}


def rate(batch: int, exponent: float, setting: Setting) -> Found:
    """``mnist``'s 30 epochs in larger batches at lr x (batch / 32)^exponent: the held-out loss."""
    lr = 7e-4 * (batch / 32) ** exponent
    own = ["--batch-size", str(batch), "--lr", f"{lr:.3g}"]
    if setting.rehearse:
        own += ["--epochs", "0", "--max-steps", "4"]
    path, found = trained(f"rate-{batch}-{exponent:g}", setting, setting.flags(*own[2:]) + own[:2])
    best = checkpoint.load(path)["best"]
    curve = (run_of(path).logs / "history.jsonl").read_text().splitlines()
    return found | {"batch": batch, "exponent": exponent, "best": best, "validations": len(curve)}


PRESETS = ("mnist", "original", "cifar10")
RATES = [(batch, exponent) for batch in (256, 1024) for exponent in (0.5, 0.0, 1.0)]
ITEMS: dict[str, Item] = {
    "right-tests": Item(240, tests),
    "right-resume-fp32": Item(50, partial(prove_resume, "--precision fp32")),
    "right-resume-bf16": Item(50, partial(prove_resume, "--precision bf16")),
    "right-resume-deterministic": Item(50, partial(prove_resume, "--deterministic")),
    "right-resume-compiled": Item(120, partial(prove_resume, "--compile on --deterministic")),
    "fast-peaks": Item(10, peaks),
    **{f"fast-{p}-eager": Item(25, partial(speed, p, "eager")) for p in PRESETS},
    "fast-recipe": Item(15, recipe),
    **{f"fast-{p}-compiled": Item(80, partial(speed, p, "compiled")) for p in PRESETS},
    **{f"fast-{p}-graphs": Item(80, partial(speed, p, "graphs")) for p in PRESETS},
    **{f"fast-{p}-batches": Item(30, partial(batches, p)) for p in PRESETS[:2]},
    "fast-first-step": Item(90, first_step),
    "fast-samplers": Item(20, samplers),
    "good-mnist": Item(330, partial(good, "mnist")),
    "good-mnist-many": Item(60, many),
    "good-original": Item(330, partial(good, "original")),
    **{f"good-rate-{b}-{e:g}": Item(70, partial(rate, b, e)) for b, e in RATES},
}
