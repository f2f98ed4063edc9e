"""Folders and zips: which of their files are images, and what the others are."""

import io
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from PIL import Image, UnidentifiedImageError

from data.class_names import readable
from data.decode import seen_size
from data.errors import DataError

MAX_FILE_BYTES = 2**30
CONTAINERS = (".zip", ".npz", ".npy")  # files that images are read from
# Besides hidden files and folders: what systems leave behind.
IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "lost+found"}
IGNORED |= {"System Volume Information"}
NEEDS_PLUGIN = {
    "HEIC": {".heic", ".heif", ".hif"},
    "JPEG XL": {".jxl"},
    "camera raw": {
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".srw", ".orf"),
        *(".raf", ".rw2", ".rwl", ".raw", ".pef", ".erf", ".3fr", ".fff", ".mef", ".mos", ".mrw"),
        *(".kdc", ".dcr", ".iiq", ".gpr", ".x3f"),
    },
    "vector": {".svg", ".svgz", ".eps", ".ps", ".pdf", ".wmf", ".emf", ".ai"},
    "OpenEXR or HDR": {".exr", ".hdr"},
}
NOT_IMAGES = {"MPEG", "HDF5", "GRIB", "BUFR"}  # formats that Pillow names but cannot decode
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
SUBFILE, REDUCED = 254, 1  # TIFF: the first picture is a smaller copy, as in camera raw
Stamp = tuple[int | str, ...]  # changes when a file does


class Source(Protocol):
    """Where images come from."""

    description: str

    def open(self, name: str) -> tuple[Image.Image, bytes]:
        """The image, not decoded yet, and the bytes that its digest is of."""

    def size(self, name: str) -> tuple[int, int]:
        """Height and width as a viewer shows them, from the head of the file where possible."""

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        """What changes when the content of a name does, without reading it."""


class Files(ABC):
    """What folders and zips share."""

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, bool]]:
        """The names of all entries, and whether each is a folder; "/" between the parts.

        A name comes again for each entry that has it.
        """

    def walk(self) -> Iterator[str]:
        """The names of all entries that are not folders."""
        return (name for name, is_folder in self.entries() if not is_folder)

    @abstractmethod
    def unopenable(self, name: str) -> str:
        """Why it must not be opened; empty for a file."""

    @abstractmethod
    def file(self, name: str) -> BinaryIO:
        """The file, opened. Raises OSError, also for one that is too large."""

    def open(self, name: str) -> tuple[Image.Image, bytes]:
        """As Source.open."""
        with self.file(name) as file:
            return identify(file.read())

    def size(self, name: str) -> tuple[int, int]:
        """As Source.size."""
        with self.file(name) as file:
            return seen_size(Image.open(file, formats=readable_formats()))


class Folder(Files):
    """A folder of files, with links followed."""

    def __init__(self, root: Path) -> None:
        self.root, self.description = root, readable(str(root))

    def entries(self) -> Iterator[tuple[str, bool]]:
        """As Files.entries, relative to the root.

        A link to a folder above is not followed, and counts as none.
        """

        def fail(e: OSError) -> None:
            raise DataError(f"cannot read the folder {readable(str(e.filename))}: {e.strerror}")

        around = self.root.resolve().parents
        for folder, folders, names in os.walk(self.root, onerror=fail, followlinks=True):
            inside = Path(folder).relative_to(self.root)
            above = [*(self.root / parent for parent in inside.parents), *around]
            if any(os.path.samefile(folder, parent) for parent in above if inside.parts):
                folders.clear()
                yield str(PurePosixPath(inside)), False
                continue
            if inside.parts:
                yield str(PurePosixPath(inside)), True
            yield from ((str(PurePosixPath(inside, name)), False) for name in names)

    def unopenable(self, name: str) -> str:
        """Pipes, devices, broken links."""
        try:
            mode = os.stat(self.root / name).st_mode
        except OSError:
            return "not regular files"
        if stat.S_ISDIR(mode):  # `walk` names no other folders
            return "links to a folder above"
        return "" if stat.S_ISREG(mode) else "not regular files"

    def file(self, name: str) -> BinaryIO:
        path = self.root / name
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe that nobody writes to is waited for, for ever
            raise OSError("not a regular file")
        if about.st_size > MAX_FILE_BYTES:
            raise OSError(f"larger than {MAX_FILE_BYTES:,} bytes")
        return path.open("rb")

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        """Size, times and inode: no program can write to a file and leave its ctime."""
        about = (os.stat(self.root / name) for name in names)
        return [(a.st_size, a.st_mtime_ns, a.st_ctime_ns, a.st_ino) for a in about]


