"""How ranks find each other: by the environment variables that torchrun sets for each."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from utils.errors import InputError, StoppedError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
AGENT, RESTART = "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"
OPTIONAL = {"LOCAL_WORLD_SIZE": "1", RESTART: "0", AGENT: "False"}  # and what each is by default
TIMEOUT = timedelta(minutes=10)  # for a rank that hangs; one that dies is noticed at once
NOTICE = 10.0  # seconds of waiting after which it is said for whom
SHOWN = 8  # ranks that a line names, at most


class LaunchError(InputError):
    """Environment variables of a launcher that are incomplete or cannot be; one line."""


class RankError(StoppedError):
    """Another rank is absent, gone, or has diverged from this one; one line."""


@dataclass(frozen=True)
class Launch:
    """What the launcher tells a rank."""

    rank: int
    world: int
    local_rank: int  # among those of this machine
    port: int
    host: str  # where rank 0 is
    local_world: int = 1  # ranks of this machine
    restart: int = 0  # how often the job was started before
    agent: bool = False  # the launcher itself serves the store at this address, not rank 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def launched() -> Launch | None:
    """From the environment; None where none of VARIABLES is set, whatever else is.

    LaunchError for some of them, as a shell or a cluster may leave them, and for impossible values.
    """
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not found:
        return None
    if missing := [name for name in VARIABLES if name not in found]:
        raise LaunchError(
            f"the environment has {', '.join(found)} and lacks {', '.join(missing)}: "
            f"start with torchrun, which sets all of them; {remedy(found)}"
        )
    found |= {name: os.environ[name] for name in OPTIONAL if os.environ.get(name)}
    read = OPTIONAL | found
    agent, host = read[AGENT], read["MASTER_ADDR"]
    numbers = [value for name, value in read.items() if name not in (AGENT, "MASTER_ADDR")]
    if agent in ("True", "False") and all(re.fullmatch(r"\d{1,9}", n) for n in numbers):
        rank, world, local_rank, port = (int(found[name]) for name in VARIABLES[:-1])
        local_world, restart = int(read["LOCAL_WORLD_SIZE"]), int(read[RESTART])
        launch = Launch(rank, world, local_rank, port, host, local_world, restart, agent == "True")
        if rank < world and 1 <= local_world <= world and port < 2**16:
            return launch
    values = ", ".join(f"{name}={value}" for name, value in found.items())
    raise LaunchError(f"the environment has {values}: start with torchrun; {remedy()}")


def remedy(found: Iterable[str] = VARIABLES) -> str:
    """What to do about variables that a launcher left; for the end of a line."""
    return f"to run alone: unset {' '.join(found)}"


def local_ranks() -> int:
    """The ranks of this machine, which share its cores."""
    launch = launched()
    return launch.local_world if launch else 1


def meet(launch: Launch, notice: float = NOTICE, timeout: timedelta = TIMEOUT) -> dist.Store:
    """The store of a job, once all of its ranks have come to it.

    Says on stderr who is missing after ``notice`` seconds. RankError after the timeout; LaunchError
    where the address cannot be rank 0's. A restarted job finds the store of the one before, and in
    it the addresses of ranks that died: hence a prefix for each start.
    """
    ends = time.monotonic() + timeout.total_seconds()
    serve = launch.rank == 0 and not launch.agent
    if serve:
        check_resolved(launch)
    else:  # a name may be unknown until rank 0 has started, as in Kubernetes
        wait(lambda: [] if reachable(launch) else [0], launch, notice, ends)
    try:
        store = dist.TCPStore(
            launch.host,
            launch.port,
            is_master=serve,
            timeout=timedelta(seconds=NOTICE),
            wait_for_workers=False,  # torch would wait without a word, and without hearing Ctrl-C
            multi_tenant=True,
        )
    except RuntimeError as e:
        raise no_rank_0(launch, reason_of(e)) from e
    store.set_timeout(timeout)
    store = dist.PrefixStore(str(launch.restart), store)
    store.set(f"rank {launch.rank}", "")
    wait(lambda: absent(store, launch.world), launch, notice, ends)
    return store


def check_resolved(launch: Launch) -> None:
    """LaunchError where rank 0's own name has no address; torch would try for half a minute."""
    try:
        socket.getaddrinfo(launch.host, launch.port)
    except OSError as e:
        raise no_rank_0(launch, e.strerror) from e


def no_rank_0(launch: Launch, reason: str) -> LaunchError:
    """The error of a rank 0 that cannot serve its job's address; one line, with the remedy."""
    return LaunchError(f"cannot be rank 0 of a job at {launch.address}: {reason}; {remedy()}")


def wait(missing: Callable[[], list[int]], launch: Launch, notice: float, ends: float) -> None:
    """Until no rank is missing. Rank 0 says who is, and all do if it is rank 0 itself."""
    told = time.monotonic() + notice
    while ranks := missing():
        names = ", ".join(map(str, ranks[:SHOWN])) + (", ..." if len(ranks) > SHOWN else "")
        who = "torchrun" if launch.agent and ranks == [0] else f"rank {names} of {launch.world}"
        line = f"{who} at {launch.address}"
        now = time.monotonic()
        if now > ends:
            raise RankError(f"{line} did not start; {remedy()}")
        if now > told and 0 in (launch.rank, ranks[0]):
            waits = f"rank {launch.rank} waits for {line}; {remedy()}"
            print(waits, file=sys.stderr, flush=True)
            told = ends + 1
        time.sleep(0.05)


def reachable(launch: Launch) -> bool:
    """Whether something listens at the address of rank 0."""
    with suppress(OSError), socket.create_connection((launch.host, launch.port), 1.0):
        return True
    return False


def absent(store: dist.Store, world: int) -> list[int]:
    """The ranks that have not come yet."""
    return [rank for rank in range(world) if not store.check([f"rank {rank}"])]


def reason_of(error: RuntimeError) -> str:
    """The first sentence of a message of torch.distributed, without its source line."""
    return str(error).strip().rpartition("] ")[2].split(". ")[0]
