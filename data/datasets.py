"""Image sets behind one interface. To add one, enter it in DATASETS.

A set has ``name``, ``image_shape`` (C, H, W), ``num_classes``, ``source`` (a line that says where
it came from), ``fingerprint`` (SHA-256), ``len()``, ``to(device)`` and ``batches(indices, size)``.
"""

import hashlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2

from data.digits import draw_digits
from data.download import TIMEOUT, one_at_a_time, socket_timeout
from data.errors import DataError, DataNotFound, ReadError
from data.idx import FASHION_MNIST, KMNIST, MNIST, IdxFiles, read_set

STREAM_SIZE = 64  # pixels a side, of sets whose images come in all sizes
WORKERS = 2
LARGEST_SET = 16 * 2**30  # bytes of a padded set
HELD_OUT_EVERY = 10  # of a folder, which has no test set of its own


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

    def batches(self, indices: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """x_0 (B, C, H, W) float32 in [-1, 1] and y (B,) int64, in the order of the indices."""
        for batch in indices.to(self.images.device).split(batch_size):
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

    def batches(self, indices: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """x_0 (B, C, H, W) float32 in [-1, 1] and y (B,) int64, in the order of the indices."""
        loader = DataLoader(
            self.images,
            batch_sampler=[batch.tolist() for batch in indices.split(batch_size)],
            num_workers=WORKERS,
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


ImageSet = TensorSet | StreamSet


def ignore_interrupts(_worker: int) -> None:
    """Ctrl-C goes to every process of a terminal, but it is the main one that decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def normalize(images: Tensor) -> Tensor:
    """0 ... 255 -> [-1, 1], ends included."""
    return images.float() / 127.5 - 1


def load(
    dataset: str, data_root: str, image_size: int, train: bool = True, download: bool = True
) -> ImageSet:
    """Open a set of the registry; image_size 0 is its own. Raises DataError, DataNotFound."""
    opened = DATASETS[dataset](Path(data_root), image_size or STREAM_SIZE, train, download)
    opened = replace(opened, name=dataset)
    return pad(opened, image_size) if isinstance(opened, TensorSet) and image_size else opened


def pad(small: TensorSet, image_size: int) -> TensorSet:
    """Background on all sides up to image_size. Raises DataError for less than the set's own."""
    own = small.image_shape[1]
    if image_size < own:
        raise DataError(
            f"{small.name} has images of {own} x {own}, which are padded but not shrunk: "
            f"--image-size must be 0 or at least {own}, got {image_size}"
        )
    if len(small) * small.image_shape[0] * image_size**2 > LARGEST_SET:
        raise DataError(f"{small.name} padded to {image_size} pixels would take too much memory")
    before = (image_size - own) // 2
    after = image_size - own - before
    return replace(small, images=F.pad(small.images, (before, after, before, after)))


def idx(files: IdxFiles) -> Callable[..., TensorSet]:
    """A set in MNIST's format."""

    def open_set(root: Path, _size: int, train: bool, download: bool) -> TensorSet:
        images, labels = read_set(files, root, train, download)
        return TensorSet("", f"{root / files.folder}, verified", 10, images, labels)

    return open_set


def cifar(kind: type[datasets.CIFAR10]) -> Callable[..., TensorSet]:
    """CIFAR-10 or -100, which torchvision verifies."""

    def open_set(root: Path, _size: int, train: bool, download: bool) -> TensorSet:
        opened = open_torchvision(kind, root, download, train=train)
        images = torch.from_numpy(opened.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(opened.targets)
        return TensorSet("", f"{root}, verified", len(opened.classes), images, labels)

    return open_set


def flowers102(root: Path, size: int, train: bool, download: bool) -> StreamSet:
    """Oxford Flowers; its large part, named test, is what is trained on."""
    opened = open_torchvision(
        datasets.Flowers102,
        root,
        download,
        split="test" if train else "val",
        transform=square(size),
    )
    files = [str(path.name) for path in opened._image_files]
    return stream(opened, files, 102, f"{root}/flowers-102", size)


def folder(root: Path, size: int, train: bool, _download: bool) -> StreamSet:
    """Images in one folder per class; every tenth is held out."""
    try:
        opened = datasets.ImageFolder(root, transform=square(size))
    except FileNotFoundError as e:
        raise DataNotFound(
            f"no images in {root}: --dataset folder takes a --data-root with one folder of images "
            "per class"
        ) from e
    held_out = torch.arange(len(opened)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    indices = (~held_out if train else held_out).nonzero().flatten().tolist()
    if not indices:
        raise DataError(f"{root} has too few images: one in {HELD_OUT_EVERY} is held out")
    files = [str(Path(opened.samples[i][0]).relative_to(root)) for i in indices]
    return stream(Subset(opened, indices), files, len(opened.classes), str(root), size)


def stream(images: Dataset, files: list[str], classes: int, source: str, size: int) -> StreamSet:
    """A StreamSet of square colour images, known by the names of its files."""
    fingerprint = hashlib.sha256("\n".join(files).encode()).hexdigest()
    cpu = torch.device("cpu")
    return StreamSet("", source, classes, images, fingerprint, (3, size, size), cpu)


def square(size: int) -> v2.Transform:
    """The middle of an image: the shorter side resized, on uint8 so that no value overshoots."""
    return v2.Compose([v2.ToImage(), v2.Resize(size, antialias=True), v2.CenterCrop(size)])


def digits(_root: Path, _size: int, train: bool, _download: bool) -> TensorSet:
    """Drawn by this program."""
    images, labels = draw_digits(train)
    return TensorSet("", "drawn by this program, not MNIST", 10, images, labels)


def open_torchvision(kind: type, root: Path, download: bool, **arguments: object) -> Dataset:
    """A torchvision set, from disk or else downloaded, with its errors as ours in one line."""
    try:
        return kind(root, download=False, **arguments)
    except ImportError as e:
        raise DataError(f"{kind.__name__} needs {e.name}: pip install {e.name}") from e
    except RuntimeError as e:
        missing = e
    try:
        if download:
            with one_at_a_time(root), socket_timeout(TIMEOUT):
                return kind(root, download=True, **arguments)  # looks at what is there first
    except (OSError, RuntimeError) as e:
        missing = e
    raise DataNotFound(
        f"{kind.__name__} is not in {root} and could not be downloaded "
        f"({' '.join(str(missing).split())}): put it there as torchvision has it, point "
        "--data-root at it, or use --dataset digits, which needs no files"
    ) from missing


DATASETS: dict[str, Callable[[Path, int, bool, bool], ImageSet]] = {
    "mnist": idx(MNIST),
    "fashion-mnist": idx(FASHION_MNIST),
    "kmnist": idx(KMNIST),
    "cifar10": cifar(datasets.CIFAR10),
    "cifar100": cifar(datasets.CIFAR100),
    "flowers102": flowers102,
    "folder": folder,
    "digits": digits,
}
