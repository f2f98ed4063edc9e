"""TensorBoard: curves and pictures that a resumed run continues without a gap or a duplicate."""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from utils.distributed import Ranks

WRITING_THREAD = "tensorboard.summary.writer.event_file_writer"  # the module of its class


class Log:
    """TensorBoard's writer, whose failure costs the curves but not the run: one line, then silence.

    Every ``add_...`` of torch's SummaryWriter, ``flush`` and ``close`` are passed on.
    """

    def __init__(self, folder: Path, first_step: int, silent: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter  # 0.1 s, that --dry-run can do without

        self.folder, self.failed = folder, silent
        self.writer = self.attempt(SummaryWriter, folder, purge_step=first_step)

    def attempt(self, action: Callable[..., Any], *values: object, **options: object) -> Any:
        """Its result; None after a failure, now or earlier."""
        if self.failed:
            return None
        try:
            return action(*values, **options)
        except Exception as e:  # TensorFlow's file layer, where installed, has classes of its own
            self.failed = True
            reason = e.strerror if isinstance(e, OSError) else e
            print(f"warning: no more curves, cannot write {self.folder}: {reason}", file=sys.stderr)
            return None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *values, **options: self.attempt(
            lambda: getattr(self.writer, name)(*values, **options)
        )

    def __enter__(self) -> Self:
        self.before, threading.excepthook = threading.excepthook, self.thread_failed
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        threading.excepthook = self.before

    def thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """The writing thread's own report is silenced: the next call here gets the same error."""
        if type(failure.thread).__module__ != WRITING_THREAD:
            self.before(failure)


def open_log(folder: Path, first_step: int, silent: bool = False) -> Log:
    """A writer whose first curve point will be at this step; a silent one writes nothing.

    Whatever an earlier process logged from that step on is dropped by the reader: those steps are
    done again. The reader only honours this if the first process said it too, so every one does.
    """
    return Log(folder, first_step, silent)


@contextmanager
def not_fatal() -> Iterator[None]:
    """For pictures beside the curves: what cannot be written is a warning."""
    try:
        yield
    except OSError as e:
        print(f"warning: cannot write {e.filename}: {e.strerror}", file=sys.stderr)


class StepLog:
    """Per-step values that stay on the device until they are written.

    Reading one back makes the host wait for the device, and averaging it over the ranks makes them
    wait for each other, so both are done for many steps at once.
    """

    def __init__(self, writer: Log, ranks: Ranks) -> None:
        self.writer, self.ranks = writer, ranks
        self.steps: list[int] = []
        self.values: dict[str, list[Tensor | float]] = {}

    def add(self, step: int, **values: Tensor | float) -> None:
        """Note values of this step; tensors must be scalars and are not waited for."""
        self.steps.append(step)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def write(self) -> dict[str, list[float]]:
        """Write all that was noted; returns it, by name."""
        written = {name: self.read_back(values) for name, values in self.values.items()}
        for name, values in written.items():
            for step, value in zip(self.steps, values, strict=True):
                self.writer.add_scalar(f"train/{name}", value, step)
        self.steps, self.values = [], {}
        return written

    def read_back(self, values: list[Tensor | float]) -> list[float]:
        """One transfer for all of them."""
        if isinstance(values[0], Tensor):
            return self.ranks.mean(torch.stack(values)).tolist()
        return values


def add_texts(writer: Log, texts: Mapping[str, Mapping[str, object]]) -> None:
    """Tables of names and values, one a tab entry."""
    for title, rows in texts.items():
        table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
        writer.add_text(title, f"| | |\n|---|---|\n{table}", 0)


def add_graph(writer: Log, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The network as a graph, traced with these inputs; once, as add_graph alone does it thrice."""
    with warnings.catch_warnings():  # tracing warns of every size it takes for constant
        warnings.simplefilter("ignore")
        writer.add_graph(torch.jit.trace(model, inputs, check_trace=False), inputs)