class Zip(Files):
    """A zip archive, read without unpacking it; its members may be read by several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.description = path, readable(str(path))
        try:
            self.archive = zipfile.ZipFile(path)
        except Exception as e:  # zipfile raises what it likes for damaged files
            raise DataError(f"cannot read the zip {self.description}: {e}") from e
        self.infos = [(member_name(info), info) for info in self.archive.infolist()]
        self.members = {name: info for name, info in self.infos if not info.is_dir()}

    def entries(self) -> Iterator[tuple[str, bool]]:
        """As Files.entries. Of members that share a name the last counts, as when unpacked.

        Not every archive has entries for its folders.
        """
        return ((name, info.is_dir()) for name, info in self.infos)

    def unopenable(self, name: str) -> str:
        """Links, which lead nowhere in an archive."""
        is_link = stat.S_ISLNK(self.members[name].external_attr >> 16)
        return "not regular files" if is_link else ""

    def file(self, name: str) -> BinaryIO:
        if self.members[name].file_size > MAX_FILE_BYTES:
            raise OSError(f"larger than {MAX_FILE_BYTES:,} bytes")
        return self.archive.open(self.members[name])

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        infos = (self.members[name] for name in names)
        return [(i.file_size, i.CRC, i.compress_size) for i in infos]


def member_name(info: zipfile.ZipInfo) -> str:
    """The name of a zip's member, however it was written."""
    return str(PurePosixPath(info.filename.replace("\\", "/").lstrip("/")))


def is_hidden(path: PurePosixPath) -> bool:
    """Whether systems hide it, or left it behind."""
    return any(part.startswith(".") or part in IGNORED for part in path.parts)


def identify(content: bytes) -> tuple[Image.Image, bytes]:
    """The image in these bytes, not decoded yet. Raises OSError and what Pillow raises.

    Of a PNG the checksums are compared, which Pillow's decoder does not do.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=readable_formats())
        if image.format == "PNG":
            image.verify()  # after which it must be opened anew
            image = Image.open(io.BytesIO(content), formats=["PNG"])
        return image, content
    except UnidentifiedImageError as e:
        if content[4:8] == b"ftyp":
            raise OSError("HEIC or the like: convert it to PNG or JPEG") from e
        raise


@cache
def readable_formats() -> list[str]:
    """The formats that Pillow decodes by itself: EPS, for one, would start another program."""
    Image.init()
    return [name for name in Image.OPEN if name not in {"EPS", "WMF", *NOT_IMAGES}]


def why_left_out(source: Files, name: str) -> str:
    """The reason to leave this file out; empty for an image.

    A file without a suffix that Pillow knows is judged by its first bytes.
    """
    path = PurePosixPath(name)
    if ".." in path.parts:
        return "outside the archive"
    if is_hidden(path):
        return "hidden"
    if reason := source.unopenable(name):
        return reason
    suffix = path.suffix.lower()
    if suffix in NEEDS_PLUGIN["camera raw"]:  # whose first bytes are a TIFF's
        return to_convert("camera raw")
    known = Image.registered_extensions().get(suffix)
    if known in (*readable_formats(), "MPO"):  # MPO opens as JPEG
        return ""
    reason = why_no_image(source, name)
    for kind, suffixes in NEEDS_PLUGIN.items():
        if reason and suffix in suffixes:
            return to_convert(kind)
    return reason


def to_convert(kind: str) -> str:
    """The reason to leave out images of a kind that Pillow does not decode."""
    return f"{kind} (convert to PNG or JPEG, which Pillow reads)"


def why_no_image(source: Files, name: str) -> str:
    """The reason to leave out a file of this content; empty for an image."""
    start = b""
    try:
        with source.file(name) as file:
            start = file.read(16)
            formats = [kind for kind, accepts in by_first_bytes() if accepts(start)]
            if formats:
                file.seek(0)
                image = Image.open(file, formats=formats)
                small = image.format == "TIFF" and image.tag_v2.get(SUBFILE, 0) & REDUCED
                return to_convert("camera raw") if small else ""
    except Image.DecompressionBombError:
        return ""  # refused by name when it is decoded
    except Exception:  # Pillow's plugins raise what they like
        pass
    is_heic = start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS
    return to_convert("HEIC") if is_heic else "not images"


@cache
def by_first_bytes() -> list[tuple[str, Callable[[bytes], bool | str]]]:
    """The formats that are known by their first 16 bytes, with the test for each."""
    tests = ((kind, Image.OPEN[kind][1]) for kind in readable_formats())
    return [(kind, accept) for kind, accept in tests if accept]


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, for Pillow or after a conversion."""
    suffix = PurePosixPath(name).suffix.lower()
    known = Image.registered_extensions().get(suffix)
    return known in readable_formats() or any(suffix in own for own in NEEDS_PLUGIN.values())
