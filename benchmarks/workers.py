"""Training loops in processes of their own: what one sets for itself must not reach the others."""

import multiprocessing
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import measure
from benchmarks.baselines import LOOPS, Loop, Task


class Worker:
    """Some loops, made in another process, and what can be asked of them there."""

    def __init__(self, names: Sequence[str], task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, names, task), daemon=True)
        self.process.start()
        end.close()  # so that its death ends the waiting

    def ask(self, what: str, name: str, *arguments: int) -> Any:
        """``run`` n steps, the ``flops`` or ``parts`` of a step, the ``peaks`` in a number format.

        EOFError if it died.
        """
        self.pipe.send((what, name, *arguments))
        return self.pipe.recv()


@contextmanager
def workers(groups: Sequence[Sequence[str]], task: Task) -> Iterator[dict[str, Worker]]:
    """The worker of every loop; a group shares one."""
    made = [Worker(names, task) for names in groups]
    try:
        yield {name: worker for names, worker in zip(groups, made, strict=True) for name in names}
    finally:
        for worker in made:
            worker.process.kill()
            worker.process.join()


def serve(pipe: Connection, names: Sequence[str], task: Task) -> None:
    """What the process does: answer."""
    runs = {name: LOOPS[name](task) for name in names}
    while True:
        what, name, *arguments = pipe.recv()
        if what == "flops":
            pipe.send(measure.flops(lambda name=name: runs[name](1)))
        elif what == "peaks":
            pipe.send(measure.peaks(task.device, measure.DTYPES[name]))
        elif what == "parts":
            pipe.send(parts(runs[name], *arguments, task))
        else:
            runs[name](*arguments)
            measure.synchronize(task.device)
            pipe.send(None)


def parts(run: Loop, steps: int, repeats: int, task: Task) -> dict[str, float]:
    """Median seconds of each part of a step."""
    found = defaultdict(list)
    for _ in range(repeats):
        with measure.timed_parts(task.device) as spent:
            whole = measure.seconds(lambda: run(steps), task.device)
        spent["data, log, bar"] = whole - spent["whole step"]
        for name, value in spent.items():
            found[name].append(value / steps)
    return {name: statistics.median(values) for name, values in found.items()}
