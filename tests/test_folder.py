"""Folders, zips and array files: what is found, left out, held out, cached, refused."""

import io
import os
import random
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import NETWORK, count
from PIL import Image

import data.cache
import train
from data import DataError, DataNotFound, DataOptions, Loading, ReadError, load_splits, report
from data.class_names import match_classes, natural_key, readable
from data.folder import list_source
from data.held_out import MIN_IMAGES, choose_held_out
from data.image_set import Damage, StreamSet, TensorSet
from data.sources import Folder
from utils.errors import InputError

STREAMED, IN_MEMORY = Loading(in_memory=0), Loading()


def picture(n: int, channels: int = 3, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Another one for every n; uint8 (H, W[, C])."""
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(n).integers(0, 256, shape, dtype=np.uint8)


def put(path: Path, n: int, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(n, **how)).save(path)
    return path


def fill(root: Path, *folders: str, each: int = 10, **how) -> Path:
    """The same number of images in each of the folders, all different."""
    for i, folder in enumerate(folders):
        for j in range(each):
            put(root / folder / f"{j:03d}.png", i * each + j, **how)
    return root


def opened(root: Path, loading: Loading = IN_MEMORY, **options):
    return load_splits(DataOptions("folder", str(root), **options), loading=loading)


def all_images(*parts) -> set[bytes]:
    return {image.numpy().tobytes() for part in parts for image in part.images}


# What folders mean.


def test_images_in_one_folder_have_no_classes(tmp_path):
    train_set, test_set = opened(fill(tmp_path, "", each=30))
    assert (len(train_set), len(test_set), train_set.class_names) == (27, 3, ())
    assert not train_set.labels.any()
    expected = {torch.from_numpy(picture(n)).permute(2, 0, 1).contiguous() for n in range(30)}
    assert all_images(train_set, test_set) == {x.numpy().tobytes() for x in expected}


@pytest.mark.parametrize("wrapped", ["", "pets/"])
def test_folders_are_classes_also_nested_and_numbers_sort_as_numbers(tmp_path, wrapped):
    names = [f"{wrapped}{n}" for n in (1, 2, 10, 11)]
    fill(tmp_path, *names[:3], f"{names[3]}/nested/deep")
    train_set, test_set = opened(tmp_path)
    assert train_set.class_names == test_set.class_names == ("1", "2", "10", "11")
    assert train_set.labels.bincount().tolist() == [9] * 4
    assert test_set.labels.bincount().tolist() == [1] * 4
    of_last = [picture(n) for n in range(30, 40)]
    own = train_set.images[train_set.labels == 3]
    assert all_images(replace(train_set, images=own)) < {
        np.ascontiguousarray(x.transpose(2, 0, 1)).tobytes() for x in of_last
    }


@pytest.mark.parametrize("test", ["test", "val", "Valid"])
def test_train_and_test_folders_are_the_two_sets(tmp_path, test):
    fill(tmp_path, "train/cat", "train/dog", f"{test}/cat", f"{test}/dog", each=3)
    train_set, test_set = opened(tmp_path)
    assert (len(train_set), len(test_set)) == (6, 6)
    assert train_set.class_names == test_set.class_names == ("cat", "dog")
    assert all_images(train_set).isdisjoint(all_images(test_set))
    assert test_set.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_train_and_test_may_lack_classes_both_but_not_one(tmp_path):
    fill(tmp_path, "train", "test", each=3)
    train_set, test_set = opened(tmp_path)
    assert (len(train_set), len(test_set), train_set.class_names) == (3, 3, ())
    fill(tmp_path, "test/cat", "test/dog")
    assert opened(tmp_path)[1].class_names == ()
    fill(tmp_path, "train/cat", "train/cow")
    with pytest.raises(DataError, match=r"test/ has classes that train/ lacks: dog"):
        opened(tmp_path)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(DataError, match="has test/ but no train/"):
        opened(fill(tmp_path, "val", each=1))


@pytest.mark.parametrize(
    ("train_name", "test_name"),
    [
        ("training_set", "test_set"),
        ("Training", "Testing"),
        ("train2017", "val2017"),
        ("train_images", "test_images"),
    ],
)
def test_the_two_sets_have_many_names(tmp_path, train_name, test_name):
    fill(tmp_path, *(f"{part}/{c}" for part in (train_name, test_name) for c in "ab"), each=3)
    train_set, test_set = opened(tmp_path)
    assert (len(train_set), len(test_set), train_set.class_names) == (6, 6, ("a", "b"))


def test_a_test_folder_may_lack_classes_and_one_that_fits_is_taken(tmp_path):
    fill(tmp_path, "train/a", "train/b", "valid/b", "test", each=4)  # test/ is not labelled
    train_set, test_set = opened(tmp_path)
    assert (len(train_set), test_set.labels.tolist()) == (8, [1] * 4)
    lines = report(train_set, test_set)
    assert "left out: 4 outside train/ and valid/" in lines
    assert "held out: no image of a" in lines


def test_a_class_may_be_called_test(tmp_path):
    assert opened(fill(tmp_path, "test", "plane"))[0].class_names == ("plane", "test")


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    fill(tmp_path, "cat", "dog")
    for name in (".DS_Store", "cat/.hidden.png", "__MACOSX/cat/1.png", ".ipynb_checkpoints/2.png"):
        shutil.copy(
            put(tmp_path / "cat/000.png", 0),
            put(tmp_path / name, 0) if ".png" in name else tmp_path / name,
        )
    for name in ("notes.txt", "cat/labels.csv", "IMG_1.HEIC", "dog/raw.NEF"):
        (tmp_path / name).write_bytes(b"x")
    put(tmp_path / "beside.png", 99)
    (tmp_path / "empty").mkdir()
    os.symlink(tmp_path / "nothing", tmp_path / "cat/broken.png")
    os.mkfifo(tmp_path / "cat/pipe.png")
    train_set, test_set = opened(tmp_path)
    assert train_set.class_names == ("cat", "dog")
    (line,) = [line for line in report(train_set, test_set) if line.startswith("left out")]
    for counted in (
        "4 hidden",
        "2 not images",
        "1 HEIC (convert",
        "1 camera raw (convert",
        "1 beside the class folders",
        "2 not regular files",
    ):
        assert counted in line


def test_names_are_read_whatever_they_are(tmp_path):
    fill(tmp_path, "caf\udce9", "dög", each=6)
    put(tmp_path / "dög/photo.PNG", 50)
    put(tmp_path / "dög/extensionless.png", 51).rename(tmp_path / "dög/extensionless")
    put(tmp_path / "dög/really.png", 52).rename(tmp_path / "dög/really.jpg")
    (tmp_path / "dög/README").write_text("not an image")
    train_set, test_set = opened(tmp_path)
    assert train_set.class_names == ("caf\\xe9", "dög")
    assert len(train_set) + len(test_set) == 15
    assert opened(tmp_path, classes=("caf\udce9",))[0].class_names == ("caf\\xe9",)
    print("\n".join(report(train_set, test_set)).encode())


def test_links_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path / "elsewhere", "cat", "dog")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("cat", "dog"):
        os.symlink(tmp_path / "elsewhere" / name, root / name)
    os.symlink(root, root / "cat" / "again")
    train_set, test_set = opened(root)
    assert (len(train_set) + len(test_set), train_set.class_names) == (20, ("cat", "dog"))


def test_a_zip_is_read_as_the_folder_in_it(tmp_path):
    fill(tmp_path / "pets", "cat", "dog")
    (tmp_path / "pets/.DS_Store").write_bytes(b"x")
    path = Path(shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path, "pets"))
    from_folder, from_zip = opened(tmp_path / "pets"), opened(path)
    for a, b in zip(from_folder, from_zip, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert a.fingerprint == b.fingerprint
    assert sorted(os.listdir(tmp_path)) == ["pets", "pets.zip"]
    streamed = opened(path, STREAMED)[0]
    batches = [x for x, _ in streamed.batches(torch.arange(18), 5)]
    expected = [x for x, _ in from_folder[0].batches(torch.arange(18), 5)]
    assert torch.equal(torch.cat(batches), torch.cat(expected))


# Array files.


IMAGES = np.stack([picture(n) for n in range(40)])
LABELS = np.arange(40) % 3 + 5


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("images", "y"), ("x", "y"), ("arr_0", "arr_1")]
)
def test_an_npz_has_images_and_labels(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (IMAGES, LABELS), strict=True)))
    train_set, test_set = opened(tmp_path / "a.npz")
    assert train_set.class_names == ("5", "6", "7")
    assert len(train_set) + len(test_set) == 40
    for part in (train_set, test_set):
        for image, label in zip(part.images, part.labels, strict=True):
            (n,) = np.flatnonzero((image.permute(1, 2, 0).numpy() == IMAGES).all((1, 2, 3)))
            assert LABELS[n] == 5 + label


def test_labels_may_be_whole_numbers_stored_as_floats(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS.astype(np.float32))
    assert opened(tmp_path / "a.npz")[0].class_names == ("5", "6", "7")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_npy_has_images_alone_of_any_channels(tmp_path, channels):
    images = np.stack([picture(n, channels=channels) for n in range(30)])
    np.save(tmp_path / "a.npy", images)
    train_set, test_set = opened(tmp_path / "a.npy")
    assert train_set.class_names == ()
    assert train_set.image_shape == ((1 if channels < 3 else 3), 16, 16)
    assert len(train_set) + len(test_set) == 30
    if channels == 1:
        assert all_images(train_set, test_set) == {x.tobytes() for x in images}


def test_arrays_of_a_test_set_are_held_out(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        x_train=IMAGES,
        y_train=LABELS,
        x_test=IMAGES[:6],
        y_test=LABELS[:6].astype(str),
    )
    train_set, test_set = opened(tmp_path / "a.npz")
    assert (len(train_set), len(test_set)) == (40, 6)
    assert test_set.labels.tolist() == [0, 1, 2] * 2


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES / 255}, "must be uint8"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, "put the channels last"),
        ({"images": IMAGES[0, 0]}, r"must be \(N, H, W\)"),
        ({"images": IMAGES[:0]}, r"must be \(N, H, W\)"),
        ({"images": IMAGES, "labels": LABELS[:7]}, "40 whole numbers"),
        ({"images": IMAGES, "labels": LABELS / 2}, "whole numbers"),
        ({"images": IMAGES, "labels": LABELS * np.inf}, "whole numbers"),
        ({"images": IMAGES, "labels": LABELS * np.nan}, "whole numbers"),
        ({"images": IMAGES, "labels": LABELS * 1e300}, "whole numbers"),
        ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES}, "x_test or x_train has no lab"),
        ({"images": IMAGES[0]}, "this is one image"),
        ({"other": IMAGES}, "no array named images.*only other"),
        ({"images": np.array([None])}, "cannot read the arrays"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words) as error:
        opened(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


# Channels and sizes.


def test_grey_is_learnt_as_grey(tmp_path):
    fill(tmp_path / "grey", "", each=25, channels=1)
    for n in range(3):  # grey, but stored as colour
        Image.fromarray(picture(n, 1)).convert("RGB").save(tmp_path / f"grey/rgb{n}.png")
    assert opened(tmp_path / "grey")[0].image_shape == (1, 16, 16)
    assert opened(tmp_path / "grey", STREAMED)[0].image_shape == (1, 16, 16)
    assert opened(tmp_path / "grey", image_channels=3)[0].image_shape == (3, 16, 16)
    put(tmp_path / "grey/colour.png", 0)
    assert opened(tmp_path / "grey")[0].image_shape == (3, 16, 16)
    assert opened(tmp_path / "grey", image_channels=1)[0].image_shape == (1, 16, 16)
    assert opened(tmp_path / "grey", image_channels=4)[0].image_shape == (4, 16, 16)


def test_the_size_is_the_sets_own_where_all_share_it(tmp_path):
    assert opened(fill(tmp_path / "a", "", size=(20, 28)))[0].image_shape == (3, 20, 28)
    assert opened(tmp_path / "a", image_size=(8, 12))[0].image_shape == (3, 8, 12)
    assert opened(tmp_path / "a", Loading(size_multiple=8))[0].image_shape == (3, 16, 24)
    put(tmp_path / "a/other.png", 9, size=(40, 70))
    assert opened(tmp_path / "a")[0].image_shape == (3, 16, 16)  # near the median of 20
    fill(tmp_path / "b", "", each=3, size=(300, 300))
    put(tmp_path / "b/other.png", 9, size=(400, 500))
    assert opened(tmp_path / "b")[0].image_shape == (3, 64, 64)


def test_what_is_cropped_is_said_where_it_is_much(tmp_path):
    fill(tmp_path, "", each=4, size=(16, 32))
    notes = " ".join(opened(tmp_path, image_size=(16, 16))[0].notes)
    assert "16x32, learnt as 16x16 RGB; cropping cuts off 50 %" in notes
    assert "cuts off" not in " ".join(opened(tmp_path, image_size=(16, 30))[0].notes)
    assert "(pad)" in " ".join(opened(tmp_path, image_size=(16, 16), fit="pad")[0].notes)


# Held-out images.


@pytest.mark.parametrize(("images", "expected"), [(1, 0), (19, 0), (20, 2), (95, 9), (1000, 100)])
def test_a_tenth_is_held_out_but_nothing_of_few(images, expected):
    digests = torch.randint(0, 256, (images, 32), dtype=torch.uint8)
    chosen = choose_held_out(torch.zeros(images, dtype=torch.int64), digests)
    assert chosen.sum() == expected
    assert MIN_IMAGES == 20


def test_held_out_images_are_of_every_class_that_has_enough():
    labels = torch.tensor([0] * 50 + [1] * 9 + [2] * 5 + [3] * 4 + [4])
    digests = torch.randint(0, 256, (len(labels), 32), dtype=torch.uint8)
    chosen = choose_held_out(labels, digests)
    assert [int(chosen[labels == label].sum()) for label in range(5)] == [5, 1, 1, 0, 0]


def test_copies_are_on_one_side():
    digests = torch.randint(0, 256, (60, 32), dtype=torch.uint8).repeat(2, 1)
    labels = torch.tensor([0] * 60 + [1] * 60)
    chosen = choose_held_out(labels, digests)
    assert torch.equal(chosen[:60], chosen[60:])
    assert 6 <= chosen[:60].sum() <= 12
    labels[90:] = 2  # the copies in two classes of their own
    assert torch.equal(*choose_held_out(labels, digests).view(2, 60))


def test_copies_leave_something_to_train_on():
    """Thirty copies of one image count as one; a class of copies of another's keeps them."""
    one = torch.zeros(30, 32, dtype=torch.uint8)
    assert not choose_held_out(torch.zeros(30, dtype=torch.int64), one).any()
    digests = torch.randint(0, 256, (40, 32), dtype=torch.uint8)
    labels = torch.zeros(50, dtype=torch.int64)
    labels[40:] = 1
    chosen = choose_held_out(labels[:40], digests)
    copied = digests[chosen][:1].repeat(10, 1)
    both = choose_held_out(labels, torch.cat([digests, copied]))
    assert torch.equal(both[:40], chosen)
    assert not both[40:].any()


def test_another_image_does_not_change_the_lot_of_the_others():
    digests = torch.randint(0, 256, (100, 32), dtype=torch.uint8)
    labels = torch.zeros(100, dtype=torch.int64)
    before, after = choose_held_out(labels[:99], digests[:99]), choose_held_out(labels, digests)
    assert (before != after[:99]).sum() <= 2
    assert not torch.equal(after, choose_held_out(labels, digests.flip(0)))  # control: by content


def test_without_held_out_images_it_is_said(tmp_path):
    few = opened(fill(tmp_path / "a", "", each=3))
    assert "held out: none" in report(*few)[-1]
    some = opened(fill(tmp_path / "b", "cat", "dog", "rat", each=9))
    shutil.rmtree(tmp_path / "b/rat")
    put(tmp_path / "b/rat/1.png", 999)
    put(tmp_path / "b/emu/1.png", 998)
    assert not any("no image of" in line for line in report(*some))
    assert "held out: no image of emu, rat" in report(*opened(tmp_path / "b"))[-1]


# The cache and the fingerprint.


def test_a_second_start_decodes_nothing(tmp_path, monkeypatch):
    root, cache = fill(tmp_path / "set", "cat", "dog"), Loading(cache=tmp_path / "cache")
    first = opened(root, cache)
    monkeypatch.setattr(data.cache, "decode_all", None)
    for a, b in zip(first, opened(root, cache), strict=True):
        assert torch.equal(a.images, b.images)
        assert (a.fingerprint, a.class_names, a.notes) == (b.fingerprint, b.class_names, b.notes)
    with pytest.raises(TypeError):  # control: another size has to be decoded
        opened(root, cache, image_size=(8, 8))


def test_a_resumed_run_finds_what_the_first_start_decoded(tmp_path, capsys):
    """It asks for the size and the channels that came out, whatever multiple its network needs."""
    root = fill(tmp_path / "set", "", each=5, channels=1)
    first = opened(root, Loading(cache=tmp_path / "cache", size_multiple=4))
    assert "Reading" in capsys.readouterr().out
    options = {"image_size": first[0].image_shape[1:], "image_channels": 1}
    for multiple in (4, 1):
        again = opened(root, Loading(cache=tmp_path / "cache", size_multiple=multiple), **options)
        assert "Reading" not in capsys.readouterr().out
        assert torch.equal(again[0].images, first[0].images)
    opened(root, Loading(cache=tmp_path / "cache"), **(options | {"image_channels": 3}))
    assert "Reading" in capsys.readouterr().out  # control


def test_a_changed_file_is_noticed_even_if_its_size_and_time_are_the_same(tmp_path):
    root, cache = fill(tmp_path / "set", "", each=5, channels=1), Loading(cache=tmp_path / "cache")
    before = opened(root, cache)[0]
    path = root / "003.png"
    old, about = path.read_bytes(), path.stat()
    put(path, 77, channels=1)
    assert path.stat().st_size == about.st_size
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    after = opened(root, cache)[0]
    assert (before.images != after.images).flatten(1).any(1).tolist() == [n == 3 for n in range(5)]
    assert before.fingerprint != after.fingerprint
    path.write_bytes(old)  # control
    assert opened(root, cache)[0].fingerprint == before.fingerprint


def test_the_fingerprint_is_of_content_not_of_names(tmp_path):
    a, b = fill(tmp_path / "a", "cat", "dog", each=4), fill(tmp_path / "b", "cat", "dog", each=4)
    prints = [opened(root)[0].fingerprint for root in (a, b)]
    assert prints[0] == prints[1] == opened(a, STREAMED)[0].fingerprint
    (b / "cat/003.png").rename(b / "cat/other.png")
    assert opened(b)[0].fingerprint == prints[0]
    for change in ({"image_size": (8, 8)}, {"background": "black"}, {"image_channels": 1}):
        assert opened(b, **change)[0].fingerprint != prints[0]
    (b / "dog/003.png").rename(b / "cat/zzz.png")
    assert opened(b)[0].fingerprint != prints[0]


def test_a_damaged_cache_is_replaced(tmp_path, capsys):
    root, cache = fill(tmp_path / "set", "", each=5), Loading(cache=tmp_path / "cache")
    images = opened(root, cache)[0].images
    path = next((tmp_path / "cache").glob("*.pt"))  # one file, of two names
    path.write_bytes(path.read_bytes()[:-100])
    assert torch.equal(opened(root, cache)[0].images, images)
    assert "decoding anew" in capsys.readouterr().out
    opened(root, cache)
    assert "Reading" not in capsys.readouterr().out


def test_streamed_images_are_those_in_memory(tmp_path):
    for n in range(30):
        put(tmp_path / ("cat", "dog")[n % 2] / f"{n}.png", n, size=(16 + n % 3, 20))
    in_memory = opened(tmp_path, image_size=(16, 16))
    streamed = opened(tmp_path, STREAMED, image_size=(16, 16))
    assert isinstance(in_memory[0], TensorSet)
    assert isinstance(streamed[0], StreamSet)
    order = torch.randperm(len(in_memory[0]))
    for a, b in zip(in_memory, streamed, strict=True):
        assert a.fingerprint == b.fingerprint
        own = order[order < len(a)]
        for (x, y), (x_s, y_s) in zip(a.batches(own, 4), b.batches(own, 4), strict=True):
            assert torch.equal(x, x_s)
            assert torch.equal(y, y_s)


# Damaged files.


def test_a_damaged_file_is_named_before_anything_else(tmp_path):
    fill(tmp_path / "set", "", each=25)
    for n in range(5):
        path = tmp_path / f"set/{n:03d}.png"
        path.write_bytes(path.read_bytes()[:60])
    loading = Loading(cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"5 files .*000\.png .*002\.png .* 2 more; .*--skip-dam"):
        opened(tmp_path / "set", loading)
    assert not (tmp_path / "cache").exists()
    train_set, test_set = opened(tmp_path / "set", loading, skip_damaged=True)
    assert len(train_set) + len(test_set) == 20
    assert "left out: 5 damaged" in report(train_set, test_set)
    with pytest.raises(DataError, match="5 files"):  # also from the cache
        opened(tmp_path / "set", loading)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"\0" * 100, "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
    ],
)
def test_a_file_that_is_no_image_is_damaged_whatever_its_name(tmp_path, content, reason):
    fill(tmp_path, "", each=3)
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"1 file cannot be read: bad\.jpg \({reason}"):
        opened(tmp_path)


