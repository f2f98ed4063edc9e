"""MNIST's file format (IDX): read, verified by checksum, downloaded where missing or damaged.

A file may be gzipped or not, and is never unpacked to disk, so a read-only folder will do.
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

from data.download import MAX_BYTES, TIMEOUT, check_online, download_lock, read_url
from data.errors import DataError, DataNotFound
from utils.files import remove_partial, whole_file

SIDE = 28
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049  # unsigned bytes in 3 dimensions and in 1

# SHA-256 of MNIST's unpacked files: how a file was compressed changes the .gz but not the content.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class IdxFiles:
    """Where the files of a set are, what they contain, and the limits of a download."""

    folder: str  # below the data root
    mirrors: tuple[str, ...]
    md5_of_gz: dict[str, str]  # of the .gz files, where the content's SHA-256 is not known
    sha256: dict[str, str]  # of the unpacked files
    timeout: float = TIMEOUT  # seconds
    max_bytes: int = MAX_BYTES


# Folders, mirrors and MD5 are those of torchvision.datasets; importing it takes a second.
MNIST = IdxFiles(
    "MNIST/raw",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    {},
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
    images = parse(read_file(files, root, images_name, download), IMAGES_MAGIC, images_name)
    labels = parse(read_file(files, root, labels_name, download), LABELS_MAGIC, labels_name)
    if len(images) != len(labels):
        raise DataError(f"{root / files.folder}: {len(images)} images but {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{root / files.folder / labels_name}: a label above 9")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))


def read_file(files: IdxFiles, root: Path, name: str, download: bool) -> bytes:
    """The verified, unpacked content of one file, from disk or else downloaded.

    Raises DataNotFound where it is neither, and DataError where what is on disk is damaged too.
    """
    folder = root / files.folder
    content, damaged = read_from_disk(files, folder, name)
    if content is not None:
        return content
    if download:
        try:
            with download_lock(root) as alone:
                if alone:  # else another process may be writing one of them
                    remove_partial(folder)
                content, _ = read_from_disk(files, folder, name)  # another process was faster
                return fetch(files, folder, name) if content is None else content
        except (OSError, http.client.HTTPException, DataError) as e:
            reason = f"downloading it failed ({' '.join(str(e).split()) or type(e).__name__})"
    else:
        reason = "downloading is disabled"
    remedy = (
        f"put {name}.gz from {files.mirrors[0]} into {folder}, point --data-root at a folder that "
        f"has {files.folder}/{name}, or use --dataset digits, which needs no files"
    )
    if damaged:
        raise DataError(f"{damaged[0]} and {reason}: {remedy}")
    raise DataNotFound(f"no {name} or {name}.gz in {folder} and {reason}: {remedy}")


def verification(files: IdxFiles, root: Path, train: bool) -> str:
    """Whether read_set could verify the files on disk: for some sets it needs the .gz files."""
    names = [name for name in files.md5_of_gz if name.startswith("train") == train]
    packed = all((root / files.folder / name).is_file() for name in names)
    return "verified" if files.sha256 or packed else "unpacked and so not verifiable"


def read_from_disk(files: IdxFiles, folder: Path, name: str) -> tuple[bytes | None, list[str]]:
    """The content of the file or else of its .gz, None without a good one; what was damaged."""
    damaged = []
    paths = [folder / name, folder / f"{name}.gz"]
    if name not in files.sha256 and paths[1].is_file():
        paths = paths[1:]  # the unpacked file could not be verified
    for path in paths:
        if path.is_file():
            try:
                return read_verified(files, path), damaged
            except DataError as e:
                damaged.append(str(e))
    return None, damaged


def read_verified(files: IdxFiles, path: Path) -> bytes:
    """The unpacked content of a file. Raises DataError unless its checksum is the expected one."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = unpack(files, path.name, content, str(path))
    except OSError as e:
        raise DataError(f"cannot read {path} ({e.strerror or e})") from e
    check_sha256(files, path.name.removesuffix(".gz"), content, str(path))
    return content


def unpack(files: IdxFiles, name: str, packed: bytes, where: str) -> bytes:
    """The content of a .gz, whose MD5 is checked where no SHA-256 of the content is known.

    Raises DataError.
    """
    if name.removesuffix(".gz") not in files.sha256:
        found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        if found != files.md5_of_gz[name]:
            raise DataError(f"{where} is damaged: MD5 {found}, not {files.md5_of_gz[name]}")
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise DataError(f"{where} is damaged: {e}") from e


def check_sha256(files: IdxFiles, name: str, content: bytes, where: str) -> None:
    """Raises DataError unless the content has the SHA-256 of this name, where one is known."""
    expected, found = files.sha256.get(name), hashlib.sha256(content).hexdigest()
    if expected and found != expected:
        raise DataError(f"{where} is damaged: SHA-256 {found}, not {expected}")


def parse(content: bytes, magic: int, name: str) -> np.ndarray:
    """The array in a file: (N, 28, 28) for images, (N,) for labels, uint8. Raises DataError."""
    dims = magic - 2048
    header = np.frombuffer(content[: 4 + 4 * dims], ">u4")
    shape = tuple(int(n) for n in header[1:])
    if len(header) != 1 + dims or header[0] != magic or shape[1:] != (SIDE, SIDE)[: dims - 1]:
        raise DataError(f"{name} is damaged: its header is not that of an MNIST file")
    if len(content) != 4 + 4 * dims + np.prod(shape, dtype=np.int64):
        raise DataError(f"{name} is damaged: its length does not fit its header")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()


def fetch(files: IdxFiles, folder: Path, name: str) -> bytes:
    """Download one file, verify it, store the .gz; its content. Raises the last mirror's error."""
    error: Exception = DataError("no mirror is known")
    check_online(files.mirrors)
    for mirror in files.mirrors:
        url = f"{mirror}{name}.gz"
        try:
            packed = read_url(url, files.timeout, files.max_bytes)
            content = unpack(files, f"{name}.gz", packed, url)
            check_sha256(files, name, content, url)
        except (OSError, http.client.HTTPException, DataError) as e:
            error = e
            continue
        store(folder / f"{name}.gz", packed)
        return content
    raise error


def store(path: Path, content: bytes) -> None:
    """Write a whole file or none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(content)
