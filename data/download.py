"""Downloads: one at a time, with limits, and soon over where there is no network."""

import hashlib
import os
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

TIMEOUT = 10.0  # seconds without an answer
DNS_TIMEOUT = 1.5  # seconds until the first host name is resolved
MIN_RATE = 10_000  # bytes per second, once TIMEOUT has passed
MAX_BYTES = 2**26


@contextmanager
def download_lock(root: Path) -> Iterator[bool]:
    """Of all processes of this machine that download to this root, one is inside ``with``.

    The system releases the lock when a process is killed. It is a file in the folder of temporary
    ones, which can be written where the folders around the root cannot, and is left there: deleted,
    it might be locked by one process and made anew by another. False where there can be no lock:
    then each process downloads for itself.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    with ExitStack() as stack:
        held = False
        with suppress(OSError, NotImplementedError):  # the latter where the system has no locks
            path = Path(tempfile.gettempdir(), f"ddpm-download-{name}.lock")
            held = bool(stack.enter_context(FileLock(path)))
        yield held


def check_online(urls: Sequence[str], timeout: float = DNS_TIMEOUT) -> None:
    """Raises OSError unless one of the host names is resolved within the timeout, in seconds.

    The system's resolver takes far longer where the name server is dead. Behind a proxy nothing is
    checked, as the proxy resolves the names.
    """
    if urllib.request.getproxies():
        return
    outcomes: list[OSError | None] = []
    done = threading.Semaphore(0)

    def resolve(host: str) -> None:
        try:
            socket.getaddrinfo(host, 443)
            outcomes.insert(0, None)
        except OSError as e:
            outcomes.append(e)
        done.release()

    hosts = {urlsplit(url).hostname or "" for url in urls}
    for host in hosts:
        threading.Thread(target=resolve, args=(host,), daemon=True).start()
    deadline = time.monotonic() + timeout
    for _ in hosts:
        answered = done.acquire(timeout=max(0, deadline - time.monotonic()))
        if answered and outcomes[0] is None:
            return
    error = next(iter(outcomes), None)
    raise OSError(f"no network: {error.strerror if error else 'the name server is silent'}")


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Limit torchvision's downloads, which set no timeout and would hang on a silent host."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_url(url: str, timeout: float = TIMEOUT, max_bytes: int = MAX_BYTES) -> bytes:
    """The body of the answer.

    Raises HTTPException, and OSError also for a server that stalls, trickles or sends too much.
    """
    chunks, size, began = [], 0, time.monotonic()
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        while chunk := answer.read1(2**16):
            chunks.append(chunk)
            size, seconds = size + len(chunk), time.monotonic() - began
            if size > max_bytes:
                raise OSError(f"{url} sends more than {max_bytes:,} bytes")
            if seconds > timeout and size < MIN_RATE * seconds:
                raise TimeoutError(f"{url} sends less than {MIN_RATE:,} bytes a second")
    return b"".join(chunks)
