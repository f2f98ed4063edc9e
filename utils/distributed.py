"""Several processes (ranks) that train or sample together.

``torchrun --nproc-per-node N train.py`` starts N ranks, each with its share of every batch. Without
torchrun there is one process, at no cost.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TextIO, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.devices import DeviceError
from utils.rendezvous import TIMEOUT, RankError, launched, meet, reason_of

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # for what the first rank does alone; a death is noticed at once


def share(rows: Tensor, rank: int, world: int) -> Tensor:
    """The rows of one rank; the first ranks have one more where they cannot be shared evenly."""
    return rows.tensor_split(world)[rank]


@dataclass(frozen=True)
class Ranks:
    """This process among ``world`` of them."""

    rank: int = 0
    world: int = 1
    patient: dist.ProcessGroup | None = field(default=None, compare=False)  # with its own timeout
    launched: bool = False  # by torchrun, which passes signals on

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @property
    def silent(self) -> bool:
        """Whether this process shows no progress, as another one does."""
        return not self.first

    def share(self, rows: Tensor) -> Tensor:
        """This rank's rows; the first ranks have one more where they cannot be shared evenly."""
        return share(rows, self.rank, self.world)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Within it, the first rank is done before the others begin."""
        if not self.first:
            self.wait_for_first()
        yield
        if self.first:
            self.wait_for_first()

    def wait_for_first(self) -> None:
        """Until the first rank is here as well, however long what it does alone takes it."""
        if self.world > 1:
            dist.barrier(self.patient)

    def alone(self, held: AbstractContextManager) -> AbstractContextManager:
        """The context on rank 0, none elsewhere."""
        return held if self.first else nullcontext()

    def silenced(self, nowhere: TextIO) -> AbstractContextManager:
        """Within it, only the first rank prints."""
        return nullcontext() if self.first else redirect_stdout(nowhere)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network whose backward pass averages the gradients of all ranks."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def gradient_sync(self, network: nn.Module, sync: bool) -> AbstractContextManager:
        """Within it, DDP averages the gradients over the ranks only if ``sync``."""
        return nullcontext() if sync or self.world == 1 else network.no_sync()

    def highest(self, *values: int) -> tuple[int, ...]:
        """The elementwise maximum over the ranks; on the CPU, so without waiting for a GPU."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, in place."""
        return tensor if self.world == 1 else self.sum(tensor).div_(self.world)

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first rank, which alone calls it."""
        if self.world == 1:
            return make()
        box = [make() if self.first else None]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def gather(self, rows: Tensor) -> Tensor:
        """The parts of all ranks in their order, on the CPU of the first; elsewhere this rank's."""
        if self.world == 1:
            return rows
        parts = [None] * self.world if self.first else None
        dist.gather_object(rows.cpu(), parts)
        return torch.cat(parts) if self.first else rows

    def check_equal(self, value: object, what: str) -> None:
        """RankError unless all ranks give the same value."""
        if self.from_first(lambda: value) != value:
            raise RankError(f"rank {self.rank} has a different {what} than rank 0")


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, until the end of ``with``; alone if it is the only one.

    The n-th rank of a machine takes its n-th GPU, which then is what "cuda" means; only the first
    prints. Raises DeviceError where there are fewer, LaunchError for an incomplete environment,
    RankError where a rank is absent or ends before its time.
    """
    launch = launched()
    if launch is None or launch.world == 1:  # one rank meets nobody, wherever the address leads
        yield Ranks(launched=launch is not None)
        return
    backend = "gloo"
    if device.type == "mps":
        raise DeviceError("--device mps: ranks cannot share it; use cpu, or start without torchrun")
    if device.type == "cuda":
        take_own_gpu(device, launch.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store = meet(launch)
        dist.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.world, timeout=TIMEOUT
        )
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        ranks = Ranks(launch.rank, launch.world, patient, launched=True)
        with open(os.devnull, "w") as nowhere, ranks.silenced(nowhere):
            yield ranks
        gc.collect()  # what is left of a wrapped network would abort the end of the process
        dist.destroy_process_group()
    except RuntimeError as e:
        if not is_lost(e):
            raise
        raise RankError(
            f"another rank is gone, so rank {launch.rank} cannot go on ({reason_of(e)}); "
            "start again with --resume auto"
        ) from e


def take_own_gpu(device: torch.device, local_rank: int) -> None:
    """Make the GPU of this rank the current one. DeviceError where there is none for it."""
    count = torch.cuda.device_count()
    if device.index is not None:
        raise DeviceError(f"--device {device}: with torchrun each rank takes its own, use cuda")
    if local_rank >= count:
        raise DeviceError(f"--nproc-per-node must be at most {count}, one per CUDA device")
    torch.cuda.set_device(local_rank)


def is_lost(error: RuntimeError) -> bool:
    """Whether it is the connection to another rank that failed."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
