"""The training loops that throughput.py compares: functions n -> None that train for n steps.

ours          train.train_epoch as it is: data, noise, network, clipping, optimizer, EMA, logger
checkpointed  the same with --checkpoint-activations
bare          the network alone, forwards and backwards, on one batch that never changes
plain         our network in a loop without any of the tricks: what one would write first
diffusers     UNet2DModel of the same macro structure, the loop of diffusers' training example
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import models.blocks
from config import PRESETS, Config
from data import ImageSet
from data.image_set import TensorSet
from diffusion import DiffusionModel
from models import PowerEMA
from train import train_epoch
from training.build import build
from training.clock import Clock
from training.epochs import Epochs
from training.logger import Logger
from training.state import TrainState
from utils.devices import autocast
from utils.distributed import Ranks
from utils.images import normalize
from utils.process import StopSignal
from utils.progress import Progress
from utils.runs import Run

IMAGES = 12_800  # in memory
STEPS = 10**6  # of a learning-rate schedule that does not end here
Loop = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """A preset in a number format on a device, with random images of its usual size in memory.

    compile: a mode of torch.compile; "": none. batch_size 0: the preset's. tiny: the preset's
    levels at eight channels, to see that a benchmark works.
    """

    preset: str
    precision: str
    device: torch.device
    checkpoint_activations: bool = False
    image_channels: int = 0  # 0: 3 for cifar10, else 1
    image_size: int = 0  # 0: 28 for mnist, else 32
    compile: str = ""
    batch_size: int = 0
    tiny: bool = False

    @property
    def config(self) -> Config:
        preset = PRESETS[self.preset]
        smaller = {"base_channels": 8, "emb_channels": 16, "batch_size": 4} if self.tiny else {}
        size = {"batch_size": self.batch_size} if self.batch_size else {}
        return preset.override(
            precision=self.precision,
            image_channels=self.image_channels or (3 if self.preset == "cifar10" else 1),
            image_size=(self.image_size or (28 if self.preset == "mnist" else 32),) * 2,
            num_classes=0 if self.preset == "original" else 10,
            checkpoint_activations=self.checkpoint_activations,
            compile="off",  # by ``compiled``, in the mode that is asked for
            save_minutes=1e6,
            **smaller | size,
        )

    def compiled(self, network: nn.Module) -> None:
        """Compile it, in place, where that is asked for."""
        if self.compile:
            network.compile(dynamic=False, mode=self.compile)

    def images(self, count: int) -> TensorSet:
        """Random ones."""
        random = torch.Generator().manual_seed(0)
        images = torch.randint(
            256, (count, *self.config.image_shape), dtype=torch.uint8, generator=random
        )
        return TensorSet("", "random", tuple("0123456789"), images, torch.arange(count) % 10).to(
            self.device
        )


def start(task: Task) -> TrainState:
    """The preset at step 0."""
    config = task.config.override(epochs=0, max_steps=STEPS)
    state = TrainState.create(config, 60_000, task.device, Ranks(), None)
    task.compiled(state.model)
    return state


def ours(task: Task) -> Loop:
    """train.train_epoch as it is."""
    return loop(task, task.images(IMAGES))


def checkpointed(task: Task) -> Loop:
    """Ours, with checkpointed activations."""
    return ours(replace(task, checkpoint_activations=True))


def loop(task: Task, images: ImageSet, state: TrainState | None = None) -> Loop:
    """train.train_epoch over the first of these images."""
    state, clock = state or start(task), Clock(task.device)
    size = task.config.train.batch_size
    clock.step_seconds = 0.0  # known, else it would print how long the schedule takes
    logger = silent_logger(state)

    def run(n: int) -> None:
        state.epochs, state.step = Epochs(n * size, size), 0
        train_epoch(state, First(images, n * size), logger, clock, StopSignal())

    return run


def silent_logger(state: TrainState) -> Logger:
    """That of train.py, which does all its work but writes nothing."""
    with TemporaryDirectory() as folder:
        logger = Logger(Run(Path(folder), Path(folder)), state, ())
        logger.writer.close()
    logger.writer.failed = True  # as after a full disk
    logger.bar = Progress("", None, "steps", silent=True)
    return logger


@dataclass(frozen=True)
class First:
    """The first images of a set."""

    images: ImageSet
    count: int

    def __len__(self) -> int:
        return self.count

    def batches(self, *arguments: object) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.batches(*arguments)


def bare(task: Task) -> Loop:
    """The network alone, forwards and backwards."""
    config, model = task.config, start(task).network
    size = config.train.batch_size
    x = torch.randn(size, *config.image_shape, device=task.device)
    t = torch.randint(1, 1000, (size,), device=task.device)
    y = torch.arange(size, device=task.device) % 10

    def run(n: int) -> None:
        for _ in range(n):
            with autocast(task.device, task.precision):
                loss = model(x, t, y).float().square().mean()
            loss.backward()
            model.zero_grad()

    return run


def plain(task: Task) -> Loop:
    """NCHW memory, fused attention, a DataLoader, Python loops, a loss read every step."""
    model, diffusion = build(task.config)
    diffusion = diffusion.to(task.device)
    model = model.to(task.device, memory_format=torch.contiguous_format)
    model.stem.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    task.compiled(model)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4, foreach=False)
    ema = deepcopy(model)
    batches = batches_of(task)

    def run(n: int) -> None:
        attend, models.blocks.attend = models.blocks.attend, F.scaled_dot_product_attention
        for _, (x_0, y) in zip(range(n), batches, strict=False):
            x_0, y = x_0.to(task.device), y.to(task.device)
            t = torch.randint(1, 1001, (len(x_0),), device=task.device)
            noise = torch.randn_like(x_0)
            with autocast(task.device, task.precision):
                losses = diffusion.losses(lambda x, t, y=y: model(x, t, y), x_0, t, noise)
            loss = losses.mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for old, new in zip(ema.parameters(), model.parameters(), strict=True):
                    old.copy_(0.999 * old + 0.001 * new)
            loss.item()
        models.blocks.attend = attend

    return run


def diffusers(task: Task) -> Loop:
    """As examples/unconditional_image_generation/train_unconditional.py with --use_ema."""
    model = unet_of_diffusers(task.config).to(task.device)
    task.compiled(model)
    scheduler = DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    rate = get_cosine_schedule_with_warmup(optimizer, 500, STEPS)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    batches, patch = batches_of(task), task.config.model.patch_size
    classes = model.config.num_class_embeds

    def run(n: int) -> None:
        for _, (x_0, y) in zip(range(n), batches, strict=False):
            x_0, y = F.pixel_unshuffle(x_0.to(task.device), patch), y.to(task.device)
            noise = torch.randn_like(x_0)
            t = torch.randint(0, 1000, (len(x_0),), device=task.device)
            noisy = scheduler.add_noise(x_0, noise, t)
            with autocast(task.device, task.precision):
                output = model(noisy, t, class_labels=y if classes else None).sample
            loss = F.mse_loss(output.float(), noise.float())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            ema.step(model.parameters())
            loss.detach().item()

    return run


def unet_of_diffusers(config: Config) -> UNet2DModel:
    """Widths, blocks, levels and attention of the network; 57.9 M parameters for the original."""
    m, levels = config.model, len(config.model.channel_multipliers)
    widths = [m.base_channels * multiple for multiple in m.channel_multipliers]
    attends = [level in m.attention_levels for level in range(levels)]
    down = ["AttnDownBlock2D" if own else "DownBlock2D" for own in attends]
    up = ["AttnUpBlock2D" if own else "UpBlock2D" for own in reversed(attends)]
    channels = config.image_shape[0] * m.patch_size**2
    return UNet2DModel(
        sample_size=config.image_shape[1] // m.patch_size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=m.blocks_per_level,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=widths[max(m.attention_levels)] // m.heads,
        norm_num_groups=8,
        dropout=m.dropout,
        num_class_embeds=m.num_classes + 1 if m.num_classes else None,
    )


def batches_of(task: Task) -> Iterator[list[Tensor]]:
    """Of a DataLoader without end, shuffled, in the main process, of decoded images: kind."""
    images = task.images(IMAGES)
    dataset = TensorDataset(normalize(images.images.cpu()), images.labels.cpu())
    loader = DataLoader(dataset, task.config.train.batch_size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def sampling_model(task: Task) -> DiffusionModel:
    """The EMA network and the process, as sample.py has them; not trained."""
    model, diffusion = build(task.config)
    ema = PowerEMA(model, 13.0, 0.9999).to(task.device, memory_format=torch.channels_last)
    classes = task.config.model.num_classes
    return DiffusionModel(ema, diffusion.to(task.device), task.config.image_shape, classes, None)


LOOPS: dict[str, Callable[[Task], Loop]] = {
    "ours": ours,
    "checkpointed": checkpointed,
    "bare": bare,
    "plain": plain,
    "diffusers": diffusers,
}
