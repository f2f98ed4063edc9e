"""The images of a sampling run: written batch by batch, found again after an interruption.

Until the last image is drawn the folder holds ``samples.partial.json``, which says what is drawn
and how many images are there, and beside it raw uint8 arrays: the images that the .npz and the grid
are made from, and the frames of the animation. Pictures 00000.png and so on are whole files from
the start.
"""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from config import ConfigError
from utils import images
from utils.errors import StoppedError
from utils.files import new_folders, only_writer, remove_partial, whole_file
from utils.process import Interrupted

RECORD = "samples.partial.json"
SHOWN = 1_000  # images of a grid or an animation, at most
CHUNK = 2**24  # bytes that are compressed at a time


@dataclass(frozen=True)
class Rows:
    """The first ``most`` rows of a uint8 array, each of this shape, in a file that grows."""

    path: Path
    shape: tuple[int, ...]
    most: int

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape)

    def has(self, count: int) -> bool:
        """Whether its part of the first ``count`` rows is there."""
        size = self.path.stat().st_size if self.path.exists() else 0
        return size >= min(count, self.most) * self.size

    def cut(self, count: int) -> None:
        """Keep the first ``count`` rows alone. Raises OSError."""
        with open(self.path, "ab") as file:
            file.truncate(min(count, self.most) * self.size)

    def append(self, rows: np.ndarray, first: int) -> None:
        """Add the rows ``first`` ..., as far as they belong here; on the disk at the end."""
        with open(self.path, "ab") as file:
            file.write(rows[: max(0, self.most - first)].tobytes())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> np.ndarray:
        """All rows, (N, *shape), from the disk when they are looked at."""
        return np.memmap(self.path, np.uint8, "r").reshape(-1, *self.shape)

    def chunks(self) -> Iterator[bytes]:
        """The bytes of all rows."""
        with open(self.path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


@dataclass
class Unfinished:
    """The images of a sampling run in a folder, of which the first ``done`` are there.

    of: what they are drawn from and how, as JSON has it; batches start at multiples of batch_size.
    numbered: whether each is a picture of its own. images (H, W, C), frames (F, C, H, W): the raw
    arrays, where they are needed.
    """

    folder: Path
    num: int
    batch_size: int
    of: Mapping[str, Any]
    numbered: bool
    images: Rows | None
    frames: Rows | None
    done: int = 0
    begun: bool = False

    @classmethod
    def to_be(
        cls,
        folder: Path,
        formats: Collection[str],
        image_shape: Sequence[int],
        frames: int,
        of: Mapping[str, Any],
    ) -> Self:
        """What output in these formats needs, (C, H, W) an image; frames: of an animation."""
        (c, h, w), num, stored, film = image_shape, of["num"], None, None
        if "npz" in formats or "grid" in formats:
            most = num if "npz" in formats else min(num, SHOWN)
            stored = Rows(folder / "samples.partial", (h, w, c), most)
        if "gif" in formats:
            film = Rows(folder / "frames.partial", (frames, c, h, w), min(num, SHOWN))
        return cls(folder, num, of["batch_size"], of, "png" in formats, stored, film)

    @property
    def record(self) -> Path:
        """The file that says how many images are there, and what they are."""
        return self.folder / RECORD

    @property
    def raw(self) -> list[Rows]:
        """The raw arrays."""
        return [rows for rows in (self.images, self.frames) if rows]

    def find(self, overwrite: bool) -> bool:
        """Whether an interrupted run of the same images was here; then set ``done``.

        Images of another checkpoint, seed or setting are refused with a ConfigError, or with
        ``overwrite`` not counted. Raises OSError.
        """
        if not self.record.exists():
            return False
        try:
            content = json.loads(self.record.read_text(encoding="utf-8"))
            done, of = int(content["done"]), dict(content["of"])
            other = self.differences(of)
        except (ValueError, KeyError, TypeError):
            done, other = 0, "unknown settings"
        if other and not overwrite:
            raise ConfigError(
                f"{self.record} is of an interrupted run with {other}: repeat its command to go "
                "on, or choose another --out, or --overwrite"
            )
        self.done = 0 if other else self.there(min(done, self.num))
        return not other

    def differences(self, of: Mapping[str, Any]) -> str:
        """The values of another run that are not this one's."""
        own = json.loads(json.dumps(self.of))  # tuples as lists
        return ", ".join(f"{name} {of.get(name)}" for name in own if of.get(name) != own[name])

    def there(self, done: int) -> int:
        """How many of the first ``done`` images are on the disk, in whole batches."""
        if not all(rows.has(done) for rows in self.raw):
            return 0
        if self.numbered:
            done = next((i for i in range(done) if not self.picture(i).exists()), done)
        return done if done == self.num else done - done % self.batch_size

    def picture(self, i: int) -> Path:
        """The file of one image."""
        return self.folder / f"{i:05d}.png"

    @contextmanager
    def growing(self) -> Iterator[None]:
        """Within it this process alone adds images; at its end what is not output is deleted.

        What stops it is told how many are there. Raises LockError where another process adds some.
        """
        with new_folders(self.folder), only_writer(self.folder):
            remove_partial(self.folder)  # of a killed process
            try:
                yield
                self.remove()
            except Interrupted as e:
                if self.record.exists():
                    e.line = f"interrupted: {self.progress}; the same command goes on"
                raise
            except OSError as e:
                if not self.record.exists():
                    raise
                reason = f"{e.filename or self.folder}: {e.strerror or e}"
                raise StoppedError(f"{reason}; {self.progress}, the same command goes on") from e

    @property
    def progress(self) -> str:
        """How many of the images are there."""
        return f"{self.done:,} of {self.num:,} images are there"

    def add(self, states: Sequence[Tensor]) -> None:
        """The next images, the last of the states (n, C, H, W) uint8; on the disk at the end."""
        x_0, first = states[-1], self.done
        if not self.begun:
            self.begin()
        if self.numbered:
            for i, x in enumerate(x_0, first):
                images.save_png(x, self.picture(i))
        if self.images:
            self.images.append(x_0.permute(0, 2, 3, 1).numpy(), first)
        if self.frames:
            self.frames.append(np.stack([x.numpy() for x in states], axis=1), first)
        self.count(first + len(x_0))

    def begin(self) -> None:
        """Before the first file: note what it will belong to, and drop what is not counted."""
        self.count(self.done)
        self.begun = True
        for rows in self.raw:
            rows.cut(self.done)

    def count(self, done: int) -> None:
        """So many images are there."""
        with whole_file(self.record) as file:
            file.write(json.dumps({"done": done, "of": self.of}, indent=1).encode())
        self.done = done

    def shown(self) -> Tensor:
        """The images of a grid, (N, C, H, W) uint8."""
        rows = self.images.read()[:SHOWN]
        return torch.from_numpy(rows.copy()).permute(0, 3, 1, 2)

    def film(self) -> Iterator[Tensor]:
        """The frames of an animation, one after the other, each (N, C, H, W) uint8."""
        rows = self.frames.read()
        return (torch.from_numpy(rows[:, i].copy()) for i in range(rows.shape[1]))

    def remove(self) -> None:
        """Delete what an interrupted run would need. The count goes first: it must not be wrong."""
        self.record.unlink(missing_ok=True)
        for rows in self.raw:
            rows.path.unlink(missing_ok=True)
