"""Which images a folder, a zip or an array file holds, their classes, and what is left out."""

import io
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from data.errors import DataError, DataNotFound
from utils.labels import listed, match_classes, natural_key, readable

ACCEPTED = (
    "--dataset folder takes a folder or .zip of images (flat, one folder per class, or train/ "
    "and test/ beside each other), or a .npz or .npy of uint8 images"
)
MAX_FILE_BYTES = 2**30
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation", "eval")
CONTAINERS = (".zip", ".npz", ".npy")  # files that images are read from
# Besides hidden files and folders: what systems leave behind.
IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "lost+found"}
IGNORED |= {"System Volume Information"}
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

        around = self.root.resolve().parents
        for folder, folders, names in os.walk(self.root, onerror=fail, followlinks=True):
            inside = Path(folder).relative_to(self.root)
            above = [*(self.root / parent for parent in inside.parents), *around]
            if any(os.path.samefile(folder, parent) for parent in above if inside.parts):
                folders.clear()  # a link to a folder above
                continue
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
        except Exception as e:  # zipfile raises what it likes for damaged files
            raise DataError(f"cannot read the zip {self.description}: {e}") from e
        files = (i for i in self.archive.infolist() if not i.is_dir())
        self.members = {
            str(PurePosixPath(i.filename.replace("\\", "/").lstrip("/"))): i for i in files
        }

    def walk(self) -> Iterator[str]:
        yield from self.members

    def is_file(self, name: str) -> bool:
        """False for links, which lead nowhere in an archive."""
        return not stat.S_ISLNK(self.members[name].external_attr >> 16)

    def open(self, name: str) -> tuple[Image.Image, bytes]:
        if self.members[name].file_size > MAX_FILE_BYTES:
            raise OSError(f"larger than {MAX_FILE_BYTES:,} bytes")
        return identify(self.archive.read(self.members[name]))

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        infos = (self.members[name] for name in names)
        return [(i.file_size, i.CRC, i.compress_size) for i in infos]


def identify(content: bytes) -> tuple[Image.Image, bytes]:
    """The image in these bytes, not decoded yet. Raises OSError and what Pillow raises."""
    try:
        return Image.open(io.BytesIO(content), formats=readable_formats()), content
    except UnidentifiedImageError as e:
        if content[4:8] == b"ftyp":
            raise OSError("HEIC or the like: convert it to PNG or JPEG") from e
        raise


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
        for name in sorted(source.walk()):
            if PurePosixPath(name).suffix.lower() in CONTAINERS:
                found += f"; for those in {readable(name)} make it the --data-root"
                break
        raise DataNotFound(f"no images in {source.description}{found}: {ACCEPTED}")
    depth = 0
    while len(heads(names, depth)) == 1 and not at_top(names, depth):
        depth += 1
    refuse_domains(source, heads(names, depth))
    train, tests = split_parts(names, depth)
    if not tests:
        class_names, files = label(names, depth, left_out)
        return Listing(source, tuple(files), class_names, left_out)
    if not train:
        raise DataError(f"{source.description} has {tests[0]}/ but no train/: {ACCEPTED}")
    inside = {part: under(names, depth, part) for part in (train, *tests)}
    folders = class_folders(inside[train], depth + 1)
    fits = [test for test in tests if not folders or heads(inside[test], depth + 1)]
    if not fits:
        raise DataError(f"{source.description}: {train}/ has class folders, {tests[0]}/ has not")
    test = fits[0]
    left_out[f"outside {train}/ and {test}/"] += len(names) - len(inside[train]) - len(inside[test])
    unknown = heads(inside[test], depth + 1) - set(folders)
    if folders and unknown:
        raise DataError(
            f"{source.description}: {test}/ has classes that {train}/ lacks: "
            f"{listed(sorted(map(readable, unknown)))}"
        )
    files = labelled(inside[train], depth + 1, folders, left_out)
    tested = labelled(inside[test], depth + 1, folders, left_out)
    files += [replace(file, test=True) for file in tested]
    return Listing(source, tuple(files), named_apart(folders), left_out)