def test_a_bomb_is_refused_by_name(tmp_path):
    fill(tmp_path, "", each=3)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png \(too many pixels"):
        opened(tmp_path)


def damaged(kind: str, n: int) -> bytes:
    """An image of this format, with a random fault."""
    chance, file = random.Random(f"{kind} {n}"), io.BytesIO()
    modes = {"GIF": "P", "JPEG2000": "RGB", "PCX": "P", "TIFF": ("RGB", "L", "I;16", "CMYK")[n % 4]}
    image = (
        Image.fromarray(picture(n, 1).astype(np.uint16) * 257)
        if modes.get(kind) == "I;16"
        else Image.fromarray(picture(n)).convert(modes.get(kind, "RGB"))
    )
    image.save(file, kind)
    content = bytearray(file.getvalue())
    if n % 3 == 0:
        del content[chance.randrange(len(content)) :]
    elif n % 3 == 1:
        for _ in range(chance.choice([1, 3, 30])):
            content[chance.randrange(len(content))] = chance.randrange(256)
    else:
        start = chance.randrange(len(content))
        content[start : start + 200] = bytes(min(200, len(content) - start))
    return bytes(content)


FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
    "TGA",
    "PCX",
    "SGI",
    "ICO",
    "DDS",
    "JPEG2000",
    "AVIF",
    "QOI",
    "IM",
    "ICNS",
    "MPO",
]


