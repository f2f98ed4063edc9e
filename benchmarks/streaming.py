"""Images from a folder against the same images in memory: does the loop wait for its data?"""

import time
from pathlib import Path

import torch
from PIL import Image

from benchmarks.baselines import Loop, Task, loop
from data import ImageSet, load
from data.image_set import TensorSet
from utils.images import to_uint8

SIDE, STORED = 64, 256  # pixels a side in training and on the disk
COUNT = 2000  # images: an epoch long enough that starting its workers, half a second, is little


def write_pictures(root: Path) -> None:
    """JPEGs of two classes, as noisy as those of a camera."""
    random = torch.Generator().manual_seed(0)
    for i in range(COUNT):
        coarse = torch.rand(1, 3, 16, 16, generator=random)
        image = torch.nn.functional.interpolate(coarse, size=STORED, mode="bicubic")[0]
        image = image + 0.05 * torch.randn(image.shape, generator=random)
        pixels = (image.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        folder = root / str(i % 2)
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:04d}.jpg", quality=90)


def loops(root: Path, device: torch.device, batches: int) -> dict[str, Loop]:
    """An epoch of the mnist preset's loop at 64 x 64, from the folder and from memory."""
    write_pictures(root)
    size = Task("mnist", "auto", device).config.train.batch_size
    folder = load("folder", str(root), SIDE).to(device)
    order = torch.arange(batches * size)
    images = [to_uint8(x) for x, _ in folder.batches(order, size)]
    labels = torch.arange(batches * size, device=device) % 2
    memory = TensorSet("", "memory", 2, torch.cat(images), labels)
    sets: dict[str, ImageSet] = {"folder": folder, "memory": memory}
    task = Task("mnist", "auto", device, image_channels=3, image_size=SIDE)
    return {name: loop(task, image_set) for name, image_set in sets.items()}


def decoding_rate(root: Path) -> float:
    """Images per second that one process reads, alone."""
    folder = load("folder", str(root), SIDE)
    began = time.perf_counter()
    for i in range(100):
        folder.images[i]
    return 100 / (time.perf_counter() - began)
