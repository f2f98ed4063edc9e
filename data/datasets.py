"""Image sets behind one interface. To add one, enter it in DATASETS.

torchvision is imported only by the functions that need it, as that takes a second.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from data.digits import draw_digits
from data.download import TIMEOUT, check_online, one_at_a_time, socket_timeout
from data.errors import DataError, DataNotFound
from data.files import Files
from data.idx import FASHION_MNIST, KMNIST, MNIST, IdxFiles, how_verified, read_set
from data.sets import ImageSet, StreamSet, TensorSet

STREAM_SIZE = 64  # pixels a side, of sets whose images come in all sizes
LARGEST_SET = 16 * 2**30  # bytes of a padded set
HELD_OUT_EVERY = 10  # of a folder, which has no test set of its own


def load(
    dataset: str, data_root: str, image_size: int, train: bool = True, download: bool = True
) -> ImageSet:
    """Open a set of the registry; image_size 0 is its own. Raises DataError, DataNotFound."""
    if dataset not in DATASETS:
        raise DataError(f"no data set {dataset!r}: this release has {', '.join(DATASETS)}")
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
        source = f"{root / files.folder}, {how_verified(files, root, train)}"
        return TensorSet("", source, 10, images, labels)

    return open_set


def cifar(kind: str) -> Callable[..., TensorSet]:
    """CIFAR-10 or -100, which torchvision verifies."""

    def open_set(root: Path, _size: int, train: bool, download: bool) -> TensorSet:
        opened = open_torchvision(kind, root, download, train=train)
        images = torch.from_numpy(opened.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(opened.targets)
        return TensorSet("", f"{root}, verified", len(opened.classes), images, labels)

    return open_set


def flowers102(root: Path, size: int, train: bool, download: bool) -> StreamSet:
    """Oxford Flowers; its large part, named test, is what is trained on."""
    split = "test" if train else "val"
    opened = open_torchvision("Flowers102", root, download, split=split)
    names = [path.name for path in opened._image_files]
    images = Files([str(path) for path in opened._image_files], opened._labels, size)
    return stream(images, names, 102, f"{root}/flowers-102")


def folder(root: Path, size: int, train: bool, _download: bool) -> StreamSet:
    """Images in one folder per class; every tenth is held out."""
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
    images = Files(paths, labels, size)
    return stream(images, names, len(opened.classes), str(root))


def stream(images: Files, names: list[str], classes: int, source: str) -> StreamSet:
    """A StreamSet of colour images, known by the names of its files."""
    fingerprint = hashlib.sha256("\n".join(names).encode()).hexdigest()
    shape, cpu = (3, images.size, images.size), torch.device("cpu")
    return StreamSet("", source, classes, images, fingerprint, shape, cpu)


def digits(_root: Path, _size: int, train: bool, _download: bool) -> TensorSet:
    """Drawn by this program."""
    images, labels = draw_digits(train)
    return TensorSet("", "drawn by this program, not MNIST", 10, images, labels)


def open_torchvision(name: str, root: Path, download: bool, **arguments: object) -> Dataset:
    """A torchvision set, from disk or else downloaded, with its errors as ours in one line."""
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
            with one_at_a_time(root), socket_timeout(TIMEOUT):
                return kind(root, download=True, **arguments)  # looks at what is there first
    except (OSError, RuntimeError) as e:
        missing = e
    raise DataNotFound(
        f"{name} is not in {root} and could not be downloaded "
        f"({' '.join(str(missing).split())}): put it there as torchvision has it, point "
        "--data-root at it, or use --dataset digits, which needs no files"
    ) from missing


DATASETS: dict[str, Callable[[Path, int, bool, bool], ImageSet]] = {
    "mnist": idx(MNIST),
    "fashion-mnist": idx(FASHION_MNIST),
    "kmnist": idx(KMNIST),
    "cifar10": cifar("CIFAR10"),
    "cifar100": cifar("CIFAR100"),
    "flowers102": flowers102,
    "folder": folder,
    "digits": digits,
}