@pytest.mark.parametrize("each", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_random_faults_give_a_line_each(tmp_path, each):
    """Every file is either read or named in one line; nothing else happens."""
    names = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
    for kind in FORMATS:
        for n in range(each):
            name = f"{kind}{n}.{names.get(kind, kind.lower())}"
            (tmp_path / name).write_bytes(damaged(kind, n))
    fill(tmp_path, "", each=2)
    total = len(FORMATS) * each
    with pytest.raises(DataError, match=r"files cannot be read") as error:
        opened(tmp_path, image_size=(16, 16))
    assert "\n" not in str(error.value)
    train_set, test_set = opened(tmp_path, image_size=(16, 16), skip_damaged=True)
    (line,) = [line for line in report(train_set, test_set) if line.startswith("left out")]
    bad = int(line.split()[-2])
    assert line == f"left out: {bad} damaged"
    assert total // 3 < bad < total
    assert len(train_set) + len(test_set) == total + 2 - bad
    end = "read, or left out and counted; without --skip-damaged one line"
    count("an image file with random faults, 18 formats", total, bad, end)


def test_a_file_damaged_later_is_replaced_and_counted(tmp_path, capsys):
    root = fill(tmp_path, "cat", "dog")
    train_set = opened(root, STREAMED)[0]
    order = torch.arange(len(train_set))
    whole = torch.cat([x for x, _ in train_set.batches(order, 4)])
    (root / train_set.files[5]).write_bytes(b"gone")
    for _ in range(2):
        x, y = (torch.cat(part) for part in zip(*train_set.batches(order, 4), strict=True))
        assert torch.equal(x[5], whole[6])
        assert y[5] == train_set.labels[6]
        assert torch.equal(x[:5], whole[:5])
        assert torch.equal(x[6:], whole[6:])
    error = capsys.readouterr().err
    assert error.count("cannot read cat/") == error.count("\n") == 1


def test_the_tenth_damaged_file_is_one_too_many(tmp_path):
    root = fill(tmp_path, "", each=40)
    train_set = opened(root, STREAMED)[0]
    for name in train_set.files[:9]:
        (root / name).write_bytes(b"gone")
    order = torch.arange(len(train_set))
    assert len(list(train_set.batches(order, 4))) == 9
    (root / train_set.files[20]).unlink()
    with pytest.raises(ReadError, match="file 10: is the disk in order"):
        list(train_set.batches(order, 4))


def test_damage_counts_files_not_times():
    damage = Damage(3)
    for _ in range(5):
        damage.note("a", "gone")
    damage.note("b", "gone")
    with pytest.raises(ReadError):
        damage.note("c", "gone")


# Words and messages.


def test_natural_order():
    names = ["10", "2", "a10", "a9", "1", "b", "02"]
    assert sorted(names, key=natural_key) == ["1", "02", "2", "10", "a9", "a10", "b"]
    names = ["1", "0.5", "-1", "10", "-0.25", "0", "+2", "-10", "0.25", "x-1", "3x"]
    expected = ["-10", "-1", "-0.25", "0", "0.25", "0.5", "1", "+2", "3x", "10", "x-1"]
    assert sorted(names, key=natural_key) == expected
    assert sorted(["1.10.2", "1.9.2"], key=natural_key) == ["1.9.2", "1.10.2"]  # no number


def test_classes_by_name_number_and_range():
    assert match_classes(["dog", "cat"], ["cat", "dog"]) == [1, 0]
    assert match_classes(["0", "dog"], ["cat", "dog"]) == [0, 1]
    assert match_classes(["10"], ["1", "2", "10"]) == [2]  # a name, not a number
    assert match_classes(["1-10"], ["1", "2", "10"]) == [0, 1, 2]
    assert match_classes(["t-shirt"], ["t-shirt", "bag"]) == [0]
    assert match_classes(["-1"], ["-1", "0", "1"]) == [0]
    assert match_classes(["-1-1", "0"], ["-1", "0", "1"]) == [0, 1, 2, 1]
    with pytest.raises(InputError, match="no class '0'"):
        match_classes(["0"], ["-1", "-2"])  # names that are numbers
    for words in (["3"], ["bird"], [""], ["10-1"]):
        with pytest.raises(InputError, match="the classes are 1, 2, 10"):
            match_classes(words, ["1", "2", "10"])
    assert readable("dög") == "dög" == readable("do\u0308g")
    assert readable("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert sorted(["9" * 5000, "10"], key=natural_key)[0] == "10"


def test_names_with_commas_are_typed_as_they_are():
    names = ["Smith, John", "a", "a,b", "b", "c,,d", "e,"]
    for text, labels in (
        ("Smith, John", [0]),
        ("b,Smith, John,a", [3, 0, 1]),
        ("a,b", [2]),  # the whole name comes first
        ("b,a", [3, 1]),
        ("c,,d,a,b,e,", [4, 2, 5]),
    ):
        assert match_classes(text.split(","), names) == labels
    for text in ("Smith", "Smith,John", "a,", "c,d"):
        with pytest.raises(
            InputError, match=r"no class .* the classes are 'Smith, John', a, 'a,b'"
        ):
            match_classes(text.split(","), names)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "missing", "there is no"),
        (lambda root: root, "no images in"),
        (lambda root: (root / "a.txt").write_text("x") and root, "1 not images"),
        (lambda root: (root / "a.heic").write_bytes(b"x") and root, "1 HEIC"),
        (lambda root: (root / "a.csv").write_text("x") and root / "a.csv", "cannot read images"),
        (lambda root: (root / "a.zip").write_text("x") and root / "a.zip", "cannot read the zip"),
        (lambda root: (root / "a.npz").write_text("x") and root / "a.npz", "cannot read the arr"),
        (lambda root: (root / "a.npy").write_text("x") and root / "a.npy", "cannot read the arr"),
    ],
)
def test_a_place_without_images_says_what_is_accepted(tmp_path, make, words):
    root = tmp_path / "set"
    root.mkdir()
    with pytest.raises(DataError, match=words) as error:
        opened(make(root))
    assert "\n" not in str(error.value)
    assert isinstance(error.value, DataNotFound) == ("cannot" not in words)


