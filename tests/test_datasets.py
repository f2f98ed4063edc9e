"""Image sets: their order and range, MNIST's files and their checksums, folders of images."""

import gzip
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DATASETS, DataError, DataNotFound, DataOptions, ImageSet, Loading, idx, load_splits
from data.datasets import idx_part, open_idx, with_channels
from data.idx import IdxFiles
from utils.errors import InputError
from utils.images import normalize, to_uint8

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
TEST_NAMES = [name.replace("train", "t10k") for name in NAMES]
NOWHERE = "http://127.0.0.1:9/"  # nothing listens there


def mnist_files(n: int = 20) -> dict[str, bytes]:
    """The files of a small set in MNIST's format; every grey level occurs."""
    pixels = (np.arange(n * 784) % 256).astype(np.uint8).tobytes()
    labels = (np.arange(n) % 10).astype(np.uint8).tobytes()
    images_file = np.array([2051, n, 28, 28], ">u4").tobytes() + pixels
    labels_file = np.array([2049, n], ">u4").tobytes() + labels
    names = [*NAMES, *TEST_NAMES]
    return dict(zip(names, [images_file, labels_file] * 2, strict=True))


def small_mnist(*mirrors: str, **limits) -> IdxFiles:
    """A registry entry for these files, with their checksums."""
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in mnist_files().items()}
    return replace(idx.MNIST, sha256=sha256, mirrors=mirrors or (NOWHERE,), **limits)


SMALL = small_mnist()
DIGITS = "0,1,2,3,4,5,6,7,8,9"


