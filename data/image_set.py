"""Data sets of images with one interface: in memory, or streamed from disk.

A data set has ``name``, ``image_shape`` (C, H, W), ``class_names`` (none: no labels), ``source`` (a
line: where it came from), ``notes`` (lines: what was read and left out), ``fingerprint`` (SHA-256),
``labels`` (N,) int64, ``len()``, ``to(device)``, ``stopped_by(asked)``, ``batches(indices, size)``.
"""

import hashlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from data.errors import ReadError
from data.threads import Threads, never, result_of
from utils.devices import cores
from utils.distributed import share
from utils.images import normalize
from utils.rendezvous import local_ranks

MAX_THREADS = 16
AHEAD = 4  # batches that are decoded while the device computes
MAX_DAMAGED = 10  # files that were intact at the start; then the run stops
Part = tuple[int, int]  # (rank, world): which share of every batch
CPU = torch.device("cpu")
WHOLE: Part = (0, 1)


@dataclass(frozen=True)
class TensorSet:
    """A small set as one uint8 tensor (N, C, H, W): no decoding while training."""

    name: str
    source: str
    class_names: tuple[str, ...]
    images: Tensor
    labels: Tensor
    notes: tuple[str, ...] = ()
    of_files: str = ""  # the fingerprint where it is of the files that the images were read from
    digests: Tensor | None = None  # SHA-256 of those files, (N, 32) uint8

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of images and labels, or of the files."""
        if self.of_files:
            return self.of_files
        sha = hashlib.sha256(self.images.cpu().contiguous().numpy())
        sha.update(self.labels.cpu().numpy())
        return sha.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Self:
        """The set in the memory of the device; moved once, so that no batch has to be."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def stopped_by(self, _asked: Callable[[], bool]) -> Self:
        """The same set: nothing of it has to arrive."""
        return self

    def batches(
        self, indices: Tensor, batch_size: int, part: Part = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """x_0 (B, C, H, W) float32 in [-1, 1] and y (B,) int64, in the order of the indices."""
        for batch in indices.to(self.images.device).split(batch_size):
            rows = share(batch, *part)
            yield normalize(self.images[rows]), self.labels[rows]


class Damage:
    """Files that could be read at the start and cannot be any more; shared by all threads."""

    def __init__(self, most: int = MAX_DAMAGED) -> None:
        self.most, self.names, self.lock = most, set(), threading.Lock()

    def note(self, name: str, reason: str) -> None:
        """Say so, once for each file. Raises ReadError for the last one that is bearable."""
        with self.lock:
            if name in self.names and len(self.names) < self.most:
                return
            self.names.add(name)
        line = f"cannot read {name} any more: {reason}"
        if len(self.names) >= self.most:
            raise ReadError(f"{line}; that is file {self.most}: is the disk in order?")
        print(f"warning: {line}; the next image takes its place", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class StreamSet:
    """A large set, read and decoded by threads while the device computes.

    Threads, not processes: decoders and resizing release the interpreter's lock, nothing passes
    through shared memory, and no worker has to be watched.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    read: Callable[[str, bytes], Tensor]  # uint8 (C, H, W) of a name and digest; raises ReadError
    files: Sequence[str]
    labels: Tensor
    image_shape: tuple[int, int, int]
    fingerprint: str
    digests: Tensor
    notes: tuple[str, ...] = ()
    device: torch.device = CPU
    stopped: Callable[[], bool] = never
    damage: Damage = field(default_factory=Damage)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def to(self, device: torch.device) -> Self:
        """The set whose batches arrive on the device."""
        return replace(self, device=device)

    def stopped_by(self, asked: Callable[[], bool]) -> Self:
        """The set whose batches end with a WaitError, where a file does not arrive and this says
        that a stop was asked for.
        """
        return replace(self, stopped=asked)

    def batches(
        self, indices: Tensor, batch_size: int, part: Part = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """x_0 (B, C, H, W) float32 in [-1, 1] and y (B,) int64, in the order of the indices.

        An image that cannot be read is replaced by the next in the set that can. Raises ReadError
        where there is none, and from the tenth damaged file on.
        """
        pool, waiting = Threads(num_threads()), deque()
        try:
            for batch in indices.split(batch_size):
                rows = share(batch, *part).tolist()
                waiting.append([(i, pool.submit(self.image, i)) for i in rows])
                if len(waiting) > AHEAD:
                    yield self.collate(waiting.popleft())
            while waiting:
                yield self.collate(waiting.popleft())
        finally:
            pool.end()

    def image(self, i: int) -> tuple[Tensor, int]:
        """Image i, or the next one that can be read, and the index of that."""
        for j in range(i, i + self.damage.most + 1):
            j %= len(self)
            try:
                return self.read(self.files[j], bytes(self.digests[j].tolist())), j
            except ReadError as e:
                self.damage.note(self.files[j], str(e))
        raise ReadError(f"cannot read images of {self.source}: {self.files[i]} and those after it")

    def collate(self, decoded: list[tuple[int, Future]]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) on the device; B is 0 where a rank has none.

        decoded: the indices, and the images with the indices of what took their place.
        """
        pin = self.device.type == "cuda"
        images = torch.empty(len(decoded), *self.image_shape, dtype=torch.uint8, pin_memory=pin)
        rows = []
        for slot, (i, future) in zip(images, decoded, strict=True):
            image, j = result_of(future, self.files[i], self.stopped)
            slot.copy_(image)
            rows.append(j)
        labels = self.labels[torch.tensor(rows, dtype=torch.int64)]
        labels = labels.pin_memory() if pin else labels
        images, labels = (part.to(self.device, non_blocking=True) for part in (images, labels))
        return normalize(images), labels


ImageSet = TensorSet | StreamSet


def num_threads() -> int:
    """One decoding thread per core, shared among the ranks of this machine."""
    return max(1, min(cores() // local_ranks(), MAX_THREADS))
