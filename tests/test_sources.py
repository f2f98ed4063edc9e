"""Which files are images: by suffix, else by the first bytes; what is not opened; sizes."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from test_folder import fill, opened, picture

import data.sources
from data import DataError, report
from data.datasets import holds_images
from data.decode import seen_size
from data.sources import Folder, Zip

ODD_SUFFIXES = ["photo.png.bak", "IMG_0001.dat", "a.jpg_large", "b.JPG~", "c.png.1", "2019.05", "d"]


def left_out(root: Path) -> str:
    return next(line for line in report(*opened(root)) if line.startswith("left out"))


def encoded(kind: str, n: int = 0, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(n)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "PSD"])
@pytest.mark.parametrize("zipped", [False, True])
def test_images_of_any_suffix_are_seen_by_their_first_bytes(tmp_path, kind, zipped):
    root = tmp_path / "set"
    root.mkdir()
    if kind == "PSD":
        (root / "flat.dat").write_bytes(psd())
    else:
        for n, name in enumerate(ODD_SUFFIXES):
            (root / name).write_bytes(encoded(kind, n))
    (root / "labels.csv").write_text("a,b")
    (root / "P6.txt").write_text("P6 is the name of a format\n")
    (root / "x.h").write_text("#define WIDTH 16\n")
    count = len(list(root.iterdir())) - 3
    assert holds_images(str(root))
    if zipped:
        root = Path(shutil.make_archive(str(root), "zip", root))
    assert sum(map(len, opened(root))) == count
    assert "3 not images" in left_out(root)


def psd() -> bytes:
    """A grey Photoshop file of 16 x 16."""
    header = b"8BPS\0\1" + bytes(6) + b"\0\1" + (16).to_bytes(4, "big") * 2 + b"\0\x08\0\1"
    return header + bytes(12) + b"\0\0" + bytes(range(256))


def test_texts_are_no_images(tmp_path):  # control
    (tmp_path / "P6.txt").write_text("P6 is the name of a format\n")
    (tmp_path / "notes.dat").write_bytes(b"\x0a\x03nothing")  # as a PCX begins
    assert not holds_images(str(tmp_path))
    with pytest.raises(DataError, match="2 not images"):
        opened(tmp_path)


def test_what_needs_a_plug_in_is_known_by_its_content_too(tmp_path):
    fill(tmp_path, "", each=3)
    (tmp_path / "IMG_1.dat").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "video.dat").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0mp42")
    (tmp_path / "is_jpeg.HEIC").write_bytes(encoded("JPEG"))
    tiff = encoded("TIFF", tiffinfo={254: 1})  # "a smaller copy", as raw files begin
    for name in ("unknown.cam", "raw.NEF"):
        (tmp_path / name).write_bytes(tiff)
    (tmp_path / "scan.bak").write_bytes(encoded("TIFF"))
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (tmp_path / "bomb.bak").write_bytes(bomb.getvalue())
    with pytest.raises(DataError, match=r"bomb.bak \(too many pixels"):
        opened(tmp_path)
    (tmp_path / "bomb.bak").unlink()
    assert sum(map(len, opened(tmp_path))) == 5
    line = left_out(tmp_path)
    for counted in ("1 HEIC (", "1 not images", "2 camera raw ("):
        assert counted in line


def test_a_class_none_of_whose_files_can_be_read_is_named(tmp_path):
    root = fill(tmp_path, "cat", "dog", each=3)
    (root / "emu").mkdir()
    (root / "emu" / "a.heic").write_bytes(b"")
    (root / ".git").mkdir()
    (root / ".git" / "a.txt").write_text("")
    line = left_out(root)
    assert "1 folder without an image (emu)" in line
    assert ".git" not in line  # control
    shutil.rmtree(root / "emu")
    assert "folder without" not in left_out(root)


@pytest.mark.parametrize("classes", [["cat"], ["cat", "dog"]])
@pytest.mark.parametrize("zipped", [False, True])
def test_empty_folders_are_named(tmp_path, classes, zipped):
    """Each may have been a class, also where it is then the only one that is left."""
    root = fill(tmp_path / "pets", *classes, each=3)
    for name in ("cat/none", "emu", "fox/hidden/none", ".git"):
        (root / name).mkdir(parents=True)
    (root / "fox/hidden/.DS_Store").touch()
    if zipped:
        shutil.make_archive(str(tmp_path / "pets"), "zip", root)
        root = tmp_path / "pets.zip"
    assert "3 folders without an image (cat/none, emu, fox)" in left_out(root)


def test_a_png_with_a_wrong_checksum_is_damaged(tmp_path):
    """Its pixels can be decoded all the same."""
    root = fill(tmp_path, "cat", "dog", each=3)
    assert len(opened(root)[0]) == 6  # control
    path = sorted((root / "cat").glob("*.png"))[0]
    content = bytearray(path.read_bytes())
    content[-13] ^= 1  # before IEND, of 12 bytes: the last byte of the checksum of the pixels
    path.write_bytes(content)
    Image.open(path).load()  # control
    with pytest.raises(DataError, match=f"{path.name} .*checksum"):
        opened(root)


def test_one_of_two_members_of_one_name_is_counted(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for n, name in enumerate(("a.png", "b.png", "./b.png", "c.png", "d.png", "./././d.png")):
            archive.writestr(name, encoded("PNG", n))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", encoded("PNG", 9))
    train_set, _ = opened(tmp_path / "a.zip")
    assert "3 of the same name as another" in left_out(tmp_path / "a.zip")
    shutil.unpack_archive(tmp_path / "a.zip", tmp_path / "unpacked")  # the last one overwrites
    assert train_set.fingerprint == opened(tmp_path / "unpacked")[0].fingerprint
    assert len(train_set) == 4


def test_links_to_folders_above_are_counted(tmp_path):
    root = fill(tmp_path / "root", "cat", "dog", each=3)
    os.symlink(root, root / "cat" / "again")
    os.symlink(tmp_path, root / "up")
    os.symlink(root / "dog", root / "dog" / "itself")
    assert sum(map(len, opened(root))) == 6
    assert "3 links to a folder above" in left_out(root)


@pytest.mark.parametrize("zipped", [False, True])
def test_sizes_are_read_from_the_head_of_a_file(tmp_path, monkeypatch, zipped):
    root, exif = tmp_path / "set", Image.Exif()
    exif[0x0112] = 6
    root.mkdir()
    photo = Image.effect_noise((1200, 900), 90).convert("RGB")
    for name in ("a.jpg", "b.png", "c.tif", "d.bmp", "e.gif", "f.webp"):
        photo.save(root / name, exif=exif)
    source = Folder(root)
    if zipped:
        source = Zip(Path(shutil.make_archive(str(root), "zip", root)))
    sizes, taken = {}, {}
    for name in sorted(source.walk()):
        file = Counted(source.file(name))
        monkeypatch.setattr(source, "file", lambda _, file=file: file)
        sizes[name], taken[name] = source.size(name), file.taken
        monkeypatch.undo()
        assert sizes[name] == seen_size(source.open(name)[0])
    assert sizes["a.jpg"] == (1200, 900)
    assert sizes["e.gif"] == (900, 1200)
    for name in ("a.jpg", "b.png", "d.bmp", "e.gif"):
        assert taken[name] < 20_000 < (root / name).stat().st_size
    assert taken["f.webp"] >= (root / "f.webp").stat().st_size  # control: Pillow reads it all


class Counted:
    """A file that counts the bytes that are read."""

    def __init__(self, file) -> None:
        self.file, self.taken = file, 0

    def read(self, *size: int) -> bytes:
        content = self.file.read(*size)
        self.taken += len(content)
        return content

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    fill(tmp_path, "", each=3)
    (tmp_path / "notes.dat").write_bytes(encoded("PNG", 9) + bytes(5000))
    assert sum(map(len, opened(tmp_path))) == 4
    monkeypatch.setattr(data.sources, "MAX_FILE_BYTES", 4000)
    assert "1 not images" in left_out(tmp_path)
