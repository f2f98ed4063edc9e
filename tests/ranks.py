"""Ranks for tests/test_distributed.py: as torchrun starts them, but forked, which is faster.

As a script, for the real torchrun: train.py with the small data set, whose last rank kills itself
once, at the step that $DIE_AT names, or with $SLOW takes its time; the fourth save takes $SLOW_SAVE
seconds.
"""

import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

from faults import FORK, SECONDS, Ended, Process, child_prelude
from sabotage import before_step, slow_save, steps_take

import data.datasets
import train
import utils.distributed
from utils.distributed import Ranks, share

Main = Callable[[list[str]], int]


def start(
    where: Path,
    world: int,
    argv: list[str],
    hook: str = "",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> list[Process]:
    """train.main(argv) on so many ranks; ``variables`` are what else a launcher tells them."""
    port = free_port()
    every = [environment(rank, world, port) | variables for rank in range(world)]
    return [Process(where, argv, hook, environment=own) for own in every]


def run(where: Path, world: int, argv: list[str], hook: str = "") -> list[Ended]:
    """To their end."""
    return [process.end() for process in start(where, world, argv, hook)]


def script(world: int, main: Main, argv: list[str]) -> list[int | None]:
    """The exit codes of a script's main(argv) on so many ranks."""
    port = free_port()
    processes = [
        FORK.Process(target=script_child, args=(environment(rank, world, port), main, argv))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        process.kill()
    return [process.exitcode for process in processes]


def script_child(variables: dict[str, str], main: Main, argv: list[str]) -> None:
    os.environ.update(variables)
    child_prelude()
    sys.exit(main(argv))


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return {name: str(value) for name, value in values.items()} | address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def same_noise(_: int) -> None:
    """A fault: every rank takes the first rows of what is sampled for the global batch."""
    Ranks.share = lambda ranks, rows: rows[: len(share(rows, ranks.rank, ranks.world))]


def other_images(_: int) -> None:
    """A fault: the second rank has a data set of its own."""
    if os.environ["RANK"] == "1":
        draw = data.datasets.DATASETS["digits"]
        data.datasets.DATASETS["digits"] = lambda *how: draw(*how)[::-1]


def other_clocks(_: int) -> None:
    """On every rank a step seems to take another time; --dry-run would take few."""
    train.FORECAST_SECONDS = 1.0
    steps_take(200 + 100 * int(os.environ["RANK"]))


def slow(_: int) -> None:
    """Steps that last long enough for a signal to arrive within one."""
    before_step(lambda _: time.sleep(0.1))


def slow_first(owner, name: str) -> None:
    """The first rank takes twice as long for this as ranks wait for one another."""
    utils.distributed.TIMEOUT = timedelta(seconds=2)
    original, calls = getattr(owner, name), itertools.count()

    def sleep_first(*arguments, **options):
        if os.environ["RANK"] == "0" and next(calls) == 0:
            time.sleep(4)
        return original(*arguments, **options)

    setattr(owner, name, sleep_first)


def slow_validation(_: int) -> None:
    slow_first(train.Validation, "draw")


def slow_scorer(_: int) -> None:
    slow_first(train, "make_scorer")


def slow_step(_: int) -> None:
    slow_first(train, "sample_inputs")


def at_step(step: int, number: int, rank: str) -> None:
    """This signal to this rank in the middle of this step."""
    own = os.environ.get("RANK", "0") == rank
    before_step(lambda state: own and state.step == step and os.kill(os.getpid(), number))


if __name__ == "__main__":
    child_prelude()
    if "DIE_AT" in os.environ and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        at_step(int(os.environ["DIE_AT"]), signal.SIGKILL, "1")
    if "SLOW" in os.environ:
        slow(0)
    if "SLOW_SAVE" in os.environ:
        slow_save(4, float(os.environ["SLOW_SAVE"]))
    sys.exit(train.main(sys.argv[1:]))