@pytest.fixture
def mnist(tmp_path) -> Path:
    """A data root with the small set."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in mnist_files().items():
        (folder / name).write_bytes(content)
    return tmp_path


def open_mnist(
    root: Path, files: IdxFiles = SMALL, train: bool = True, download: bool = True
) -> ImageSet:
    options, loading = DataOptions("mnist", str(root)), Loading(download=download)
    return idx_part(files, DIGITS, options, loading, train)


@pytest.fixture
def colours(tmp_path) -> Path:
    """Two classes of ten images of all sizes; the class is the colour."""
    root = tmp_path / "colours"
    for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (root / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20 + i, 40 - i), colour).save(root / label / f"{i}.png")
    return root


def open_colours(root: Path, **loading) -> ImageSet:
    options = DataOptions("folder", str(root), image_size=(16, 16))
    return load_splits(options, loading=Loading(**loading))[0]


# All sets.


def test_images_and_labels_stay_paired_in_the_order_of_the_indices(mnist):
    opened = open_mnist(mnist)
    assert (len(opened), opened.image_shape, opened.num_classes) == (20, (1, 28, 28), 10)
    order = torch.tensor([7, 3, 19, 3, 0])
    batches = list(opened.batches(order, 2))
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    assert torch.cat([y for _, y in batches]).tolist() == [7, 3, 9, 3, 0]
    x = torch.cat([x for x, _ in batches])
    assert torch.equal(x, normalize(opened.images[order]))


def test_the_range_is_exactly_minus_one_to_one(mnist):
    opened = open_mnist(mnist)
    x, _ = next(opened.batches(torch.arange(20), 20))
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), opened.images)


@pytest.fixture
def small(mnist, monkeypatch) -> DataOptions:
    """The small set, which is registered under this name."""
    monkeypatch.setitem(DATASETS, "small", lambda o, loading: open_idx(SMALL, DIGITS, o, loading))
    return DataOptions("small", str(mnist))


def test_padding_keeps_every_pixel(small):
    own, padded = (load_splits(replace(small, image_size=size))[0] for size in ((0, 0), (32, 36)))
    assert padded.name == "small"
    assert padded.image_shape == (1, 32, 36)
    assert torch.equal(padded.images[:, :, 2:30, 4:32], own.images)
    assert padded.images.sum() == own.images.sum()
    with pytest.raises(DataError, match="at least 28"):
        load_splits(replace(small, image_size=(20, 32)))
    with pytest.raises(DataError, match="too much memory"):
        load_splits(replace(small, image_size=(2**17, 2**17)))


def test_other_images_than_those_of_the_fingerprint_are_refused(small):
    train, test = load_splits(small)
    assert len(train) == len(test) == 20
    load_splits(small, train.fingerprint)
    with pytest.raises(DataError, match="not those this run was trained on"):
        load_splits(small, "0" * 64)


def test_chosen_classes_alone_are_left_and_count_anew(small):
    train, test = load_splits(replace(small, classes=("8", "3")))
    assert train.class_names == test.class_names == ("3", "8")
    whole = load_splits(small)[0]
    for label, digit in enumerate((3, 8)):
        own = whole.images[whole.labels == digit]
        assert torch.equal(train.images[train.labels == label], own)
    assert len(train) == 4
    ranged = load_splits(replace(small, classes=("7-9", "0")))[0]
    assert ranged.class_names == ("0", "7", "8", "9")
    with pytest.raises(InputError, match="no class 'dog'; the classes are 0, 1"):
        load_splits(replace(small, classes=("dog",)))


def test_channels_of_a_set_in_memory_are_pillows(small):
    grey, rgb, rgba = (load_splits(replace(small, image_channels=n))[0] for n in (1, 3, 4))
    assert torch.equal(rgb.images, grey.images.expand(-1, 3, -1, -1))
    assert torch.equal(rgba.images[:, :3], rgb.images)
    assert (rgba.images[:, 3] == 255).all()
    random = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    luma = np.array(Image.fromarray(random[0].permute(1, 2, 0).numpy()).convert("L"))
    assert torch.equal(with_channels(random, 1)[0, 0], torch.from_numpy(luma))
    assert not torch.equal(random[0, 1], torch.from_numpy(luma))  # control


@pytest.mark.parametrize(
    "option", [{"fit": "pad"}, {"background": "black"}, {"skip_damaged": True}]
)
def test_an_option_without_effect_is_refused(small, option):
    with pytest.raises(DataError, match=r"^--\w+(-\w+)? has no effect on --dataset small$"):
        load_splits(replace(small, **option))


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"'mnits'.* mnist, .* digits"):
        load_splits(DataOptions("mnits", str(tmp_path)))


def test_a_set_does_not_touch_the_global_random_state(mnist, colours):
    before = torch.get_rng_state()
    list(open_mnist(mnist).batches(torch.arange(20), 8))
    list(open_colours(colours).batches(torch.arange(18), 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["tensor", "stream"])
def test_the_parts_of_all_ranks_are_the_batch(mnist, colours, kind):
    """Also where the last batch has fewer images than there are ranks."""
    opened = open_mnist(mnist) if kind == "tensor" else open_colours(colours, in_memory=0)
    order = torch.arange(18).flip(0)[:7]
    whole = list(opened.batches(order, 6))
    parts = [list(opened.batches(order, 6, (rank, 2))) for rank in (0, 1)]
    assert [len(y) for _, y in parts[1]] == [3, 0]
    for (x, y), *own in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part[0] for part in own]), x)
        assert torch.equal(torch.cat([part[1] for part in own]), y)


# MNIST's files.


def test_gz_files_and_a_read_only_folder_will_do(mnist):
    expected = open_mnist(mnist).fingerprint
    folder = mnist / "MNIST" / "raw"
    for name in NAMES:
        content = (folder / name).read_bytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        (folder / name).unlink()
    folder.chmod(0o555)
    before = sorted(os.listdir(folder))
    assert open_mnist(mnist).fingerprint == expected
    assert sorted(os.listdir(folder)) == before


DAMAGES = {
    "empty": lambda _: b"",
    "short": lambda content: content[:-1],
    "flipped": lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],
    "web page": lambda _: b"<html>404</html>",
    "appended": lambda content: content + b"0",
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", [*NAMES, *TEST_NAMES])
def test_a_damaged_file_is_refused_by_name(mnist, name, kind):
    path, train = mnist / "MNIST" / "raw" / name, name in NAMES
    good = path.read_bytes()
    path.write_bytes(DAMAGES[kind](good))
    with pytest.raises(DataError, match=name) as error:
        open_mnist(mnist, train=train)
    assert not isinstance(error.value, DataNotFound)
    assert "\n" not in str(error.value)
    assert "damaged" in str(error.value)
    assert len(open_mnist(mnist, train=not train)) == 20  # the other half is untouched
    path.with_name(f"{name}.gz").write_bytes(gzip.compress(good))
    assert len(open_mnist(mnist, train=train)) == 20  # the .gz is good


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", [*NAMES, *TEST_NAMES])
def test_a_missing_file_is_named_with_the_remedy(mnist, name, download):
    (mnist / "MNIST" / "raw" / name).unlink()
    with pytest.raises(DataNotFound) as error:
        open_mnist(mnist, train=name in NAMES, download=download)
    for word in (name, str(mnist), "--data-root", "--dataset digits", NOWHERE):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_that_is_not_there_leaves_no_folder(mnist):
    root = mnist / "empty"
    for download in (True, False):
        with pytest.raises(DataNotFound):
            open_mnist(root, download=download)
    assert not root.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (NAMES[0], np.array([2049, 20, 28, 28], ">u4").tobytes() + bytes(20 * 784)),
        (NAMES[0], np.array([2051, 20, 27, 28], ">u4").tobytes() + bytes(20 * 27 * 28)),
        (NAMES[0], np.array([2051, 21, 28, 28], ">u4").tobytes() + bytes(20 * 784)),
        (NAMES[0], np.array([2051, 19, 28, 28], ">u4").tobytes() + bytes(19 * 784)),
        (NAMES[1], np.array([2049, 20], ">u4").tobytes() + bytes([10] * 20)),
    ],
    ids=["magic", "width", "count", "fewer images than labels", "label 10"],
)
def test_files_without_a_known_checksum_are_checked_by_their_format(mnist, name, content):
    unknown = replace(SMALL, sha256={})
    assert len(open_mnist(mnist, unknown)) == 20  # control
    (mnist / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(DataError):
        open_mnist(mnist, unknown)


def test_what_cannot_be_verified_is_not_called_verified(tmp_path):
    """Fashion-MNIST's known checksums are those of its .gz files."""
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"")
    assert "not verifiable" in idx.verification(idx.FASHION_MNIST, tmp_path, train=True)
    for name in NAMES:
        (raw / f"{name}.gz").write_bytes(b"")
    assert idx.verification(idx.FASHION_MNIST, tmp_path, train=True) == "verified"
    with pytest.raises(DataError, match="MD5"):  # the .gz comes first
        idx.read_set(idx.FASHION_MNIST, tmp_path, train=True, download=False)


def test_folders_mirrors_and_checksums_are_torchvisions():
    from torchvision import datasets

    kinds = {
        datasets.MNIST: idx.MNIST,
        datasets.KMNIST: idx.KMNIST,
        datasets.FashionMNIST: idx.FASHION_MNIST,
    }
    for kind, files in kinds.items():
        assert files.folder == f"{kind.__name__}/raw"
        assert files.mirrors == tuple(kind.mirrors)
        assert files is idx.MNIST or files.md5_of_gz == dict(kind.resources)


def test_the_real_mnist_is_verified(real_mnist):
    options = DataOptions("mnist", str(real_mnist))
    train, test = load_splits(options, loading=Loading(download=False))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert "verified" in train.source
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)
