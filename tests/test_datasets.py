"""Image sets: their order and range, MNIST's files and their checksums, folders of images."""

import gzip
import hashlib
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DATASETS, DataError, DataNotFound, ImageSet, ReadError, idx, load, load_splits
from data.datasets import open_idx
from data.idx import IdxFiles
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
    return open_idx(files, root, 0, train, download)


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
def small(mnist, monkeypatch) -> str:
    """The data root of the small set, which is registered under this name."""
    monkeypatch.setitem(DATASETS, "small", lambda root, _, train, __: open_mnist(root, train=train))
    return str(mnist)


def test_padding_keeps_every_pixel(small):
    own, padded = (load("small", small, size) for size in (0, 32))
    assert padded.name == "small"
    assert padded.image_shape == (1, 32, 32)
    assert torch.equal(padded.images[:, :, 2:30, 2:30], own.images)
    assert padded.images.sum() == own.images.sum()
    with pytest.raises(DataError, match="at least 28"):
        load("small", small, 20)
    with pytest.raises(DataError, match="too much memory"):
        load("small", small, 2**17)


def test_other_images_than_those_of_the_fingerprint_are_refused(small):
    train, test = load_splits("small", small, 0)
    assert len(train) == len(test) == 20
    load_splits("small", small, 0, train.fingerprint)
    with pytest.raises(DataError, match="not those this run was trained on"):
        load_splits("small", small, 0, "0" * 64)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"'mnits'.* mnist, .* digits"):
        load("mnits", str(tmp_path), 0)


def test_a_set_does_not_touch_the_global_random_state(mnist, colours):
    before = torch.get_rng_state()
    list(open_mnist(mnist).batches(torch.arange(20), 8))
    list(load("folder", str(colours), 16).batches(torch.arange(18), 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["tensor", "stream"])
def test_the_parts_of_all_ranks_are_the_batch(mnist, colours, kind):
    """Also where the last batch has fewer images than there are ranks."""
    opened = open_mnist(mnist) if kind == "tensor" else load("folder", str(colours), 16)
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
    train, test = (
        load("mnist", str(real_mnist), 0, part, download=False) for part in (True, False)
    )
    assert (len(train), len(test)) == (60_000, 10_000)
    assert "verified" in train.source
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


# Folders of images.


@pytest.fixture
def colours(tmp_path) -> Path:
    """Two classes of ten images of all sizes; the class is the colour."""
    root = tmp_path / "colours"
    for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (root / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20 + i, 40 - i), colour).save(root / label / f"{i}.png")
    return root


def test_a_folder_streams_in_the_order_of_the_indices_with_labels(colours):
    train, test = (load("folder", str(colours), 16, part) for part in (True, False))
    assert (len(train), len(test), train.num_classes) == (18, 2, 2)
    assert train.fingerprint != test.fingerprint
    order = torch.tensor([17, 0, 8, 9])
    x, y = (torch.cat(parts) for parts in zip(*train.batches(order, 3), strict=True))
    assert x.shape == (4, 3, 16, 16)
    assert y.tolist() == [1, 0, 0, 1]
    assert torch.equal(x[0, :, 0, 0], torch.tensor([1.0, -1, -1]))
    assert torch.equal(x[1, :, 0, 0], torch.tensor([-1.0, -1, 1]))


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(DataNotFound, match="one folder of images per class") as error:
        load("folder", str(tmp_path / "none"), 16)
    assert "\n" not in str(error.value)


def test_a_broken_image_is_one_line_and_named(colours):
    opened = load("folder", str(colours), 16)
    assert len(list(opened.batches(torch.arange(18), 4))) == 5
    (colours / "red" / "3.png").write_bytes(b"not an image")
    with pytest.raises(ReadError, match=r"3\.png") as error:
        list(opened.batches(torch.arange(18), 4))
    assert "\n" not in str(error.value)


def test_workers_leave_ctrl_c_to_the_main_process(colours):
    batches = load("folder", str(colours), 16).batches(torch.arange(18), 1)
    next(batches)
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 17
