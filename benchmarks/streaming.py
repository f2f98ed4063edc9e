"""Images from files against the same images in memory; how long many large photos take to begin.

python -m benchmarks.streaming          # writes benchmarks/results/streaming.json; ten minutes
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import measure
from benchmarks.baselines import Loop, Task, loop
from data import DataOptions, ImageSet, Loading, load_splits
from data.image_set import TensorSet
from utils.images import to_uint8

SIDE, STORED = 64, 256  # pixels a side in training and on the disk
COUNT = 2000  # images of the throughput
PHOTOS, PHOTO_SIZE = 600, (3000, 4000)  # 12 megapixels
OWN = Path(__file__).parent / "results"
FIRST_STEP = (
    "--dataset folder --image-size 64 --max-steps 1 --base-channels 8 --batch-size 8 --timesteps 50"
)


def write_pictures(root: Path) -> None:
    """JPEGs of two classes, as noisy as those of a camera."""
    for i in range(COUNT):
        folder = root / str(i % 2)
        folder.mkdir(exist_ok=True)
        photo((STORED, STORED), seed=i).save(folder / f"{i:04d}.jpg", quality=90)


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Structure of every scale and the noise of a sensor."""
    random, (height, width) = np.random.default_rng(seed), size
    image = np.full((height, width, 3), 128, np.float32)
    for level in (16, 32, 64, 256):
        coarse = random.integers(0, 256, (level, level, 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image += (np.asarray(fine, np.float32) - 128) * 8 / level
    noise = random.integers(-5, 6, image.shape, dtype=np.int8)
    return Image.fromarray((image + noise).clip(0, 255).astype(np.uint8))


def loops(root: Path, device: torch.device) -> dict[str, Loop]:
    """The mnist preset's loop at 64 x 64: decoded once, decoded anew, and never from files."""
    write_pictures(root)
    options = DataOptions("folder", str(root), image_size=(SIDE, SIDE))
    once, anew = (
        load_splits(options, loading=Loading(in_memory=most))[0].to(device) for most in (None, 0)
    )
    x_0, y = next(once.batches(torch.arange(len(once)), len(once)))
    memory = TensorSet("", "memory", once.class_names, to_uint8(x_0), y)
    task = Task("mnist", "auto", device, image_channels=3, image_size=SIDE)
    sets: dict[str, ImageSet] = {"folder": once, "streamed": anew, "memory": memory}
    return {name: loop(task, image_set) for name, image_set in sets.items()}


def rates(device: torch.device, batches: int, repeats: int) -> dict[str, Any]:
    """Images per second of each loop, interleaved."""
    with tempfile.TemporaryDirectory() as folder:
        runs = loops(Path(folder), device)
        actions = {name: lambda run=run: run(batches) for name, run in runs.items()}
        times = measure.interleaved(actions, repeats, device)
    images = batches * Task("mnist", "auto", device).config.train.batch_size
    return {name: measure.spread([images / t for t in own]) for name, own in times.items()}


def first_step(photos: int, size: tuple[int, int]) -> dict[str, float]:
    """Seconds from typing to the end of the first step and its validation; peak memory.

    The first start decodes, the second finds the images cached.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        root.mkdir()
        kinds = [photo(size, seed) for seed in range(4)]  # making each anew would take an hour
        for i in range(photos):
            kinds[i % 4].save(root / f"{i:04d}.jpg", quality=90 - i % 3, comment=str(i))
        found = {"megabytes of files": sum(p.stat().st_size for p in root.iterdir()) / 1e6}
        command = [sys.executable, "train.py", *FIRST_STEP.split(), "--data-root", str(root)]
        for start in ("first start", "second start"):
            began = time.monotonic()
            process = subprocess.Popen([*command, "--run-root", folder], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit("train.py failed")
            found[f"{start}, seconds"] = time.monotonic() - began
            found[f"{start}, peak MB"] = usage.ru_maxrss / 1e3
    return found


def main() -> None:
    """Measure the parts, and write each as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal, of no meaning")
    parser.add_argument("--part", choices=("images/s", "photos"), help="this one alone [both]")
    parser.add_argument("--out", type=Path, default=OWN)
    flags = parser.parse_args()
    if not hasattr(os, "wait4"):
        parser.error("it measures memory as Windows does not")
    device = torch.device("cpu")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "images/s": lambda: rates(device, *((2, 1) if flags.quick else (50, 3))),
        "photos": lambda: first_step(*((4, (300, 400)) if flags.quick else (PHOTOS, PHOTO_SIZE))),
    }
    path = flags.out / "streaming.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in [flags.part] if flags.part else parts:
        results[name] = {"hardware": measure.hardware(device), **parts[name]()}
        measure.write(path, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
