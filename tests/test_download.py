"""Mirrors that stall, lie, cut and refuse, from a real server; eight at once; kills half-way."""

import gzip
import hashlib
import importlib
import os
import random
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from faults import FORK, count, two_at_a_time
from test_datasets import NAMES, NOWHERE, mnist_files

import data.datasets
from data import DATASETS, DataNotFound, download, idx, load

PACKED = {f"/{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}


@contextmanager
def server(behave=None, seconds: float = 0.0):
    """Its address, and the paths it was asked for. ``behave(handler, content)`` misbehaves."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            time.sleep(seconds)
            content = PACKED.get(self.path, b"")
            if behave:
                behave(self, content)
            else:
                answer(self, content)

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/", asked
    finally:
        served.shutdown()
        served.server_close()


def answer(handler, content: bytes, length: int | None = None, code: int = 200) -> None:
    handler.send_response(code)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def cut(handler, content: bytes) -> None:
    answer(handler, content[: len(content) // 2], len(content))
    handler.connection.shutdown(socket.SHUT_RDWR)


def reset(handler, _content: bytes) -> None:
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def stall(handler, content: bytes) -> None:
    answer(handler, content[:10], len(content))
    time.sleep(2)


def trickle(handler, content: bytes) -> None:
    answer(handler, b"", len(content))
    for byte in content[:40]:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def redirect(handler, _content: bytes) -> None:
    handler.send_response(302)
    handler.send_header("Location", NOWHERE)
    handler.end_headers()


MISBEHAVIOUR = {
    "not found": lambda handler, _: answer(handler, b"<html>", code=404),
    "forbidden": lambda handler, _: answer(handler, b"<html>", code=403),
    "redirected to nowhere": redirect,
    "web page": lambda handler, _: answer(handler, b"<html>please log in</html>"),
    "empty": lambda handler, _: answer(handler, b""),
    "other content": lambda handler, _: answer(handler, gzip.compress(b"something else")),
    "one bit": lambda handler, c: answer(handler, c[:40] + bytes([c[40] ^ 1]) + c[41:]),
    "too long": lambda handler, c: answer(handler, c + b"more"),
    "cut": cut,
    "reset": reset,
    "stall": stall,
    "trickle": trickle,
    "endless": lambda handler, _: answer(handler, b"0" * 2**16),
}


def use(*mirrors: str) -> None:
    files = mnist_files()
    known = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    DATASETS["mnist"] = data.datasets.idx(replace(idx.MNIST, sha256=known, mirrors=mirrors))


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setitem(DATASETS, "mnist", DATASETS["mnist"])
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    monkeypatch.setattr(download, "LARGEST", 2**15)


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_a_bad_mirror_leaves_nothing_and_the_next_is_asked(tmp_path, kind):
    with server(MISBEHAVIOUR[kind]) as (bad, asked), server() as (good, _):
        use(bad)
        began = time.monotonic()
        with pytest.raises(DataNotFound) as error:
            load("mnist", str(tmp_path / "a"), 0)
        assert time.monotonic() - began < 5
        assert "\n" not in str(error.value)
        assert not (tmp_path / "a").exists()
        use(bad, good)
        assert len(load("mnist", str(tmp_path / "b"), 0)) == 20
        assert len(asked) == 3
    names = sorted(f"{name}.gz" for name in NAMES)
    assert sorted(os.listdir(tmp_path / "b/MNIST/raw")) == names
    count(f"a mirror that answers: {kind}", 3, len(asked), "refused, nothing kept, the next taken")


def load_once(root: str, url: str, started) -> None:
    use(url)
    started[0] += 1
    while started[0] < started[1]:
        time.sleep(0.001)
    assert len(load("mnist", root, 0)) == 20


def test_eight_processes_download_once(tmp_path):
    with server(seconds=0.3) as (url, asked):
        started = FORK.RawArray("l", [0, 6])  # most of them, as counting itself may race
        root = str(tmp_path / "root")
        processes = [FORK.Process(target=load_once, args=(root, url, started)) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 8
        assert sorted(asked) == sorted(PACKED)
    count("8 processes download at once", 8, 8, "each file asked for once, all have it")


def kill_and_repair(root: Path, seed: int) -> bool:
    """SIGKILL within the download; the next start has the set, and no half file is left.

    Whether the download was still going on.
    """

    def slowly(handler, content: bytes) -> None:
        answer(handler, content[:100], len(content))
        time.sleep(0.3)
        handler.wfile.write(content[100:])

    with server(slowly) as (url, asked), server() as (good, _):
        process = FORK.Process(target=load_once, args=(str(root), url, [1, 1]))
        process.start()
        while not asked:
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0, 0.2))  # of 0.3, which the larger file takes
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        raw = root / "MNIST" / "raw"
        for name in NAMES[seed % 2 :]:  # and what is there may be torn, as by a power cut
            if (raw / f"{name}.gz").exists():
                (raw / f"{name}.gz").write_bytes(PACKED[f"/{name}.gz"][:-9])
                (raw / f".{name}.gz.1.partial").write_bytes(b"left")
        use(good)
        assert len(load("mnist", str(root), 0)) == 20
        assert not list(root.rglob("*.partial"))
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("trials", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_download_is_repaired(tmp_path, trials):
    hits = sum(two_at_a_time(lambda i: kill_and_repair(tmp_path / str(i), i), trials))
    assert hits >= 0.9 * trials
    count("SIGKILL in a download", trials, hits, "repaired by the next start")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "flowers102"])
def test_offline_is_said_in_two_seconds(tmp_path, monkeypatch, name):
    """Also with a name server that never answers."""
    importlib.import_module("torchvision.datasets")  # which is not what is timed

    monkeypatch.setattr(download.urllib.request, "getproxies", dict)
    use("https://one.invalid/", "https://two.invalid/")
    for silent in (False, True):
        if silent:
            monkeypatch.setattr(download.socket, "getaddrinfo", lambda *_: time.sleep(5))
        began = time.monotonic()
        with pytest.raises(DataNotFound, match="no network"):
            load(name, str(tmp_path / "x"), 0)
        assert time.monotonic() - began < 2
        assert not (tmp_path / "x").exists()
