"""Downloads from mirrors that misbehave, by eight processes at once, killed, and offline."""

import gzip
import os
import queue
import random
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from faults import FORK, count, two_at_a_time
from test_datasets import NAMES, NOWHERE, mnist_files, open_mnist, small_mnist

import data.idx
from data import DATASETS, DataNotFound, DataOptions, Loading, load_splits
from data.download import check_online, download_lock

PACKED = {f"/{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
SECONDS = 60  # after which a process counts as hanging
Behaviour = Callable[[BaseHTTPRequestHandler, bytes], object]


def answer(handler, content: bytes, length: int | None = None, code: int = 200) -> None:
    """The good behaviour of a server."""
    handler.send_response(code)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def server(behave: Behaviour = answer) -> Iterator[tuple[str, list[str]]]:
    """A mirror on this machine: its address, and the paths it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            behave(self, PACKED[self.path])

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    served.closed = threading.Event()
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/", asked
    finally:
        served.closed.set()
        served.shutdown()
        served.server_close()


def hold(handler, content: bytes) -> None:
    """Promise the whole content, send this much of it, and nothing more."""
    answer(handler, content, len(content) + 1)
    handler.server.closed.wait(SECONDS)


def trickle(handler, content: bytes) -> None:
    answer(handler, b"", len(content))
    for byte in content:
        handler.wfile.write(bytes([byte]))
        if handler.server.closed.wait(0.05):
            break


def cut(handler, content: bytes) -> None:
    answer(handler, content[: len(content) // 2], len(content))
    handler.connection.shutdown(socket.SHUT_RDWR)


def reset(handler, _content: bytes) -> None:
    linger = struct.pack("ii", 1, 0)  # on, for 0 seconds: closing sends RST
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def redirect(handler, _content: bytes) -> None:
    handler.send_response(302)
    handler.send_header("Location", NOWHERE)
    handler.end_headers()


# What a mirror does, and the reason that the error then gives.
MISBEHAVIOUR: dict[str, tuple[Behaviour, str]] = {
    "not found": (lambda handler, _: answer(handler, b"<html>", code=404), "404"),
    "forbidden": (lambda handler, _: answer(handler, b"<html>", code=403), "403"),
    "redirected to nowhere": (redirect, "refused"),
    "web page": (lambda handler, _: answer(handler, b"<html>please log in</html>"), "damaged"),
    "empty": (lambda handler, _: answer(handler, b""), "damaged"),
    "other content": (lambda handler, _: answer(handler, gzip.compress(b"other")), "SHA-256"),
    "one bit": (lambda handler, c: answer(handler, flip(c, 40)), "damaged"),
    "too long": (lambda handler, c: answer(handler, c + b"more"), "damaged"),
    "cut": (cut, "damaged|IncompleteRead"),
    "reset": (reset, "reset|closed"),
    "silent": (lambda handler, _: handler.server.closed.wait(SECONDS), "timed out"),
    "stall": (lambda handler, c: hold(handler, c[:10]), "timed out"),
    "trickle": (trickle, "bytes a second"),
    "endless": (lambda handler, _: answer(handler, b"0" * 2**16), "more than 32,768 bytes"),
}


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_a_bad_mirror_leaves_nothing_and_the_next_is_asked(tmp_path, kind):
    behave, reason = MISBEHAVIOUR[kind]
    limits = {"timeout": 0.5, "max_bytes": 2**15}
    with server(behave) as (bad, asked), server() as (good, _):
        with pytest.raises(DataNotFound, match=reason) as error:
            open_mnist(tmp_path / "a", small_mnist(bad, **limits))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "a").exists()
        assert len(open_mnist(tmp_path / "b", small_mnist(bad, good, **limits))) == 20
        assert len(asked) == 3
    names = sorted(f"{name}.gz" for name in NAMES)
    assert sorted(os.listdir(tmp_path / "b/MNIST/raw")) == names
    count(f"a mirror that answers: {kind}", 3, len(asked), "refused, nothing kept, the next taken")


def test_missing_and_damaged_files_are_downloaded_once(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / NAMES[1]).write_bytes(b"damaged")
    with server() as (url, asked):
        files = small_mnist(NOWHERE, url)
        first = open_mnist(tmp_path, files)
        assert sorted(asked) == sorted(f"/{name}.gz" for name in NAMES)
        assert open_mnist(tmp_path, files).fingerprint == first.fingerprint
        assert len(asked) == 2  # the second time from disk
    assert not list(raw.glob(".*"))


def download(root: str, url: str, barrier=None, locked: bool = True) -> None:
    """In a process of its own, as soon as all are at the barrier."""
    if not locked:
        data.idx.download_lock = lambda _: nullcontext(False)
    if barrier:
        barrier.wait(SECONDS)
    assert len(open_mnist(Path(root), small_mnist(url))) == 20


def asked_by_eight(root: Path, locked: bool = True) -> list[str]:
    """What a mirror is asked for by eight processes that need the same files at the same time."""

    def slowly(handler, content: bytes) -> None:
        time.sleep(0.3)
        answer(handler, content)

    with server(slowly) as (url, asked):
        arguments = (str(root), url, FORK.Barrier(8), locked)
        processes = [FORK.Process(target=download, args=arguments) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        assert [process.exitcode for process in processes] == [0] * 8
    return sorted(asked)


ONCE = sorted(f"/{name}.gz" for name in NAMES)


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_eight_processes_download_once(tmp_path, trials):
    hits = sum(asked_by_eight(tmp_path / str(i)) == ONCE for i in range(trials))
    assert hits == trials
    n = 8 * trials
    count("8 processes download at once", n, 8 * hits, "each file asked for once, all have it")


def test_without_the_lock_each_would_download(tmp_path):
    """The control; they do not disturb one another."""
    assert len(asked_by_eight(tmp_path / "root", locked=False)) > len(ONCE)


def test_a_root_has_one_lock_whatever_it_is_called(tmp_path):
    (tmp_path / "link").symlink_to("root")
    inside = queue.Queue()

    def enter(name: str) -> None:
        with download_lock(tmp_path / name):
            inside.put(name)

    with download_lock(tmp_path / "root"):  # which need not exist
        threads = [threading.Thread(target=enter, args=(n,)) for n in ("link", "another")]
        for thread in threads:
            thread.start()
        assert inside.get(timeout=SECONDS) == "another"  # control
        with pytest.raises(queue.Empty):
            inside.get(timeout=0.2)
    assert inside.get(timeout=SECONDS) == "link"
    assert not list(tmp_path.glob("*.lock"))


def test_where_no_lock_can_be_made_each_process_downloads_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing" / "folder"))
    (tmp_path / "missing").touch()
    with server() as (url, _):
        assert len(open_mnist(tmp_path / "root", small_mnist(url))) == 20


def kill_and_repair(root: Path, seed: int) -> None:
    """SIGKILL within the download of the first or second file; the next start has the set."""
    sent = threading.Event()
    first, share = seed % 2 == 0, random.Random(seed).random()

    def stop_half_way(handler, content: bytes) -> None:
        if not first and "images" in handler.path:
            answer(handler, content)
            return
        answer(handler, content[: int(share * len(content))], len(content))
        sent.set()
        handler.server.closed.wait(SECONDS)

    with server(stop_half_way) as (url, _), server() as (good, _):
        process = FORK.Process(target=download, args=(str(root), url))
        process.start()
        assert sent.wait(SECONDS)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        raw = root / "MNIST" / "raw"
        assert raw.exists() != first
        raw.mkdir(parents=True, exist_ok=True)
        for path in raw.iterdir():  # torn, as by a power cut
            path.write_bytes(path.read_bytes()[:-9])
        (raw / f".{NAMES[0]}.gz.1.partial").write_bytes(b"of a killed process")
        assert len(open_mnist(root, small_mnist(good))) == 20
        assert not list(root.rglob("*.partial"))


@pytest.mark.parametrize("trials", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_download_is_repaired(tmp_path, trials):
    two_at_a_time(lambda i: kill_and_repair(tmp_path / str(i), i), trials)
    count("SIGKILL in a download", trials, trials, "repaired by the next start")


# Offline.


@pytest.fixture
def resolver(monkeypatch) -> Iterator[dict[str, Callable[[], object]]]:
    """The only host names that are resolved, and what looking them up does; no proxy."""
    hosts: dict[str, Callable[[], object]] = {}

    def getaddrinfo(host: str, *_args, **_options) -> object:
        if host not in hosts:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return hosts[host]()

    for name in os.environ:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return hosts


KINDS = {"mnist": "train-", "cifar10": "CIFAR10 ", "cifar100": "CIFAR100 ", "flowers102": "Flowers"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("resolver")
def test_offline_is_one_line_and_leaves_nothing(tmp_path, name):
    with pytest.raises(DataNotFound, match="no network: Temporary failure") as error:
        load_splits(DataOptions(name, str(tmp_path / "x")))
    with pytest.raises(DataNotFound) as not_wanted:
        load_splits(DataOptions(name, str(tmp_path / "x")), loading=Loading(download=False))
    for line in (str(error.value), str(not_wanted.value)):
        assert KINDS[name] in line
        assert "\n" not in line
    assert "no network" not in str(not_wanted.value)  # control
    assert not (tmp_path / "x").exists()


def test_a_silent_name_server_is_given_up(resolver):
    over = threading.Event()
    resolver["silent"] = lambda: over.wait(SECONDS)
    try:
        with pytest.raises(OSError, match="the name server is silent"):
            check_online(["https://silent/"], timeout=0.1)
        resolver["known"] = list
        check_online(["https://unknown/", "https://silent/", "https://known/"])  # one is enough
    finally:
        over.set()


def test_behind_a_proxy_no_name_is_looked_up(resolver, monkeypatch):
    with pytest.raises(OSError, match="no network"):
        check_online(["https://unknown/"])  # control
    assert not resolver
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    check_online(["https://unknown/"])


def test_every_set_that_can_be_downloaded_is_tested_offline():
    others = {"fashion-mnist", "kmnist", "folder", "digits"}  # as mnist; never downloaded
    assert set(DATASETS) == set(KINDS) | others
