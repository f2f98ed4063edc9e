"""The registry of image sets. A new one is a function ``open_...`` and an entry in DATASETS.

torchvision is imported only by the functions that need it, as that takes a second.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from data.digits import draw_digits
from data.download import TIMEOUT, check_online, download_lock, socket_timeout
from data.errors import DataError, DataNotFound
from data.idx import FASHION_MNIST, KMNIST, MNIST, IdxFiles, read_set, verification
from data.image_files import ImageFiles
from data.image_set import ImageSet, StreamSet, TensorSet

DEFAULT_SIZE = 64  # pixels a side, of sets whose images come in all sizes
MAX_PADDED_BYTES = 16 * 2**30
HELD_OUT_EVERY = 10  # of a folder, which has no test set of its own


def load(
    dataset: str, data_root: str, image_size: int, train: bool = True, download: bool = True
) -> ImageSet:
    """The training or the test set of this name; image_size is in pixels, 0 for the set's own.

    Raises DataNotFound where it is neither on disk nor downloadable, else DataError.
    """
    if dataset not in DATASETS:
        raise DataError(f"no data set {dataset!r}: this release has {', '.join(DATASETS)}")
    opened = DATASETS[dataset](Path(data_root), image_size or DEFAULT_SIZE, train, download)
    opened = replace(opened, name=dataset)
    return pad(opened, image_size) if isinstance(opened, TensorSet) and image_size else opened


def load_splits(
    dataset: str, data_root: str, image_size: int, fingerprint: str | None = None
) -> tuple[ImageSet, ImageSet]:
    """The training and the test set. DataError unless the training images have the fingerprint."""
    train_set, test_set = (load(dataset, data_root, image_size, part) for part in (True, False))
    if fingerprint and train_set.fingerprint != fingerprint:
        raise DataError(f"the images ({train_set.source}) are not those this run was trained on")
    return train_set, test_set


def pad(small: TensorSet, image_size: int) -> TensorSet:
    """Zeros on all sides, up to image_size. Raises DataError where that is below the set's own."""
    own = small.image_shape[1]
    if image_size < own:
        raise DataError(
            f"{small.name} has images of {own} x {own}, which are padded but not shrunk: "
            f"--image-size must be 0 or at least {own}, got {image_size}"
        )
    if len(small) * small.image_shape[0] * image_size**2 > MAX_PADDED_BYTES:
        raise DataError(f"{small.name} padded to {image_size} pixels would take too much memory")
    before = (image_size - own) // 2
    after = image_size - own - before
    return replace(small, images=F.pad(small.images, (before, after, before, after)))


# Each function ``open_...`` takes (root, size, train, download), after what `partial` fills in.


def open_idx(files: IdxFiles, root: Path, _size: int, train: bool, download: bool) -> TensorSet:
    """A set in MNIST's file format."""
    images, labels = read_set(files, root, train, download)
    source = f"{root / files.folder}, {verification(files, root, train)}"
    return TensorSet("", source, 10, images, labels)


def open_cifar(kind: str, root: Path, _size: int, train: bool, download: bool) -> TensorSet:
    """CIFAR10 or CIFAR100, verified by torchvision."""
    opened = open_torchvision(kind, root, download, train=train)
    images = torch.from_numpy(opened.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(opened.targets)
    return TensorSet("", f"{root}, verified", len(opened.classes), images, labels)


def open_flowers102(root: Path, size: int, train: bool, download: bool) -> StreamSet:
    """Oxford Flowers, trained on its `test` split, the largest; `val` is the test set."""
    split = "test" if train else "val"
    opened = open_torchvision("Flowers102", root, download, split=split)
    names = [path.name for path in opened._image_files]
    images = ImageFiles([str(path) for path in opened._image_files], opened._labels, size)
    return stream(images, names, 102, f"{root}/flowers-102")


def open_folder(root: Path, size: int, train: bool, _download: bool) -> StreamSet:
    """Images in one folder per class; every tenth is held out as the test set."""
    from torchvision import datasets

    try:
        opened = datasets.ImageFolder(root)
    except FileNotFoundError as e:
        raise DataNotFound(
            f"no images in {root}: --dataset folder takes a --data-root with one folder of images "
            "per class"
        ) from e
    held_out = torch.arange(len(opened)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    indices = (~held_out if train else held_out).nonzero().flatten().tolist()
    if not indices:
        raise DataError(f"{root} has too few images: one in {HELD_OUT_EVERY} is held out")
    paths, labels = zip(*(opened.samples[i] for i in indices), strict=True)
    names = [str(Path(path).relative_to(root)) for path in paths]
    images = ImageFiles(paths, labels, size)
    return stream(images, names, len(opened.classes), str(root))


def open_digits(_root: Path, _size: int, train: bool, _download: bool) -> TensorSet:
    """Digits drawn from code alone."""
    images, labels = draw_digits(train)
    return TensorSet("", "drawn by this program, not MNIST", 10, images, labels)


def stream(images: ImageFiles, names: list[str], classes: int, source: str) -> StreamSet:
    """A StreamSet of RGB images; the fingerprint is of the names of its files."""
    fingerprint = hashlib.sha256("\n".join(names).encode()).hexdigest()
    shape, cpu = (3, images.size, images.size), torch.device("cpu")
    return StreamSet("", source, classes, images, fingerprint, shape, cpu)


def open_torchvision(name: str, root: Path, download: bool, **arguments: object) -> Dataset:
    """A torchvision set, from disk or else downloaded. Raises DataError, DataNotFound."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        return kind(root, download=False, **arguments)
    except ImportError as e:
        raise DataError(f"{name} needs {e.name}: pip install {e.name}") from e
    except RuntimeError as e:
        missing = e
    try:
        if download:
            check_online([getattr(kind, "url", None) or kind._download_url_prefix])
            with download_lock(root), socket_timeout(TIMEOUT):
                return kind(root, download=True, **arguments)  # checks the disk again
    except (OSError, RuntimeError) as e:
        missing = e
    raise DataNotFound(
        f"{name} is not in {root} and could not be downloaded "
        f"({' '.join(str(missing).split())}): put it there as torchvision has it, point "
        "--data-root at it, or use --dataset digits, which needs no files"
    ) from missing


DATASETS: dict[str, Callable[[Path, int, bool, bool], ImageSet]] = {
    "mnist": partial(open_idx, MNIST),
    "fashion-mnist": partial(open_idx, FASHION_MNIST),
    "kmnist": partial(open_idx, KMNIST),
    "cifar10": partial(open_cifar, "CIFAR10"),
    "cifar100": partial(open_cifar, "CIFAR100"),
    "flowers102": open_flowers102,
    "folder": open_folder,
    "digits": open_digits,
}
