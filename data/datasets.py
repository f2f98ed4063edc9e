"""The registry of image sets. A new one is a function ``open_...`` and an entry in DATASETS.

torchvision is imported only by the functions that need it, as that takes a second.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from data.class_names import match_classes
from data.digits import draw_digits
from data.download import TIMEOUT, check_online, download_lock, socket_timeout
from data.errors import DataError, DataNotFound
from data.folder import open_folder, open_listing
from data.held_out import check_same_images
from data.idx import FASHION_MNIST, KMNIST, MNIST, IdxFiles, read_set, verification
from data.image_set import ImageSet, TensorSet
from data.listing import ImageFile, Listing
from data.options import DataOptions, Loading
from data.sources import CONTAINERS, Folder, is_image_name, why_left_out

MAX_PADDED_BYTES = 16 * 2**30
OF_FILES = {"folder", "flowers102"}  # sets whose images are decoded and fitted, not padded
DEFAULT = Loading()
TORCHVISION_FOLDERS = ("MNIST", "FashionMNIST", "KMNIST", "cifar-10-batches-py")
TORCHVISION_FOLDERS += ("cifar-100-python", "flowers-102")
Splits = tuple[ImageSet, ImageSet]  # training and test images; there may be no test images


def load_splits(
    options: DataOptions,
    fingerprint: str | None = None,
    loading: Loading = DEFAULT,
) -> Splits:
    """The training and the test set.

    Raises DataNotFound where they are neither on disk nor downloadable, DataError for images that
    cannot be used, or whose training images do not have the fingerprint.
    """
    name = options.dataset
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}: this release has {', '.join(DATASETS)}")
    check_options(options)
    loading = replace(loading, fingerprint=fingerprint)
    splits = DATASETS[name](options, loading)
    if name not in OF_FILES:
        splits = tuple(prepared(replace(part, name=name), options) for part in splits)
        loading.check(splits[0].num_classes, splits[0].image_shape[1:])
    train_set, test_set = (replace(part, name=name) for part in splits)
    if name not in OF_FILES:
        check_same_images(train_set, options, loading)
    return train_set, test_set


def check_options(options: DataOptions) -> None:
    """DataError for options that would have no effect on this data set."""
    default = DataOptions(options.dataset)
    for name in ("fit", "background", "skip_damaged"):
        if options.dataset not in OF_FILES and getattr(options, name) != getattr(default, name):
            flag = f"--{name.replace('_', '-')}"
            raise DataError(f"{flag} has no effect on --dataset {options.dataset}")
    if options.image_channels == 4 and options.background != default.background:
        raise DataError(
            "--background has no effect on --image-channels 4, which keeps transparency"
        )


def prepared(own: TensorSet, options: DataOptions) -> TensorSet:
    """The chosen classes, channels and size."""
    if options.classes:
        kept = sorted(set(match_classes(options.classes, own.class_names)))
        rows = torch.isin(own.labels, torch.tensor(kept))
        labels = torch.searchsorted(torch.tensor(kept), own.labels[rows])
        names = tuple(own.class_names[label] for label in kept)
        own = replace(own, images=own.images[rows], labels=labels, class_names=names)
    if options.image_channels:
        own = replace(own, images=with_channels(own.images, options.image_channels))
    return pad(own, options.image_size) if any(options.image_size) else own


def with_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 (N, C, H, W) as grey (luma of ITU-R 601, as Pillow computes it), RGB or RGBA."""
    if images.shape[1] == channels:
        return images
    if channels == 1:
        weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(3, 1, 1)
        rows = [
            ((x.int() * weights).sum(1, keepdim=True) + 2**15) >> 16 for x in images.split(1000)
        ]
        return torch.cat(rows).to(torch.uint8)
    colours = images.expand(-1, 3, -1, -1)
    if channels == 3:
        return colours.contiguous()
    return torch.cat([colours, torch.full_like(images[:, :1], 255)], dim=1)


