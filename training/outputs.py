"""The files beside the curves: configuration, pictures, history."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils import checkpoint, runs
from utils.devices import out_of_memory
from utils.errors import InputError, StoppedError
from utils.files import Claim, anything_goes, whole_file
from utils.history import HISTORY, line_of, read_history


@contextmanager
def warn_on_error(what: str) -> Iterator[None]:
    """What a run can do without: an error within it is a warning of a line, see raise_if_fatal."""
    try:
        yield
    except Exception as e:  # whatever a library raises: it is not worth the run
        raise_if_fatal(e)
        print(f"warning: {what}: {reason_of(e)}", file=sys.stderr, flush=True)


def raise_if_fatal(error: Exception) -> None:
    """Lack of memory, and errors that say how to go on."""
    if isinstance(error, StoppedError) or out_of_memory(error):
        raise error


def reason_of(error: Exception) -> str:
    """In a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, InputError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Outputs:
    """Writes to the folder of a run's logs, if it is still this run's.

    What cannot be written is a warning, one until something can be again, not the end of the run.
    """

    def __init__(self, folder: Path, claim: Claim | None = None) -> None:
        self.folder, self.failing = folder, False
        self.check = claim.check if claim else anything_goes

    def json(self, name: str, values: dict[str, Any]) -> None:
        self.attempt(lambda: runs.write_json(self.folder / name, values, self.check))

    def whole(self, name: str, content: bytes) -> None:
        """A file that is never seen half written."""

        def write() -> None:
            with whole_file(self.folder / name, self.check) as file:
                file.write(content)

        self.attempt(write)

    def add_to_history(self, row: dict[str, Any]) -> None:
        """Append a line to history.jsonl."""

        def append() -> None:
            with (self.folder / HISTORY).open("ab") as file:
                file.write(line_of(row))

        self.attempt(append)

    def add_scores(self, step: int, scores: dict[str, float]) -> None:
        """To the line of this step, which was written before they were there."""
        self.rewrite(lambda row: {**row, "score": scores} if row["step"] == step else row)

    def go_back_to(self, step: int) -> None:
        """Drop the lines of later steps, which will be trained again, and set pictures aside."""
        self.rewrite(lambda row: row if row["step"] <= step else None)

        def set_aside() -> None:
            taken = checkpoint.steps(self.folder, "samples", "png")
            checkpoint.set_aside([path for n, path in taken.items() if n > step], "replaced")

        self.attempt(set_aside)

    def rewrite(self, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """The lines of history.jsonl, each changed, or dropped where that gives None."""

        def write() -> None:
            rows = read_history(self.folder)
            if rows:
                content = b"".join(line_of(new) for row in rows if (new := change(row)))
                with whole_file(self.folder / HISTORY, self.check) as file:
                    file.write(content)

        self.attempt(write)

    def attempt(self, write: Callable[[], None]) -> None:
        try:
            self.check()
            write()
            self.failing = False
        except Exception as e:
            raise_if_fatal(e)
            if not self.failing:
                where = getattr(e, "filename", None) or self.folder
                print(f"warning: cannot write {where}: {reason_of(e)}", file=sys.stderr, flush=True)
            self.failing = True
