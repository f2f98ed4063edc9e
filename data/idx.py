"""Sets in MNIST's file format, verified before use.

A file is taken as it is or gzipped, is never unpacked to disk, and is fetched only where it is
missing or damaged; so a read-only folder serves.
"""

import gzip
import hashlib
import http.client
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.download import check_online, keep, one_at_a_time, read_url
from data.errors import DataError, DataNotFound

SIDE = 28

# SHA-256 of MNIST's unpacked files. The packed ones differ between packers, the content does not.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class IdxFiles:
    """Where a set lies and how its files are known: torchvision's names, mirrors and checksums."""

    folder: str  # below the data root, as torchvision has it
    mirrors: tuple[str, ...]
    md5_of_gz: dict[str, str]
    sha256: dict[str, str]


# As in torchvision.datasets, but importing that takes a second.
MNIST = IdxFiles(
    "MNIST/raw",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    {},  # the content itself is known
    MNIST_SHA256,
)
FASHION_MNIST = IdxFiles(
    "FashionMNIST/raw",
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    {},
)
KMNIST = IdxFiles(
    "KMNIST/raw",
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    {
        "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    },
    {},
)


def read_set(files: IdxFiles, root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) int64. Raises DataError, DataNotFound."""
    part = "train" if train else "t10k"
    images_name, labels_name = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    images = parse(read_file(files, root, images_name, download), 2051, images_name)
    labels = parse(read_file(files, root, labels_name, download), 2049, labels_name)
    if len(images) != len(labels):
        raise DataError(f"{root / files.folder}: {len(images)} images but {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{root / files.folder / labels_name}: a label above 9")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))


def read_file(files: IdxFiles, root: Path, name: str, download: bool) -> bytes:
    """The verified content of one file; fetched where neither form of it is there and good."""
    folder = root / files.folder
    content, damaged = on_disk(files, folder, name)
    if content is not None:
        return content
    if download:
        try:
            with one_at_a_time(root):
                content, _ = on_disk(files, folder, name)  # who waited finds it there
                return fetch(files, folder, name) if content is None else content
        except (OSError, http.client.HTTPException, DataError) as e:
            reason = f"downloading it failed ({' '.join(str(e).split()) or type(e).__name__})"
    else:
        reason = "downloading was not wanted"
    remedy = (
        f"put {name}.gz from {files.mirrors[0]} into {folder}, point --data-root at a folder that "
        f"has {files.folder}/{name}, or use --dataset digits, which needs no files"
    )
    if damaged:
        raise DataError(f"{damaged[0]} and {reason}: {remedy}")
    raise DataNotFound(f"no {name} or {name}.gz in {folder} and {reason}: {remedy}")


def how_verified(files: IdxFiles, root: Path, train: bool) -> str:
    """What is known of the files that read_set takes: of some sets only the packed ones are."""
    names = [name for name in files.md5_of_gz if name.startswith("train") == train]
    packed = all((root / files.folder / name).is_file() for name in names)
    return "verified" if files.sha256 or packed else "unpacked and so not verifiable"


def on_disk(files: IdxFiles, folder: Path, name: str) -> tuple[bytes | None, list[str]]:
    """The content of the first form of a file that is good, and what is wrong with those before."""
    damaged = []
    forms = [folder / name, folder / f"{name}.gz"]
    if name not in files.sha256 and forms[1].is_file():
        forms = forms[1:]  # the other could not be verified
    for path in forms:
        if path.is_file():
            try:
                return verified(files, path), damaged
            except DataError as e:
                damaged.append(str(e))
    return None, damaged


def verified(files: IdxFiles, path: Path) -> bytes:
    """The unpacked content of a file that is what its name says. Raises DataError."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = unpack(files, path.name, content, str(path))
    except OSError as e:
        raise DataError(f"cannot read {path} ({e.strerror or e})") from e
    check_sha256(files, path.name.removesuffix(".gz"), content, str(path))
    return content


def unpack(files: IdxFiles, name: str, packed: bytes, where: str) -> bytes:
    """The content of a .gz; by its MD5 where the content itself has no known SHA-256."""
    if name.removesuffix(".gz") not in files.sha256:
        found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        if found != files.md5_of_gz[name]:
            raise DataError(f"{where} is damaged: MD5 {found}, not {files.md5_of_gz[name]}")
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise DataError(f"{where} is damaged: {e}") from e


def check_sha256(files: IdxFiles, name: str, content: bytes, where: str) -> None:
    """DataError unless the content is what was published under this name, where that is known."""
    expected, found = files.sha256.get(name), hashlib.sha256(content).hexdigest()
    if expected and found != expected:
        raise DataError(f"{where} is damaged: SHA-256 {found}, not {expected}")


def parse(content: bytes, magic: int, name: str) -> np.ndarray:
    """The array in a file: (N, 28, 28) for images, (N,) for labels. Raises DataError."""
    dims = magic - 2048
    header = np.frombuffer(content[: 4 + 4 * dims], ">u4")
    shape = tuple(int(n) for n in header[1:])
    if len(header) != 1 + dims or header[0] != magic or shape[1:] != (SIDE, SIDE)[: dims - 1]:
        raise DataError(f"{name} is damaged: its header is not that of an MNIST file")
    if len(content) != 4 + 4 * dims + np.prod(shape, dtype=np.int64):
        raise DataError(f"{name} is damaged: its length does not fit its header")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()


def fetch(files: IdxFiles, folder: Path, name: str) -> bytes:
    """Download, verify, keep the .gz; the content. The last mirror's error is raised."""
    error: Exception = DataError("no mirror is known")
    check_online(files.mirrors)
    for mirror in files.mirrors:
        try:
            packed = read_url(f"{mirror}{name}.gz")
            content = unpack(files, f"{name}.gz", packed, f"{mirror}{name}.gz")
            check_sha256(files, name, content, f"{mirror}{name}.gz")
        except (OSError, http.client.HTTPException, DataError) as e:
            error = e
            continue
        keep(folder / f"{name}.gz", packed)
        return content
    raise error
