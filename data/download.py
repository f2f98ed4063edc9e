"""Downloads: one at a time, verified before they have a name, soon over where there is no net."""

import fcntl
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT = 10  # seconds without an answer
NAME_TIMEOUT = 1.5  # seconds for the first of the mirrors' names to be found
SLOWEST = 10_000  # bytes a second
LARGEST = 2**26  # bytes of a download


@contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Of all processes of this machine that download to this root, one is within ``with``.

    What is locked is the folder above, as that is there before and after; the system lets go of
    the lock of a killed process. Where folders cannot be locked, as on some network disks, each
    downloads for itself, which is slower but as safe.
    """
    above = root.absolute().parent
    while not above.is_dir():
        above = above.parent
    handle = os.open(above, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check_online(urls: Sequence[str]) -> None:
    """OSError unless one of the hosts' names is found soon; asking a dead name server takes long.

    Behind a proxy it is the proxy that finds the names.
    """
    if urllib.request.getproxies():
        return
    outcomes: list[OSError | None] = []
    done = threading.Semaphore(0)

    def ask(host: str) -> None:
        try:
            socket.getaddrinfo(host, 443)
            outcomes.insert(0, None)
        except OSError as e:
            outcomes.append(e)
        done.release()

    hosts = {urlsplit(url).hostname or "" for url in urls}
    for host in hosts:
        threading.Thread(target=ask, args=(host,), daemon=True).start()
    ends = time.monotonic() + NAME_TIMEOUT
    for _ in hosts:
        answered = done.acquire(timeout=max(0, ends - time.monotonic()))
        if answered and outcomes[0] is None:
            return
    found = next(iter(outcomes), None)
    raise OSError(f"no network: {found.strerror if found else 'the name server is silent'}")


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision's downloads have no timeout of their own and would hang on a silent host."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_url(url: str) -> bytes:
    """The whole answer. Raises OSError, also for one that stalls or trickles, HTTPException."""
    parts, size, began = [], 0, time.monotonic()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        while part := answer.read1(2**16):
            parts.append(part)
            size, seconds = size + len(part), time.monotonic() - began
            if size > LARGEST:
                raise OSError(f"{url} sends more than {LARGEST:,} bytes")
            if seconds > TIMEOUT and size < SLOWEST * seconds:
                raise TimeoutError(f"{url} sends less than {SLOWEST:,} bytes a second")
    return b"".join(parts)


def keep(path: Path, content: bytes) -> None:
    """Write a whole file or none; partial ones of killed processes are deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.partial"):
        left.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