def test_names_in_a_zip_may_be_of_windows(tmp_path):
    good = put(tmp_path / "good.png", 0).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("cat\\1.png", "cat\\2.png", "dog\\1.png", "/dog/2.png"):
            info = zipfile.ZipInfo()
            info.filename = name
            archive.writestr(info, good)
    assert opened(tmp_path / "a.zip")[0].class_names == ("cat", "dog")


@pytest.mark.parametrize("kind", ["compressed", "plain", "zip"])
def test_a_damaged_container_is_one_line(tmp_path, kind):
    fill(tmp_path / "set", "cat", "dog", each=3)
    if kind == "zip":
        path = Path(shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "set"))
    else:
        path = tmp_path / "a.npz"
        {"compressed": np.savez_compressed, "plain": np.savez}[kind](path, images=IMAGES, y=LABELS)
    good, refused = path.read_bytes(), 0
    for n in range(60):
        chance, content = random.Random(n), bytearray(good)
        for _ in range(chance.choice([1, 3, 30])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        line = refusal(path)
        assert "\n" not in line
        refused += bool(line)
    assert refused > 10


def refusal(path: Path) -> str:
    """The line with which it is refused; empty if it is read."""
    try:
        opened(path)
        return ""
    except DataError as e:
        return str(e)


def zip_of(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/") + ".png", content)
    return path


def test_a_zip_with_a_damaged_member_names_it(tmp_path):
    good = put(tmp_path / "good.png", 0).read_bytes()
    path = zip_of(tmp_path / "a.zip", good=good, bad=b"bad")
    with pytest.raises(DataError, match=r"bad\.png"):
        opened(path)
    content = bytearray(path.read_bytes())
    content[60] ^= 1  # within the first member: its CRC does not fit
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"good\.png"):
        opened(path)


def test_images_without_the_word_folder_are_not_replaced_by_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pets", "cat", "dog")
    network = NETWORK[NETWORK.index("--device") :]  # without --dataset
    assert train.main([*network, "--data-root", "pets", "--max-steps", "2"]) == 2
    captured = capsys.readouterr()
    assert "type --dataset folder" in captured.err
    assert captured.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["pets"]


@pytest.mark.parametrize("name", ["a.zip", "a.npz", "a.npy", "a.png"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, name):
    """Opened, a pipe would wait for a writer."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: not a regular file"):
        list_source(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        Folder(tmp_path).file(name)
    (tmp_path / "file.png").write_bytes(b"a")
    with Folder(tmp_path).file("file.png") as file:  # control
        assert file.read() == b"a"