def pad(small: TensorSet, size: tuple[int, int]) -> TensorSet:
    """Zeros on all sides, up to (height, width). DataError where that is below the set's own."""
    own = small.image_shape[1:]
    if any(side < least for side, least in zip(size, own, strict=True)):
        raise DataError(
            f"{small.name} has images of {own[0]} x {own[1]}, which are padded but not shrunk: "
            f"--image-size must be 0 or at least {max(own)}, got {size[0]}x{size[1]}"
        )
    if len(small) * small.image_shape[0] * size[0] * size[1] > MAX_PADDED_BYTES:
        raise DataError(f"{small.name} padded to {size[0]}x{size[1]} would take too much memory")
    top, left = ((side - least) // 2 for side, least in zip(size, own, strict=True))
    right, bottom = size[1] - own[1] - left, size[0] - own[0] - top
    return replace(small, images=F.pad(small.images, (left, right, top, bottom)))


# Each function ``open_...`` takes (options, loading), after what `partial` fills in.


def open_idx(files: IdxFiles, names: str, options: DataOptions, loading: Loading) -> Splits:
    """A set in MNIST's file format; names of the classes with commas in between."""
    return tuple(idx_part(files, names, options, loading, part) for part in (True, False))


def idx_part(
    files: IdxFiles, names: str, options: DataOptions, loading: Loading, train: bool
) -> TensorSet:
    """The training or the test images."""
    root = Path(options.data_root)
    images, labels = read_set(files, root, train, loading.download)
    source = f"{root / files.folder}, {verification(files, root, train)}"
    return TensorSet("", source, tuple(names.split(",")), images, labels)


def open_cifar(kind: str, options: DataOptions, loading: Loading) -> Splits:
    """CIFAR10 or CIFAR100, verified by torchvision."""
    root = Path(options.data_root)

    def part(train: bool) -> TensorSet:
        opened = open_torchvision(kind, root, loading.download, train=train)
        images = torch.from_numpy(opened.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(opened.targets)
        return TensorSet("", f"{root}, verified", tuple(opened.classes), images, labels)

    return part(True), part(False)


def open_flowers102(options: DataOptions, loading: Loading) -> Splits:
    """Oxford Flowers, trained on its `test` split, the largest; `val` is the test set."""
    root, files = Path(options.data_root), []
    for split in ("test", "val"):
        opened = open_torchvision("Flowers102", root, loading.download, split=split)
        names = [str(path.relative_to(root)) for path in opened._image_files]
        files += [
            ImageFile(name, label, split == "val")
            for name, label in zip(names, opened._labels, strict=True)
        ]
    class_names = tuple(getattr(opened, "classes", None) or map(str, range(1, 103)))
    return open_listing(Listing(Folder(root), tuple(files), class_names), options, loading)


def open_digits(_options: DataOptions, loading: Loading) -> Splits:
    """Digits drawn from code alone."""
    source, names = "drawn by this program, not MNIST", tuple("0123456789")
    parts = (draw_digits(train, silent=loading.silent) for train in (True, False))
    return tuple(TensorSet("", source, names, *part) for part in parts)


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


def holds_images(data_root: str) -> bool:
    """Whether these are someone's own images: such files, but no data set of torchvision.

    A single file is not of torchvision, whatever it is; what cannot be looked at holds nothing.
    """
    root = Path(data_root)
    try:
        if root.is_file():
            return True
        if not root.is_dir() or any(holds_files(root / name) for name in TORCHVISION_FOLDERS):
            return False
    except OSError:  # a name too long, a folder without rights: opening the data says so
        return False
    source = Folder(root)
    return any(may_hold(source, name) for name in source.walk())


def holds_files(folder: Path) -> bool:
    """Whether there is a file in it, at any depth."""
    return any(path.is_file() for path in folder.rglob("*"))


def may_hold(source: Folder, name: str) -> bool:
    """Whether this file is an image, or one that images are read from."""
    is_container = PurePosixPath(name).suffix.lower() in CONTAINERS
    return is_container or is_image_name(name) or not why_left_out(source, name)


DATASETS: dict[str, Callable[[DataOptions, Loading], Splits]] = {
    "mnist": partial(open_idx, MNIST, "0,1,2,3,4,5,6,7,8,9"),
    "fashion-mnist": partial(
        open_idx,
        FASHION_MNIST,
        "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
    ),
    "kmnist": partial(open_idx, KMNIST, "o,ki,su,tsu,na,ha,ma,ya,re,wo"),
    "cifar10": partial(open_cifar, "CIFAR10"),
    "cifar100": partial(open_cifar, "CIFAR100"),
    "flowers102": open_flowers102,
    "folder": open_folder,
    "digits": open_digits,
}
