"""Data sets of images with one interface: in memory, or streamed from disk.

A data set has ``name``, ``image_shape`` (C, H, W), ``num_classes``, ``source`` (a line: where it
came from), ``fingerprint`` (SHA-256), ``len()``, ``to(device)`` and ``batches(indices, size)``.
"""

import atexit
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.errors import ReadError
from utils.distributed import share
from utils.images import normalize

MAX_WORKERS = 8
Part = tuple[int, int]  # (rank, world): which share of every batch
WHOLE: Part = (0, 1)


@dataclass(frozen=True)
class TensorSet:
    """A small set as one uint8 tensor (N, C, H, W): no worker processes, no decoding per image."""

    name: str
    source: str
    num_classes: int
    images: Tensor
    labels: Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of images and labels."""
        sha = hashlib.sha256(self.images.cpu().contiguous().numpy())
        sha.update(self.labels.cpu().numpy())
        return sha.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Self:
        """The set in the memory of the device; moved once, so that no batch has to be."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(
        self, indices: Tensor, batch_size: int, part: Part = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """x_0 (B, C, H, W) float32 in [-1, 1] and y (B,) int64, in the order of the indices."""
        for batch in indices.to(self.images.device).split(batch_size):
            rows = share(batch, *part)
            yield normalize(self.images[rows]), self.labels[rows]


@dataclass(frozen=True)
class StreamSet:
    """A large set, read and decoded by worker processes while the device computes."""

    name: str
    source: str
    num_classes: int
    images: Dataset  # of (uint8 (C, H, W), label)
    fingerprint: str
    image_shape: tuple[int, int, int]
    device: torch.device

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Self:
        """The set whose batches arrive on the device."""
        return replace(self, device=device)

    def batches(
        self, indices: Tensor, batch_size: int, part: Part = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """x_0 (B, C, H, W) float32 in [-1, 1] and y (B,) int64, in the order of the indices.

        Raises ReadError where an image cannot be read.
        """
        loader = DataLoader(
            self.images,
            batch_sampler=[share(batch, *part).tolist() for batch in indices.split(batch_size)],
            collate_fn=self.collate,
            num_workers=num_workers(),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without it, each loader draws from the global one
            worker_init_fn=ignore_interrupts,
        )
        try:
            for images, labels in loader:
                yield (
                    normalize(images.to(self.device, non_blocking=True)),
                    labels.to(self.device, non_blocking=True),
                )
        except (OSError, RuntimeError) as e:
            reason = str(e).strip().splitlines()[-1:]  # the last line of the worker's traceback
            cause = e.with_traceback(None)  # it would keep the loader and its workers alive
            raise ReadError(f"cannot read images of {self.source}: {''.join(reason)}") from cause

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,); B is 0 if the last batch leaves this rank none.

        torch's default_collate raises IndexError for an empty batch.
        """
        images = torch.empty(len(samples), *self.image_shape, dtype=torch.uint8)
        for slot, (image, _) in zip(images, samples, strict=True):
            slot.copy_(image)
        return images, torch.tensor([label for _, label in samples], dtype=torch.int64)


ImageSet = TensorSet | StreamSet


@contextmanager
def deaths_of_workers() -> Iterator[None]:
    """Turn the RuntimeError that a dying DataLoader worker raises into a ReadError.

    torch raises it from a signal handler, in the middle of whatever is being computed.
    """
    try:
        yield
    except RuntimeError as e:
        if not str(e).startswith("DataLoader worker"):
            raise
        raise ReadError(f"cannot read images: {str(e).strip().splitlines()[0]}") from e


def num_workers() -> int:
    """One worker process per core, shared among the ranks of this machine."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(cores, MAX_WORKERS))


def ignore_interrupts(_worker: int) -> None:
    """Ctrl-C and torchrun's SIGTERM reach every process; the main process alone acts on them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Kill the workers that an uncaught error leaves: they ignore the SIGTERM that Python sends."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