def why_left_out(source: Folder | Zip, name: str) -> str:
    """The reason to leave this file out; empty for an image."""
    path = PurePosixPath(name)
    if ".." in path.parts:
        return "outside the archive"
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


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, for Pillow or after a conversion."""
    suffix = PurePosixPath(name).suffix.lower()
    known = Image.registered_extensions().get(suffix)
    return known in readable_formats() or any(suffix in own for own in NEEDS_PLUGIN.values())


def heads(names: Sequence[str], depth: int) -> set[str]:
    """The folders at this depth that hold images."""
    return {parts[depth] for name in names if len(parts := name.split("/")) > depth + 1}


def at_top(names: Sequence[str], depth: int) -> list[str]:
    """The images that lie in no folder below this depth."""
    return [name for name in names if name.count("/") == depth]


def split_parts(names: list[str], depth: int) -> tuple[str | None, list[str]]:
    """The folder of training images, and those of test images, the likelier names first.

    ``train``, ``Training``, ``train_images``, ``training_set``, ``train2017`` and the like.
    """
    found: dict[str, str] = {}
    for head in sorted(heads(names, depth)):
        word = part_of(head)
        if word in (*TRAIN, *TEST):
            found.setdefault(word, head)
    tests = [found[word] for word in TEST if word in found]
    train = next((found[word] for word in TRAIN if word in found), None)
    if train is None and heads(names, depth) != set(tests):
        return None, []  # classes, one of which has such a name
    return train, tests


def refuse_domains(source: Folder | Zip, folders: set[str]) -> None:
    """DataError for trainA, trainB, testA, testB: their test images would be trained on."""
    found = sorted(name for name in folders if re.fullmatch(r"(train|test|val)[ _-]?[AB]", name))
    if len(found) > 1:
        raise DataError(
            f"{source.description} has {listed(found)}: arrange them as train/A, train/B, test/A, "
            "test/B, or name one of them as --data-root"
        )


def part_of(folder: str) -> str:
    """``train``, ``test`` and the like, for train_images, Training, train2017; else the name."""
    return re.sub(r"[ _-]*(set|images?|data|\d+)$", "", folder.lower())


def under(names: Sequence[str], depth: int, folder: str) -> list[str]:
    """The names in this folder."""
    return [n for n in names if n.count("/") > depth and n.split("/")[depth] == folder]


def class_folders(names: Sequence[str], depth: int) -> list[str]:
    """The folders that are classes; none where there are fewer than two."""
    folders = sorted(heads(names, depth), key=natural_key)
    return folders if len(folders) > 1 else []


def named_apart(folders: Sequence[str]) -> tuple[str, ...]:
    """As they are printed. DataError where two are printed alike, as NFC and NFD are."""
    names = tuple(map(readable, folders))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"several class folders are called {listed(twice)}: rename all but one")
    return names


def label(
    names: Sequence[str], depth: int, left_out: Counter[str]
) -> tuple[tuple[str, ...], list[ImageFile]]:
    """Class names, and the images with their labels."""
    folders = class_folders(names, depth)
    return named_apart(folders), labelled(names, depth, folders, left_out)


def labelled(
    names: Sequence[str], depth: int, folders: Sequence[str], left_out: Counter[str]
) -> list[ImageFile]:
    """The images with the number of their class folder; with 0 where there are none."""
    if not folders:
        return [ImageFile(name) for name in names]
    left_out["beside the class folders"] += len(at_top(names, depth))
    index = {folder: i for i, folder in enumerate(folders)}
    inside = [name for name in names if name.count("/") > depth]
    parts = {name: part_of(name.split("/")[depth + 1]) for name in inside}
    split = {*parts.values()} <= {*TRAIN, *TEST} and {*parts.values()} & {*TRAIN}
    return [
        ImageFile(name, index[name.split("/")[depth]], bool(split and parts[name] in TEST))
        for name in inside
    ]


def summary(counts: Counter[str]) -> str:
    """``3 hidden, 2 not images``."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
