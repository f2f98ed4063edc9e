"""The files beside the curves: configuration, pictures, history."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from utils import images, runs
from utils.files import Claim, whole_file
from utils.history import HISTORY, line_of, read_history


class Outputs:
    """Writes to the folder of a run's logs, if it is still this run's.

    What cannot be written is a warning, one until something can be again, not the end of the run.
    """

    def __init__(self, folder: Path, claim: Claim | None = None) -> None:
        self.folder, self.claim, self.failing = folder, claim, False

    def json(self, name: str, values: dict[str, Any]) -> None:
        self.attempt(lambda: runs.write_json(self.folder / name, values))

    def picture(self, name: str, picture: Tensor) -> None:
        """A uint8 picture (3, H, W) as a PNG."""
        self.attempt(lambda: images.save_png(picture, self.folder / name))

    def whole(self, name: str, content: bytes) -> None:
        """A file that is never seen half written."""

        def write() -> None:
            with whole_file(self.folder / name) as file:
                file.write(content)

        self.attempt(write)

    def add_to_history(self, row: dict[str, Any]) -> None:
        """Append a line to history.jsonl."""

        def append() -> None:
            with (self.folder / HISTORY).open("ab") as file:
                file.write(line_of(row))

        self.attempt(append)

    def go_back_to(self, step: int) -> None:
        """Drop the lines of later steps, which will be trained again."""
        rows = read_history(self.folder)
        if rows:
            kept = b"".join(line_of(row) for row in rows if row["step"] <= step)
            self.whole(HISTORY, kept)

    def attempt(self, write: Callable[[], None]) -> None:
        try:
            if self.claim:
                self.claim.check()
            write()
            self.failing = False
        except OSError as e:
            if not self.failing:
                print(f"warning: cannot write {e.filename}: {e.strerror}", file=sys.stderr)
            self.failing = True
