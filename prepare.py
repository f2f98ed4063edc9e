"""From the command line to a training that can start: what train.py does before its first step."""

import math
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from config import PRESETS, Config, ConfigError, Parser, TrainConfig, add_options
from data import DATASETS, DataError, DataNotFound, ImageSet, load
from diffusion import (
    LOSSES,
    PREDICTIONS,
    SAMPLERS,
    SCHEDULES,
    VARIANCES,
    GaussianDiffusion,
    make_diffusion,
    options_of,
)
from models import NORMS, UNet, check_size
from utils import checkpoint
from utils.optim import DECAYS, OPTIMIZERS, Plan, average
from utils.seeding import mix

CHOICES = {
    "dataset": DATASETS,
    "norm": NORMS,
    "schedule": [*SCHEDULES, "manual"],
    "prediction": PREDICTIONS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "decay": DECAYS,
    "precision": ("auto", "bf16", "fp32"),
    "sampler": SAMPLERS,
    "variance": VARIANCES,
}
PLAN_FIELDS = {"epochs", "max_steps", "max_minutes", "warmup_steps", "decay", "batch_size"}


@dataclass
class Training:
    """All that changes while training, and so all that a checkpoint must hold."""

    model: UNet
    ema: AveragedModel
    optimizers: list[torch.optim.Optimizer]
    plan: Plan | None  # None with --max-minutes, until the speed is known
    step: int = 0
    best: dict[str, float] | None = None  # step and loss of the lowest held-out loss
    x0_error: Tensor | None = None  # (T + 1,), of the averaged network, at the last epoch's end

    @property
    def finished(self) -> bool:
        return self.plan is not None and self.step >= self.plan.total_steps

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": [optimizer.state_dict()["state"] for optimizer in self.optimizers],
            "scheduler": self.plan and asdict(self.plan),
            "best": self.best,
            "x0_error": self.x0_error,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The plan excepted: see prepare."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizer"], strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
        self.step, self.best = state["step"], state["best"]
        self.x0_error = state.get("x0_error")


def parse(
    argv: list[str] | None, description: str
) -> tuple[Config, Namespace, dict[str, Any] | None]:
    """The preset, or the resumed run's configuration, amended by the typed flags; checked."""
    parser = Parser(prog="train.py", description=description)
    parser.add_argument("--preset", choices=PRESETS, help="what the flags amend [mnist]")
    parser.add_argument("--resume", metavar="PATH", help="checkpoint or version folder, or auto")
    parser.add_argument("--run-root", type=Path, default="Logs_Checkpoints", help="[%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and exit")
    sections = vars(PRESETS["mnist"]).values()
    add_options(parser, list(sections), CHOICES)
    typed = vars(parser.parse_args(argv))
    flags = Namespace(
        **{name: typed.pop(name) for name in ("preset", "resume", "run_root", "device", "dry_run")}
    )
    if flags.preset and flags.resume:
        raise ConfigError("--preset and --resume exclude each other: a run keeps its configuration")

    state = resumed_state(flags)
    config = Config.from_dict(state["config"]) if state else PRESETS[flags.preset or "mnist"]
    flags.may_substitute = not state and config.data.dataset == "mnist" and "dataset" not in typed
    flags.replan = bool(typed.keys() & PLAN_FIELDS)
    if typed.keys() & {"max_steps", "max_minutes"} and "epochs" not in typed:
        typed["epochs"] = 0
    if "alphas" in typed:
        typed = {"schedule": "manual", "timesteps": len(typed["alphas"]), **typed}
    config = config.override(**typed)
    check(config, typed)
    return config, flags, state


def resumed_state(flags: Namespace) -> dict[str, Any] | None:
    """The checkpoint that --resume names; None to start fresh. Sets flags.resume to its path."""
    if flags.resume == "auto":
        flags.resume = checkpoint.newest_of_all(flags.run_root)
        if flags.resume is None:
            print(f"Nothing to resume in {flags.run_root}: starting fresh")
    elif flags.resume:
        flags.resume = checkpoint.find(flags.resume, flags.run_root)
    return checkpoint.load(flags.resume) if flags.resume else None


def check(config: Config, typed: dict[str, Any]) -> None:
    """ConfigError for values out of range, and for flags that would have no effect."""
    config.check()
    config.check_sampling(typed, options_of(config.sample.sampler))
    c = config.train
    if not (c.epochs or c.max_steps or c.max_minutes):
        raise ConfigError("--epochs 0 needs --max-steps or --max-minutes")
    if "label_drop" in typed and config.model.num_classes == 0:
        raise ConfigError("--label-drop has no effect on a network without classes")
    with torch.device("meta"):  # shapes without memory
        build(config.override(num_classes=max(0, config.model.num_classes)))


def open_data(
    config: Config, may_substitute: bool, state: dict[str, Any] | None
) -> tuple[Config, ImageSet, ImageSet]:
    """The training and test set, and the configuration with what follows from them filled in."""
    try:
        train_set, test_set = (load(**asdict(config.data), train=part) for part in (True, False))
    except DataNotFound as e:
        if not may_substitute:
            raise
        print(SUBSTITUTE.format(reason=e), file=sys.stderr, flush=True)
        return open_data(config.override(dataset="digits"), False, state)
    if state and state["data"]["fingerprint"] != train_set.fingerprint:
        raise DataError(f"the images ({train_set.source}) are not those this run was trained on")
    classes = config.model.num_classes
    if classes > train_set.num_classes:
        raise ConfigError(
            f"--num-classes must be at most the {train_set.num_classes} of {train_set.name}, "
            f"got {classes}"
        )
    classes = train_set.num_classes if classes < 0 else classes
    return (
        config.override(
            image_channels=train_set.image_shape[0],
            image_size=train_set.image_shape[1],
            num_classes=classes,
        ),
        train_set,
        test_set,
    )


SUBSTITUTE = """
!!! MNIST is not here and cannot be downloaded. {reason}
!!! Training goes on with `digits` INSTEAD: digits drawn by this program, which are NOT MNIST.
!!! The run's configuration and checkpoints say so. To insist on MNIST: --dataset mnist
"""


def build(config: Config) -> tuple[UNet, GaussianDiffusion]:
    """The network with its first weights, and the process. ConfigError for what cannot be."""
    torch.manual_seed(mix(config.train.seed, "weights"))
    try:
        diffusion = make_diffusion(**asdict(config.diffusion))
        model = UNet(**asdict(config.model))
        check_size([config.data.image_size] * 2, model.size_multiple)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return model.to(memory_format=torch.channels_last), diffusion


def prepare(
    model: UNet, c: TrainConfig, images: int, state: dict[str, Any] | None, replan: bool
) -> Training:
    """Optimizers, average and plan: new, or as the checkpoint has them."""
    optimizers = OPTIMIZERS[c.optimizer](model, c.lr, c.weight_decay)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    total = c.epochs * math.ceil(images / c.batch_size)
    total = min(total or c.max_steps, c.max_steps or total)
    plan = None if c.max_minutes else Plan.over(total, c.warmup_steps, c.decay)
    training = Training(model, average(model, c.ema_power, c.ema_decay), optimizers, plan)
    if state:
        training.load_state_dict(state)
        if state["scheduler"] and not replan:
            training.plan = Plan(**state["scheduler"])
    return training
