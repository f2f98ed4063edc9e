"""The state of a training run: all that changes while it lasts."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from config import Config, TrainConfig
from data import ImageSet
from diffusion import GaussianDiffusion, LossMoments, value_prior
from models import PowerEMA, UNet
from training.build import build, restore_value_prior
from training.epochs import Epochs
from training.optim import OPTIMIZERS, LRSchedule
from training.pretrained import Pretrained
from training.resume import Resumed
from training.validation_schedule import ValidationSchedule
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.distributed import Ranks
from utils.images import to_uint8
from utils.progress import Progress
from utils.seeding import permutation

COUNTED, CHUNK = 5_000, 100  # images whose pixel values are counted; of them in memory at once
COMPILE_STEPS, COMPILE_MINUTES = 10_000, 10.0  # from which on compiling pays off, on CUDA


@dataclass
class TrainState:
    """Everything that a training step reads or updates."""

    config: Config
    diffusion: GaussianDiffusion
    model: UNet
    network: nn.Module  # the model as the step calls it: wrapped in DDP if there are several ranks
    ema: PowerEMA
    optimizers: list[torch.optim.Optimizer]
    epochs: Epochs
    ranks: Ranks
    validation_schedule: ValidationSchedule
    schedule: LRSchedule | None = None  # None with --max-minutes until the throughput is known
    step: int = 0
    seconds: float = 0.0  # that the run has taken, see Clock.seconds
    minutes_since: float | None = 0.0  # the seconds from which --max-minutes counts, where known
    best: dict[str, float] | None = None  # step, loss and points of the lowest held-out loss
    best_score: dict[str, float] | None = None  # step and score of the lowest Fréchet distance
    x0_error: Tensor | None = None  # of the EMA weights by t, (T + 1,), where it was measured
    changes: list[str] = field(default_factory=list)  # of settings or machine, at a resume
    notes: dict[str, Any] = field(default_factory=dict)  # further entries of its checkpoints
    skipped: Tensor = field(default_factory=lambda: torch.zeros(()))  # consecutive skipped updates
    saved: Path | None = None  # the newest checkpoint
    moments: LossMoments | None = None  # of the losses by t, for --importance-sampling
    # Of the training loss since the last validation, sum and count: in all, and by quarter of t.
    loss_since: list[float] = field(default_factory=lambda: [0.0, 0])
    loss_by_quartile: Tensor = field(default_factory=lambda: torch.zeros(4, 2))

    @classmethod
    def create(
        cls,
        config: Config,
        images: int,
        device: torch.device,
        ranks: Ranks,
        start: Resumed | Pretrained | None,
    ) -> Self:
        """Initialize, from scratch or from the weights of another run, or resume a checkpoint."""
        c = config.train
        model, diffusion = build(config)
        if isinstance(start, Pretrained):
            start.initialize(model)
        model, diffusion = model.to(device), diffusion.to(device)
        optimizers = OPTIMIZERS[c.optimizer](model, c.lr, c.weight_decay)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        ema = PowerEMA(model, c.ema_power, c.ema_decay)
        epochs = Epochs(images, c.batch_size, c.min_epoch_images)
        objects = (config, diffusion, model, model, ema, optimizers, epochs, ranks)
        state = cls(*objects, ValidationSchedule.of(config))
        state.skipped = state.skipped.to(device)
        state.loss_by_quartile = state.loss_by_quartile.to(device)
        if c.importance_sampling:
            state.moments = LossMoments(diffusion.timesteps, device)
        if not c.max_minutes:
            state.schedule = LRSchedule.over(epochs.limit(c), c.warmup_steps, c.decay)
        if isinstance(start, Resumed):
            state.load(start)
        model.checkpoint_activations = c.checkpoint_activations
        if compiles(c, device, state.schedule and state.schedule.total_steps - state.step):
            model.compile(dynamic=False)  # in place, so that the keys of its state_dict stay
        state.network = ranks.wrap(model)
        return state

    def count_values(self, train_set: ImageSet) -> None:
        """Tell a process of discrete pixels how often each value occurs, in some of the images."""
        if not self.diffusion.discrete_pixels:
            return
        order, counts = permutation(len(train_set), 0, 0)[:COUNTED], torch.zeros(256)
        with Progress(
            "counting values", len(order), "images", silent=self.ranks.silent
        ) as progress:
            for x_0, _ in train_set.batches(order, CHUNK):
                counts = counts + to_uint8(x_0).cpu().flatten().long().bincount(minlength=256)
                progress.update(len(x_0))
        self.diffusion.value_prior.copy_(value_prior(counts))

    @property
    def device(self) -> torch.device:
        return self.diffusion.device

    def compilation(self) -> AbstractContextManager:
        """Within it a compiled network runs as such, but for the smaller last batch of an epoch.

        For another size it would be compiled anew, which takes as long as thousands of steps.
        """
        full = self.epochs.global_batch(self.step) == self.config.train.batch_size
        return nullcontext() if full else torch.compiler.set_stance("force_eager")

    @property
    def finished(self) -> bool:
        limit = self.epochs.limit(self.config.train)
        return self.step >= (self.schedule.total_steps if self.schedule else limit)

    @property
    def validation_due(self) -> bool:
        return self.finished or self.validation_schedule.due(self.step)

    @property
    def score_due(self) -> bool:
        last = self.finished and self.config.train.score_every
        return bool(last or self.validation_schedule.score_due(self.step))

    @property
    def density(self) -> Tensor | None:
        """The probability of each t (T + 1,), where it is measured; None: the process's own."""
        return self.moments and self.moments.density(self.diffusion.density)

    @property
    def lr(self) -> float:
        """AdamW's learning rate."""
        return self.optimizers[-1].param_groups[0]["lr"]

    def set_lr(self) -> None:
        """The learning rates of this step; until the schedule is known, its warm-up."""
        factor = min(1.0, self.step / max(1, self.config.train.warmup_steps))
        if self.schedule:
            factor = self.schedule.factor(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def batches(
        self, train_set: ImageSet, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the batches that are left of the epoch, or of the next few."""
        c, (epoch, done) = self.config.train, divmod(self.step, self.epochs.steps)
        left = slice(done * c.batch_size, most and (done + most) * c.batch_size)
        order = self.epochs.order(c.seed, epoch)[left]
        batches = train_set.batches(order, c.batch_size, (self.ranks.rank, self.ranks.world))
        if not c.flip:
            return batches
        flips = self.epochs.flips(c.seed, epoch)[left].to(self.device).split(c.batch_size)
        return flipped(batches, map(self.ranks.share, flips))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": [optimizer.state_dict()["state"] for optimizer in self.optimizers],
            "scheduler": self.schedule and asdict(self.schedule),
            "seconds": self.seconds,
            "minutes_since": self.minutes_since,
            "best": self.best,
            "best_score": self.best_score,
            "changes": self.changes,
            "x0_error": self.x0_error if self.validation_due else None,  # else stale
            "loss_since": self.loss_since,
            "by_quarter": self.loss_by_quartile,
            "loss_moments": self.moments and self.moments.sums,
            "value_prior": self.diffusion.stored_value_prior,
            "epoch": self.step // self.epochs.steps,
            "config": asdict(self.config),
            **self.notes,
        }

    def load(self, resumed: Resumed) -> None:
        """Restore, and take the weights out of resumed.ckpt, so that they are in memory once.

        CheckpointError with the first differences where the checkpoint does not fit.
        """
        path, ckpt = resumed.path, resumed.ckpt
        for name, module in (("model", self.model), ("ema", self.ema)):
            weights = ckpt.pop(name)
            checkpoint.check_fits(path, name, weights, module.state_dict())
            module.load_state_dict(weights)
        try:
            for optimizer, saved in zip(self.optimizers, ckpt.pop("optimizer"), strict=True):
                optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{path} does not fit its configuration: optimizer: {e}") from e
        self.step, self.best, self.saved = ckpt["step"], ckpt["best"], path
        self.seconds, self.best_score = ckpt.get("seconds", 0.0), ckpt.get("best_score")
        self.changes = list(ckpt.get("changes", []))
        self.loss_since = list(ckpt.get("loss_since", self.loss_since))
        if self.ranks.first:
            self.loss_by_quartile.copy_(ckpt.get("by_quarter", self.loss_by_quartile))
        restore_value_prior(path, ckpt, self.diffusion)
        if self.moments and ckpt.get("loss_moments") is not None:
            sums = {"loss_moments": self.moments.sums}
            checkpoint.check_fits(path, "state", {"loss_moments": ckpt["loss_moments"]}, sums)
            self.moments.sums.copy_(ckpt["loss_moments"])
        if resumed.reschedule:
            self.minutes_since = self.seconds
        elif ckpt["scheduler"]:
            self.schedule = LRSchedule(**ckpt["scheduler"])
            self.minutes_since = ckpt.get("minutes_since")  # None in those of earlier versions
        else:
            self.minutes_since = ckpt.get("minutes_since", self.seconds)


def flipped(
    batches: Iterator[tuple[Tensor, Tensor]], flips: Iterator[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, with those images (B, C, H, W) mirrored left to right whose flip (B,) is set."""
    for (x_0, y), flip in zip(batches, flips, strict=True):
        yield torch.where(flip.view(-1, 1, 1, 1), x_0.flip(-1), x_0), y


def compiles(c: TrainConfig, device: torch.device, ahead: int | None) -> bool:
    """Whether to compile the network, for the remaining steps (None: not known yet).

    On a CPU compilation takes one to three minutes and gains at most a tenth, so auto compiles on
    CUDA only, and only if at least COMPILE_STEPS or COMPILE_MINUTES are ahead.
    """
    if c.compile != "auto":
        return c.compile == "on"
    long = c.max_minutes >= COMPILE_MINUTES if ahead is None else ahead >= COMPILE_STEPS
    return device.type == "cuda" and long
