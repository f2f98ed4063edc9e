"""TensorBoard's event files, in the order in which they were written, whatever the clock says."""

import io
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from utils.files import whole_file

NAME = "events.out.tfevents.{:010d}.{}.{}"  # TensorBoard reads files in the order of their names
FIRST = "events.out.tfevents.0000000000.run"


class EventWriter:
    """One event file; disables itself, with one warning, if it cannot be written.

    A resumed run repeats the steps after its checkpoint: TensorBoard drops what earlier files have
    from ``first_step`` on.
    """

    def __init__(self, folder: Path, first_step: int, silent: bool) -> None:
        self.folder, self.failed, self.file, self.run_ended = folder, silent, None, None
        self.attempt(self.open)
        self.attempt(self.purge, first_step)

    def open(self) -> None:
        """Import TensorBoard (0.1 s, that --dry-run can do without), and make the file."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self.protos, self.summary = event_pb2, summary
        name = NAME.format(next_number(self.folder), socket.gethostname(), os.getpid())
        self.path = self.folder / name
        self.file = RecordWriter(self.path.open("xb"))
        self.write(file_version="brain.Event:2")

    def purge(self, first_step: int) -> None:
        """What tells TensorBoard to drop the steps from this one on."""
        start = self.protos.SessionLog(status=self.protos.SessionLog.START)
        self.write(step=first_step, session_log=start)

    def write(self, **values: Any) -> None:
        self.file.write(self.event(**values))

    def event(self, **values: Any) -> bytes:
        """Of now."""
        return self.protos.Event(wall_time=time.time(), **values).SerializeToString()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.add(step, lambda: self.summary.scalar(tag, value))

    def add_picture(self, tag: str, encoded: bytes, step: int) -> None:
        """A PNG, or an animated GIF, which browsers play: TensorBoard looks into it."""

        def summary() -> Any:
            from tensorboard.compat.proto.summary_pb2 import Summary

            width, height = Image.open(io.BytesIO(encoded)).size
            image = Summary.Image(encoded_image_string=encoded, width=width, height=height)
            return Summary(value=[Summary.Value(tag=tag, image=image)])

        self.add(step, summary)

    def write_first(
        self, tag: str, text: str, settings: Mapping[str, Any], metrics: Sequence[str]
    ) -> None:
        """A text page in Markdown, and a row of the table of runs: settings, tags of the metrics.

        In a file before all others, which replaces that of an earlier start: of a row TensorBoard
        takes what it reads first. Paths in the text may have bytes that are no text.
        """

        def write() -> None:
            from tensorboard.summary.writer.record_writer import RecordWriter

            shown = text.encode("utf-8", "backslashreplace").decode()
            columns, start, self.run_ended = self.summary.hparams(
                dict(settings), dict.fromkeys(metrics, 0.0)
            )
            with whole_file(self.folder / FIRST) as file:
                writer = RecordWriter(file)
                writer.write(self.event(file_version="brain.Event:2"))
                for summary in (columns, start, self.summary.text(tag, shown)):
                    writer.write(self.event(step=0, summary=summary))

        self.attempt(write)

    def end_hparams(self) -> None:
        """The run of this row is over."""
        if self.run_ended is not None:
            self.add(0, lambda: self.run_ended)

    def add(self, step: int, summary: Callable[[], Any]) -> None:
        self.attempt(lambda: self.write(step=step, summary=summary()))

    def flush(self) -> None:
        """Also notices that the file was deleted or moved."""
        self.attempt(lambda: (self.file.flush(), self.path.stat()))

    def close(self) -> None:
        self.attempt(lambda: self.file.close())

    def attempt(self, action: Callable[..., None], *values: object) -> None:
        """Nothing after a failure, now or earlier."""
        if self.failed:
            return
        try:
            action(*values)
        except Exception as e:  # a broken TensorBoard fails in ways of its own
            self.failed = True
            with suppress(Exception):  # otherwise what is buffered fails once more, at the end
                self.file.close()
            reason = e.strerror if isinstance(e, OSError) else e
            print(f"warning: no more curves, cannot write {self.folder}: {reason}", file=sys.stderr)


def next_number(folder: Path) -> int:
    """The time, as in TensorBoard's own names, but later than in those of the folder."""
    names = (path.name for path in folder.iterdir())
    taken = [int(m[1]) for name in names if (m := re.match(r"events\.out\.tfevents\.(\d+)", name))]
    return max([int(time.time()), *(number + 1 for number in taken)])
