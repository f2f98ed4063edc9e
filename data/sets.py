"""The two kinds of image sets, which differ in where their images are.

A set has ``name``, ``image_shape`` (C, H, W), ``num_classes``, ``source`` (a line that says where
it came from), ``fingerprint`` (SHA-256), ``len()``, ``to(device)`` and ``batches(indices, size)``.
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

MOST_WORKERS = 8
Share = tuple[int, int]  # (rank, world): of every batch the rank-th of so many nearly equal parts
ALL: Share = (0, 1)


@dataclass(frozen=True)
class TensorSet:
    """A small set as one uint8 tensor (N, C, H, W): no worker processes, no work per image."""

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
        """The set in the memory of the device; moved once, then no batch has to be."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(
        self, indices: Tensor, batch_size: int, share: Share = ALL
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """x_0 (B, C, H, W) float32 in [-1, 1] and y (B,) int64, in the order of the indices."""
        for batch in parts(indices.to(self.images.device), batch_size, share):
            yield normalize(self.images[batch]), self.labels[batch]


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
        self, indices: Tensor, batch_size: int, share: Share = ALL
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """x_0 (B, C, H, W) float32 in [-1, 1] and y (B,) int64, in the order of the indices."""
        loader = DataLoader(
            self.images,
            batch_sampler=[part.tolist() for part in parts(indices, batch_size, share)],
            collate_fn=self.collate,
            num_workers=workers(),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or each loader would draw from the global one
            worker_init_fn=ignore_interrupts,
        )
        try:
            for images, labels in loader:
                yield (
                    normalize(images.to(self.device, non_blocking=True)),
                    labels.to(self.device, non_blocking=True),
                )
        except (OSError, RuntimeError) as e:
            reason = str(e).strip().splitlines()[-1:]  # of the worker's trace, its end
            raise ReadError(f"cannot read images of {self.source}: {''.join(reason)}") from e

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,); B is 0 where a last batch is too small to share."""
        images = torch.empty(len(samples), *self.image_shape, dtype=torch.uint8)
        for row, (image, _) in zip(images, samples, strict=True):
            row.copy_(image)
        return images, torch.tensor([label for _, label in samples], dtype=torch.int64)


ImageSet = TensorSet | StreamSet


def parts(indices: Tensor, batch_size: int, share: Share) -> list[Tensor]:
    """Of every batch the part that belongs to this rank; the first ranks have the larger ones."""
    rank, world = share
    return [batch.tensor_split(world)[rank] for batch in indices.split(batch_size)]


@contextmanager
def deaths_of_workers() -> Iterator[None]:
    """Within it the death of a worker process is a ReadError, wherever the program then is.

    torch tells of it from a signal handler, in the middle of whatever is being computed.
    """
    try:
        yield
    except RuntimeError as e:
        if not str(e).startswith("DataLoader worker"):
            raise
        raise ReadError(f"cannot read images: {str(e).strip().splitlines()[0]}") from e


def workers() -> int:
    """One a core, shared among the processes of this machine."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(cores, MOST_WORKERS))


def ignore_interrupts(_worker: int) -> None:
    """Ctrl-C, and torchrun's SIGTERM, go to every process, but it is the main one that decides."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """After an error that nobody caught: Python would ask them by SIGTERM, and wait for ever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def normalize(images: Tensor) -> Tensor:
    """0 ... 255 -> [-1, 1], ends included."""
    return images.float() / 127.5 - 1
