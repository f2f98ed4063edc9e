"""Threads that read ahead, of which one may wait for a file that does not arrive.

On a dead network disk a thread waits for ever, and nothing ends it. So these are daemons, for which
the end of the program does not wait, unlike those of concurrent.futures.
"""

import atexit
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

from data.class_names import readable
from data.errors import WaitError

PATIENCE = 5.0  # seconds: then a line names the file, and a stop signal ends the wait for it
LOOK = 0.2  # seconds between two looks for that signal
LAST_SECONDS = 1.0  # at the end of the program, for threads that are about to be done
RUNNING: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()


class Threads:
    """Compute what is submitted, in that order. Raises RuntimeError where the system has none."""

    def __init__(self, count: int) -> None:
        self.tasks: SimpleQueue = SimpleQueue()
        self.count, self.ended = count, False
        try:
            for _ in range(count):
                thread = threading.Thread(target=self.work, name="decoder", daemon=True)
                thread.start()
                RUNNING.add(thread)
        except RuntimeError:
            self.end()
            raise

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """The result to come."""
        future: Future = Future()
        self.tasks.put((future, function, arguments))
        return future

    def work(self) -> None:
        """What each thread does until the end."""
        while (task := self.tasks.get()) and not self.ended:
            future, function, arguments = task
            try:
                future.set_result(function(*arguments))
            except BaseException as e:  # raised where the result is asked for
                future.set_exception(e)

    def end(self) -> None:
        """Compute no more. A thread that waits for a file is left to itself."""
        self.ended = True
        for _ in range(self.count):
            self.tasks.put(None)


def never() -> bool:
    """Nobody asks for a stop; outside of training a signal raises an exception by itself."""
    return False


def result_of(future: Future, name: str, stopped: Callable[[], bool] = never) -> Any:
    """What the thread came to; name: of the file that it reads.

    From PATIENCE on, WaitError once ``stopped``: the file may never arrive.
    """
    began, said = time.monotonic(), False
    while not future.done():
        wait([future], timeout=LOOK)
        if future.done() or time.monotonic() - began < PATIENCE:
            continue
        if not said:
            line = f"waiting for {readable(name)}: is the disk, or its server, in order?"
            print(line, file=sys.stderr, flush=True)
            said = True
        if stopped():
            raise WaitError(f"{readable(name)} did not arrive")
    return future.result()


@atexit.register
def let_them_finish() -> None:
    """Before Python's end, as a thread that comes back from a library then may crash it."""
    ends = time.monotonic() + LAST_SECONDS
    for thread in list(RUNNING):
        thread.join(max(0.0, ends - time.monotonic()))
