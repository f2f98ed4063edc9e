"""Which images a folder, a zip or an array file holds, their classes, and what is left out."""

import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from data.errors import DataError, DataNotFound
from utils.labels import match_classes, natural_key, readable

ACCEPTED = (
    "--dataset folder takes a folder or .zip of images (flat, one folder per class, or train/ "
    "and test/ beside each other), or a .npz or .npy of uint8 images"
)
MAX_FILE_BYTES = 2**30
TRAIN, TEST = {"train", "training"}, ("test", "val", "valid", "validation")
IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # besides hidden files and folders
NEEDS_PLUGIN = {
    "HEIC": {".heic", ".heif", ".hif"},
    "JPEG XL": {".jxl"},
    "camera raw": {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"},
    "vector": {".svg", ".svgz", ".eps", ".ps", ".pdf", ".wmf", ".emf", ".ai"},
    "OpenEXR or HDR": {".exr", ".hdr"},
}
NOT_IMAGES = {"MPEG", "HDF5", "GRIB", "BUFR"}  # formats that Pillow names but cannot decode
Stamp = tuple[int | str, ...]  # changes when a file does


class Source(Protocol):
    """Where images come from."""

    description: str

    def open(self, name: str) -> tuple[Image.Image, bytes]:
        """The image, not decoded yet, and the bytes that its digest is of."""

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        """What changes when the content of a name does, without reading it."""


@dataclass(frozen=True)
class ImageFile:
    """An image of a source. ``label`` is 0 where there are no classes."""

    name: str
    label: int = 0
    test: bool = False  # in a folder ``test`` beside ``train``


@dataclass(frozen=True)
class Listing:
    """The images of a source, sorted by name, and the counts of what is left out, by reason."""

    source: Source
    files: tuple[ImageFile, ...]
    class_names: tuple[str, ...]  # none: no labels
    left_out: Counter[str] = field(default_factory=Counter)

    def only(self, classes: Sequence[str]) -> "Listing":
        """Without the images of other classes; labels count anew. Raises DataError."""
        if not classes:
            return self
        if not self.class_names:
            raise DataError(f"--classes has no effect: {self.source.description} has no classes")
        kept = sorted(set(match_classes(classes, self.class_names)))
        files = [replace(f, label=kept.index(f.label)) for f in self.files if f.label in kept]
        names = tuple(self.class_names[label] for label in kept)
        left_out = self.left_out + Counter({"of other classes": len(self.files) - len(files)})
        return replace(self, files=tuple(files), class_names=names, left_out=left_out)


class Folder:
    """A folder of files, with links followed."""

    def __init__(self, root: Path) -> None:
        self.root, self.description = root, readable(str(root))

    def walk(self) -> Iterator[str]:
        """Names of all entries that are not folders, relative to the root, "/" in between."""

        def fail(e: OSError) -> None:
            raise DataError(f"cannot read the folder {readable(str(e.filename))}: {e.strerror}")

        seen: set[tuple[int, int]] = set()  # so that a link to a folder above ends
        for folder, folders, names in os.walk(self.root, onerror=fail, followlinks=True):
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in seen:
                folders.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            inside = Path(folder).relative_to(self.root)
            yield from (str(PurePosixPath(inside, name)) for name in names)

    def is_file(self, name: str) -> bool:
        """False for pipes, devices and broken links, which must not be opened."""
        try:
            return stat.S_ISREG(os.stat(self.root / name).st_mode)
        except OSError:
            return False

    def open(self, name: str) -> tuple[Image.Image, bytes]:
        path = self.root / name
        if path.stat().st_size > MAX_FILE_BYTES:
            raise OSError(f"larger than {MAX_FILE_BYTES:,} bytes")
        return identify(path.read_bytes())

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        """Size, times and inode: no program can write to a file and leave its ctime."""
        about = (os.stat(self.root / name) for name in names)
        return [(a.st_size, a.st_mtime_ns, a.st_ctime_ns, a.st_ino) for a in about]


class Zip:
    """A zip archive, read without unpacking it; its members may be read by several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.description = path, readable(str(path))
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as e:
            raise DataError(f"cannot read the zip {self.description}: {e}") from e

    def walk(self) -> Iterator[str]:
        yield from (i.filename for i in self.archive.infolist() if not i.is_dir())

    def is_file(self, name: str) -> bool:
        return not name.startswith("/") and ".." not in name.split("/")

    def open(self, name: str) -> tuple[Image.Image, bytes]:
        if self.archive.getinfo(name).file_size > MAX_FILE_BYTES:
            raise OSError(f"larger than {MAX_FILE_BYTES:,} bytes")
        return identify(self.archive.read(name))

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        infos = (self.archive.getinfo(name) for name in names)
        return [(i.file_size, i.CRC, i.compress_size) for i in infos]


def identify(content: bytes) -> tuple[Image.Image, bytes]:
    """The image in these bytes, not decoded yet. Raises OSError and what Pillow raises."""
    if content[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1"):
        raise OSError("HEIC, whatever its name says: convert it to PNG or JPEG")
    return Image.open(io.BytesIO(content), formats=readable_formats()), content


@cache
def readable_formats() -> list[str]:
    """The formats that Pillow decodes by itself: EPS, for one, would start another program."""
    Image.init()
    return [name for name in Image.OPEN if name not in {"EPS", "WMF", *NOT_IMAGES}]


def list_images(source: Folder | Zip) -> Listing:
    """Find the images of a folder or zip, and what the folders in it mean. Raises DataError.

    Folders ``train`` and ``test`` (or ``val``) are the two sets; two or more folders are classes,
    and images beside them are left out; otherwise there are no labels. A folder that holds all the
    rest is looked into.
    """
    left_out: Counter[str] = Counter()
    names = []
    for name in sorted(set(source.walk())):
        reason = why_left_out(source, name)
        if reason:
            left_out[reason] += 1
        else:
            names.append(name)
    if not names:
        found = f" ({summary(left_out)})" if left_out else ""
        raise DataNotFound(f"no images in {source.description}{found}: {ACCEPTED}")
    depth = 0
    while len(heads(names, depth)) == 1 and not at_top(names, depth):
        depth += 1
    parts = split_parts(source, names, depth, left_out)
    if parts is None:
        class_names, files = label(names, depth, left_out)
        return Listing(source, tuple(files), class_names, left_out)
    (train, test), depth = parts, depth + 1
    class_names, files = label(train, depth, left_out)
    test_names, test_files = label(test, depth, left_out)
    if unknown := set(test_names) - set(class_names):
        raise DataError(
            f"{source.description}: the test images have classes that the training images lack "
            f"({', '.join(sorted(unknown))}); the folders of train/ and test/ must be the same"
        )
    if bool(class_names) != bool(test_names):
        raise DataError(
            f"{source.description}: one of train/ and test/ has class folders, the other has not"
        )
    relabel = [class_names.index(name) for name in test_names] or [0]
    files += [ImageFile(f.name, relabel[f.label], test=True) for f in test_files]
    return Listing(source, tuple(files), class_names, left_out)


def why_left_out(source: Folder | Zip, name: str) -> str:
    """The reason to leave this file out; empty for an image."""
    path = PurePosixPath(name)
    if any(part.startswith(".") or part in IGNORED for part in path.parts):
        return "hidden"
    if not source.is_file(name):
        return "not regular files"
    suffix = path.suffix.lower()
    for kind, suffixes in NEEDS_PLUGIN.items():
        if suffix in suffixes:
            return f"{kind} (convert to PNG or JPEG, which Pillow reads)"
    if suffix:
        known = Image.registered_extensions().get(suffix)
        return "" if known in (*readable_formats(), "MPO") else "not images"  # MPO opens as JPEG
    try:
        source.open(name)
        return ""
    except Exception:  # Pillow's plugins raise what they like
        return "not images"


def heads(names: Sequence[str], depth: int) -> set[str]:
    """The folders at this depth that hold images."""
    return {parts[depth] for name in names if len(parts := name.split("/")) > depth + 1}


def at_top(names: Sequence[str], depth: int) -> list[str]:
    """The images that lie in no folder below this depth."""
    return [name for name in names if name.count("/") == depth]


def split_parts(
    source: Folder | Zip, names: list[str], depth: int, left_out: Counter[str]
) -> tuple[list[str], list[str]] | None:
    """The images of train/ and of the first of TEST that is there; None without these folders."""
    by_lower = {head.lower(): head for head in heads(names, depth)}
    train = [by_lower[name] for name in sorted(TRAIN) if name in by_lower]
    test = [by_lower[name] for name in TEST if name in by_lower]
    if not test:
        return None
    if not train:
        if by_lower.keys() <= set(TEST):
            raise DataError(f"{source.description} has {test[0]}/ but no train/: {ACCEPTED}")
        return None
    parts: dict[str, list[str]] = {train[0]: [], test[0]: []}
    for name in names:
        head = name.split("/")[depth]
        if head in parts and name.count("/") > depth:
            parts[head].append(name)
        else:
            left_out[f"outside {train[0]}/ and {test[0]}/"] += 1
    return parts[train[0]], parts[test[0]]


def label(
    names: Sequence[str], depth: int, left_out: Counter[str]
) -> tuple[tuple[str, ...], list[ImageFile]]:
    """Class names, and the images with their labels."""
    folders = sorted(heads(names, depth), key=natural_key)
    if len(folders) < 2:
        return (), [ImageFile(name) for name in names]
    beside = at_top(names, depth)
    left_out["beside the class folders"] += len(beside)
    index = {folder: i for i, folder in enumerate(folders)}
    inside = [name for name in names if name.count("/") > depth]
    files = [ImageFile(name, index[name.split("/")[depth]]) for name in inside]
    return tuple(map(readable, folders)), files


def summary(counts: Counter[str]) -> str:
    """``3 hidden, 2 not images``."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
