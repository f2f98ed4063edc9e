"""Ctrl-C and SIGTERM as a question the loop asks, so that no step is cut in half."""

import signal
from types import FrameType, TracebackType
from typing import Self

from utils.distributed import Ranks


class StopSignal:
    """Within ``with``: the first SIGINT or SIGTERM is noted, a second acts as it always does."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Self:
        self.before = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        self.number = number
        self.restore()

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to stop; then all of them are."""
        (number,) = ranks.highest(self.number)
        if number:
            self.note(number)
        return bool(number)

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.restore()

    @property
    def exit_code(self) -> int:
        """What a shell expects: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.number
