"""Saving a training run: its checkpoints, EMA weights alone, and what is left where that fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data import ReadError, WaitError
from training.clock import Clock
from training.logger import Logger
from training.state import TrainState
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.errors import StoppedError
from utils.runs import Run


def save_checkpoint(run: Run, state: TrainState) -> None:
    """Write a checkpoint; all but the newest few and the best are deleted.

    StoppedError where it cannot be written, or where the run's folders are another's by now.
    """
    best = [found["step"] for found in (state.best, state.best_score) if found]
    try:
        state.saved = run.save(state.step, state.state_dict(), best, state.config.train.keep)
    except CheckpointError as e:
        raise StoppedError(f"{e}; {last_good(state.saved)}") from e


def save_ema(run: Run, state: TrainState) -> None:
    """Write the EMA weights alone: what sampling needs of a checkpoint.

    Raises CheckpointError and OSError.
    """
    content = state.state_dict()
    content = {name: content[name] for name in content.keys() - checkpoint.TRAINING}
    run.save_ema(state.step, content)


@contextmanager
def saved_on_read_error(
    run: Run, state: TrainState, logger: Logger, clock: Clock
) -> Iterator[None]:
    """Too many files that cannot be read end a run, and so does a stop signal while one does not
    arrive, after which the program goes on behind ``with``. What was trained is kept.
    """
    began = state.step
    try:
        yield
    except (ReadError, WaitError) as e:
        if state.ranks.world == 1 and logger.steps:  # several ranks would have to meet for it
            logger.write_steps(clock)
            logger.writer.flush()
        if state.ranks.first and state.step > began:
            save_checkpoint(run, state)
        if isinstance(e, ReadError):
            raise


def last_good(saved: Path | None) -> str:
    """Which checkpoint is left; for the end of a line."""
    there = saved is not None and saved.exists()
    return f"the last good one is {saved}" if there else "there is no earlier one"
