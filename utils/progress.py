"""Signs of life: a bar on a terminal, elsewhere a line a minute."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Event, Thread
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")
REFRESH = 2.0  # seconds between refreshes of the bar, also where no unit of work ends
FIRST_LINE, LINES = 10.0, 60.0  # seconds, where there is no terminal


class Progress:
    """Work of ``total`` units, of which some may be done; None: how many is not known yet.

    Use as a context manager. On a terminal it is a bar whose estimate is that of all the time since
    the start, so that pauses which recur, as for validation, are in it. Elsewhere it prints a line
    after ten seconds, then one a minute. silent: neither. stays: the bar is left at its end.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        done: int = 0,
        silent: bool = False,
        stays: bool = False,
    ) -> None:
        self.title, self.total, self.unit, self.done, self.n = title, total, unit, done, done
        self.silent, self.note, self.began = silent, "", time.monotonic()
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            disable=silent or not self.terminal,
            dynamic_ncols=True,
            smoothing=0,
            leave=stays,
        )
        self.ended, self.ticker = Event(), Thread(target=self.tick, daemon=True)

    def __enter__(self) -> Self:
        if not self.silent:
            with suppress(RuntimeError):  # the system may refuse threads: then without
                self.ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.ticker.is_alive():
            self.ticker.join()
        self.bar.close()

    def update(self, units: int = 1) -> None:
        """So many more units are done."""
        self.n += units
        self.bar.update(units)

    def describe(self, title: str, total: int | None, note: str = "") -> None:
        """Another title, total and note, such as the loss; shown with the next refresh."""
        self.title, self.total, self.note = title, total, note
        self.bar.total = total
        self.bar.set_description_str(title, refresh=False)
        self.bar.set_postfix_str(note, refresh=False)

    def tick(self) -> None:
        """What the thread does until the end."""
        wait = REFRESH if self.terminal else FIRST_LINE
        while not self.ended.wait(wait):
            if self.terminal:
                self.bar.refresh()
            else:
                print(self.line(), file=sys.stderr, flush=True)
                wait = LINES

    def line(self) -> str:
        """How far it is, as a line of text."""
        total = f"/{self.total:,}" if self.total else ""
        parts = [f"{self.title}: {self.n:,}{total} {self.unit}", self.note]
        if self.total and self.done < self.n < self.total:  # at its end, others go on
            seconds = (time.monotonic() - self.began) / (self.n - self.done)
            parts.append(f"{duration((self.total - self.n) * seconds)} left")
        return ", ".join(filter(None, parts))


def track(items: Sequence[T], title: str, unit: str, silent: bool = False) -> Iterator[T]:
    """The items; how many were taken is shown."""
    with Progress(title, len(items), unit, silent=silent) as progress:
        for item in items:
            yield item
            progress.update()


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
