"""Image sets: what is opened, that it is verified, that nothing hangs and nothing half is kept."""

import gzip
import hashlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

import data.datasets
from data import DATASETS, DataError, DataNotFound, ReadError, download, idx, load

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
TEST_NAMES = [name.replace("train", "t10k") for name in NAMES]
NOWHERE = "http://127.0.0.1:9/"  # nothing listens there


def mnist_files(n: int = 20) -> dict[str, bytes]:
    """The two training files of a small set in MNIST's format; every grey level occurs."""
    pixels = (np.arange(n * 784) % 256).astype(np.uint8).tobytes()
    labels = (np.arange(n) % 10).astype(np.uint8).tobytes()
    return {
        NAMES[0]: np.array([2051, n, 28, 28], ">u4").tobytes() + pixels,
        NAMES[1]: np.array([2049, n], ">u4").tobytes() + labels,
    }


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    """A data root with a small MNIST whose checksums are the pinned ones; no mirror answers."""
    files = mnist_files()
    files |= dict(zip(TEST_NAMES, files.values(), strict=True))
    known = replace(
        idx.MNIST,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        mirrors=(NOWHERE,),
    )
    monkeypatch.setitem(DATASETS, "mnist", data.datasets.idx(known))
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tmp_path


def serve(monkeypatch, answer) -> str:
    """A web server on this machine; answer(path) gives the content."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = answer(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    files = mnist_files()
    known = replace(
        idx.MNIST,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        mirrors=(NOWHERE, url),  # the first one is down
    )
    monkeypatch.setitem(DATASETS, "mnist", data.datasets.idx(known))
    return url


def open_mnist(root, size=0, **options):
    return load("mnist", str(root), size, train=True, **options)


def test_images_and_labels_travel_together_in_the_order_asked_for(mnist):
    opened = open_mnist(mnist)
    assert (len(opened), opened.image_shape, opened.num_classes) == (20, (1, 28, 28), 10)
    order = torch.tensor([7, 3, 19, 3, 0])
    batches = list(opened.batches(order, 2))
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    assert torch.cat([y for _, y in batches]).tolist() == [7, 3, 9, 3, 0]
    x = torch.cat([x for x, _ in batches])
    assert torch.equal(x, opened.images[order].float() / 127.5 - 1)


def test_the_range_is_exactly_minus_one_to_one(mnist):
    x, _ = next(open_mnist(mnist).batches(torch.arange(20), 20))
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)


def test_padding_keeps_every_pixel(mnist):
    small, large = open_mnist(mnist), open_mnist(mnist, 32)
    assert large.image_shape == (1, 32, 32)
    assert torch.equal(large.images[:, :, 2:30, 2:30], small.images)
    assert large.images.sum() == small.images.sum()
    with pytest.raises(DataError, match="at least 28"):
        open_mnist(mnist, 20)


def test_packed_files_serve_and_a_folder_may_be_read_only(mnist):
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
def test_damaged_files_are_refused_by_name(mnist, name, kind):
    path, part = mnist / "MNIST" / "raw" / name, name in NAMES
    good = path.read_bytes()
    path.write_bytes(DAMAGES[kind](good))
    with pytest.raises(DataError, match=name) as error:
        load("mnist", str(mnist), 0, part)
    assert not isinstance(error.value, DataNotFound)
    assert "\n" not in str(error.value)
    assert "damaged" in str(error.value)
    assert len(load("mnist", str(mnist), 0, not part)) == 20  # the other half is untouched
    path.with_name(f"{name}.gz").write_bytes(gzip.compress(good))
    assert len(load("mnist", str(mnist), 0, part)) == 20  # the packed one is good


@pytest.mark.parametrize("name", [*NAMES, *TEST_NAMES])
def test_a_missing_file_is_named(mnist, name):
    (mnist / "MNIST" / "raw" / name).unlink()
    with pytest.raises(DataNotFound, match=name) as error:
        load("mnist", str(mnist), 0, name in NAMES)
    assert "\n" not in str(error.value)


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
def test_sets_without_a_known_checksum_are_read_with_care(mnist, monkeypatch, name, content):
    unknown = replace(idx.MNIST, sha256={}, mirrors=(NOWHERE,))
    monkeypatch.setitem(DATASETS, "mnist", data.datasets.idx(unknown))
    assert len(open_mnist(mnist)) == 20  # control
    (mnist / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(DataError):
        open_mnist(mnist)


def test_nothing_there_is_said_at_once_and_leaves_nothing(mnist, tmp_path):
    began = time.monotonic()
    root = tmp_path / "empty"
    with pytest.raises(DataNotFound) as error:
        open_mnist(root)
    assert time.monotonic() - began < 2
    for word in (NAMES[0], str(root), "--data-root", "--dataset digits", NOWHERE):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not root.exists()
    with pytest.raises(DataNotFound):
        open_mnist(root, download=False)
    assert len(open_mnist(mnist)) == 20  # control


def test_a_missing_or_damaged_file_is_downloaded_once_and_verified(mnist, monkeypatch):
    asked = []

    def answer(path):
        asked.append(path)
        return gzip.compress(mnist_files()[path.removeprefix("/").removesuffix(".gz")])

    serve(monkeypatch, answer)
    folder = mnist / "MNIST" / "raw"
    (folder / NAMES[0]).unlink()
    (folder / NAMES[1]).write_bytes(b"damaged")
    opened = open_mnist(mnist)
    assert len(opened) == 20
    assert len(asked) == 2
    assert open_mnist(mnist).fingerprint == opened.fingerprint
    assert len(asked) == 2  # the second time from disk
    assert not [name for name in os.listdir(folder) if "partial" in name]


def test_a_mirror_that_lies_leaves_no_file(mnist, monkeypatch, tmp_path):
    serve(monkeypatch, lambda _: gzip.compress(b"something else"))
    root = tmp_path / "lied"
    with pytest.raises(DataNotFound, match="SHA-256"):
        open_mnist(root)
    assert not root.exists()
    assert mnist.exists()


def test_a_silent_mirror_does_not_hang(mnist, monkeypatch, tmp_path):
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
    known = replace(idx.MNIST, mirrors=(url,))
    monkeypatch.setitem(DATASETS, "mnist", data.datasets.idx(known))
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    began = time.monotonic()
    with pytest.raises(DataNotFound, match="timed out"):
        open_mnist(tmp_path / "x")
    assert 0.4 < time.monotonic() - began < 3
    assert mnist.exists()
    silent.close()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "flowers102"])
def test_each_name_opens_the_set_it_names(name, monkeypatch, tmp_path):
    """Without the network: which torchvision class is asked, and with what error it ends."""
    with pytest.raises(DataNotFound) as error:
        load(name, str(tmp_path / "none"), 0, download=False)
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "flowers102": "Flowers102"}[name]
    assert f"{kind} is not in" in str(error.value)
    assert "\n" not in str(error.value)
    assert monkeypatch is not None
    assert not (tmp_path / "none").exists()


def test_idx_sets_are_known_as_torchvision_knows_them():
    for files, kind in ((idx.KMNIST, KMNIST), (idx.FASHION_MNIST, FashionMNIST)):
        assert files.md5_of_gz == dict(kind.resources)
        assert files.mirrors == tuple(kind.mirrors)
    assert idx.MNIST.mirrors == tuple(MNIST.mirrors)


def test_idx_sets_have_folders_of_their_own():
    folders = [files.folder for files in (idx.MNIST, idx.FASHION_MNIST, idx.KMNIST)]
    assert folders == ["MNIST/raw", "FashionMNIST/raw", "KMNIST/raw"]
    checksums = [files.md5_of_gz[f"{NAMES[0]}.gz"] for files in (idx.KMNIST, idx.FASHION_MNIST)]
    assert checksums[0] != checksums[1]


@pytest.fixture
def pictures(tmp_path):
    """Two classes of ten colour pictures of all sizes; the class is the colour."""
    root = tmp_path / "pictures"
    for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (root / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20 + i, 40 - i), colour).save(root / label / f"{i}.png")
    return root


def test_a_folder_of_pictures_streams_in_order_with_labels(pictures):
    train, test = (load("folder", str(pictures), 16, part) for part in (True, False))
    assert (len(train), len(test), train.num_classes) == (18, 2, 2)
    assert train.fingerprint != test.fingerprint
    order = torch.tensor([17, 0, 8, 9])
    x, y = (torch.cat(parts) for parts in zip(*train.batches(order, 3), strict=True))
    assert x.shape == (4, 3, 16, 16)
    assert y.tolist() == [1, 0, 0, 1]
    assert torch.equal(x[0, :, 0, 0], torch.tensor([1.0, -1, -1]))
    assert torch.equal(x[1, :, 0, 0], torch.tensor([-1.0, -1, 1]))


def test_a_folder_without_pictures_is_one_line(tmp_path):
    with pytest.raises(DataNotFound, match="one folder of images per class"):
        load("folder", str(tmp_path / "none"), 16)


def test_opening_a_set_does_not_touch_the_global_randomness(mnist, pictures):
    before = torch.get_rng_state()
    list(open_mnist(mnist).batches(torch.arange(20), 8))
    list(load("folder", str(pictures), 16).batches(torch.arange(18), 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_real_mnist_is_verified(real_mnist):
    train, test = (
        load("mnist", str(real_mnist), 0, part, download=False) for part in (True, False)
    )
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


def test_a_broken_picture_is_one_line(pictures):
    opened = load("folder", str(pictures), 16)
    assert len(list(opened.batches(torch.arange(18), 4))) == 5
    (pictures / "red" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(ReadError, match=r"3\.png") as error:
        list(opened.batches(torch.arange(18), 4))
    assert "\n" not in str(error.value)


def test_workers_leave_ctrl_c_to_the_main_process(pictures):
    batches = load("folder", str(pictures), 16).batches(torch.arange(18), 1)
    count = 1
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    count += len(list(batches))
    assert count == 18


def test_what_cannot_be_verified_is_not_called_verified(tmp_path):
    """Fashion-MNIST's checksums are of its packed files."""
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"")
    assert "not verifiable" in idx.how_verified(idx.FASHION_MNIST, tmp_path, train=True)
    for name in NAMES:
        (raw / f"{name}.gz").write_bytes(b"")
    assert idx.how_verified(idx.FASHION_MNIST, tmp_path, train=True) == "verified"
    with pytest.raises(DataError, match="MD5"):  # the packed file is looked at first
        idx.read_set(idx.FASHION_MNIST, tmp_path, train=True, download=False)


def test_each_rank_gets_its_rows_of_a_streamed_batch(pictures):
    """Also of a last batch with fewer images than ranks."""
    opened = load("folder", str(pictures), 16)
    order = torch.arange(18).flip(0)[:7]
    whole = list(opened.batches(order, 6))
    shares = [list(opened.batches(order, 6, (rank, 2))) for rank in (0, 1)]
    assert [len(y) for _, y in shares[1]] == [3, 0]
    for (x, y), *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)
