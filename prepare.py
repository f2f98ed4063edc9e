"""From the command line to a training that can start: what train.py does before its first step."""

import os
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from config import PRESETS, Config, ConfigError, Parser, TrainConfig, add_options
from data import DATASETS, DataError, DataNotFound, ImageSet, load
from diffusion import (
    NAMES,
    GaussianDiffusion,
    make_diffusion,
    options_of,
)
from models import NORMS, UNet, check_size
from resume import changed_settings, check_replay, resumed_state
from training import Epochs, Training
from utils.devices import tune
from utils.distributed import Ranks
from utils.optim import DECAYS, OPTIMIZERS, Plan, PowerAverage
from utils.seeding import mix

CHOICES = {
    **NAMES,
    "dataset": DATASETS,
    "norm": NORMS,
    "optimizer": OPTIMIZERS,
    "decay": DECAYS,
    "precision": ("auto", "bf16", "fp32"),
    "compile": ("auto", "on", "off"),
}
COPIES = 4  # of the weights: themselves, gradient, average and momentum
COMPILE_STEPS, COMPILE_MINUTES = 10_000, 10.0  # from which on compiling pays, on CUDA
OPEN = {"num_classes": -1, "image_size": 0}  # as the data set has
PLAN_FIELDS = {"epochs", "max_steps", "max_minutes", "warmup_steps", "decay", "batch_size"}


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
    parser.add_argument("--prove-resume", action="store_true", help="kill, resume, compare; exit")
    parser.add_argument("--replay", type=int, metavar="STEP", help="run it again after --resume")
    names = {action.dest for action in parser._actions} - {"help"}
    sections = vars(PRESETS["mnist"]).values()
    add_options(parser, list(sections), CHOICES)
    typed = vars(parser.parse_args(argv))
    flags = Namespace(**{name: typed.pop(name) for name in names})
    if flags.preset and flags.resume:
        raise ConfigError("--preset and --resume exclude each other: a run keeps its configuration")

    state = resumed_state(flags)
    config = Config.from_dict(state["config"]) if state else PRESETS[flags.preset or "mnist"]
    flags.may_substitute = not state and config.data.dataset == "mnist" and "dataset" not in typed
    if state:  # what the data set decided is decided
        typed = {name: value for name, value in typed.items() if OPEN.get(name) != value}
    if typed.keys() & {"max_steps", "max_minutes"} and "epochs" not in typed:
        typed["epochs"] = 0
    if "alphas" in typed:
        typed = {"schedule": "manual", "timesteps": len(typed["alphas"]), **typed}
    stored, config = config, config.override(**typed)
    flags.replan = any(getattr(config.train, n) != getattr(stored.train, n) for n in PLAN_FIELDS)
    if "steps" not in typed:  # a short process has no room for the default
        config = config.override(steps=min(config.sample.steps, config.diffusion.most_steps))
    check(config, typed)
    check_replay(flags, state)
    flags.changes = changed_settings(flags.resume, stored, config) if state else []
    return config, flags, state


def check(config: Config, typed: dict[str, Any]) -> None:
    """ConfigError for values out of range, and for flags that would have no effect."""
    config.check(CHOICES)
    config.check_sampling(typed, options_of(config.sample.sampler))
    c = config.train
    if not (c.epochs or c.max_steps or c.max_minutes):
        raise ConfigError("--epochs 0 needs --max-steps or --max-minutes")
    if "precondition" in typed and config.diffusion.prediction != "x0":
        raise ConfigError("--precondition has no effect on --prediction eps and v")
    if "label_drop" in typed and config.model.num_classes == 0:
        raise ConfigError("--label-drop has no effect on a network without classes")
    known = config.override(num_classes=max(0, config.model.num_classes))
    model, _ = build(known, "meta")  # shapes without memory
    parameters = sum(p.numel() for p in model.parameters())
    if 4 * COPIES * parameters > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise ConfigError(f"{parameters:,} parameters do not fit into memory: a smaller network")


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


def build(config: Config, device: str = "cpu") -> tuple[UNet, GaussianDiffusion]:
    """The network with its first weights, and the process. ConfigError for what cannot be."""
    torch.manual_seed(mix(config.train.seed, "weights"))
    try:
        diffusion = make_diffusion(**asdict(config.diffusion))
        with torch.device(device):
            model = UNet(**asdict(config.model))
        check_size([config.data.image_size] * 2, model.size_multiple)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return model.to(memory_format=torch.channels_last), diffusion


def prepare(
    model: UNet,
    c: TrainConfig,
    epochs: Epochs,
    state: dict[str, Any] | None,
    flags: Namespace,
    ranks: Ranks,
) -> Training:
    """Optimizers, average and plan: new, or as the checkpoint has them."""
    device = next(model.parameters()).device
    tune(device)
    optimizers = OPTIMIZERS[c.optimizer](model, c.lr, c.weight_decay)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    limit = epochs.limit(c)
    plan = None if c.max_minutes else Plan.over(limit, c.warmup_steps, c.decay)
    ema = PowerAverage(model, c.ema_power, c.ema_decay)
    training = Training(model, model, ranks, epochs, ema, optimizers, plan, limit)
    training.streak = training.streak.to(device)
    training.by_quarter = training.by_quarter.to(device)
    if state:
        training.load_state_dict(state, flags.resume)
        if state["scheduler"] and not flags.replan:
            training.plan = Plan(**state["scheduler"])
    model.checkpoint_activations = c.checkpoint_activations
    ahead = training.plan and training.plan.total_steps - training.step
    if compiles(c, device, ahead):
        model.compile(dynamic=False)  # in place, so that the names in its state stay
    training.network = ranks.wrap(model)
    return training


def compiles(c: TrainConfig, device: torch.device, ahead: int | None) -> bool:
    """Whether to compile the network. ahead: the steps to come, None before they are known.

    On a CPU that takes one to three minutes and gains at most a tenth, so auto does it on CUDA
    alone, and there for COMPILE_STEPS or COMPILE_MINUTES that are still to come.
    """
    if c.compile != "auto":
        return c.compile == "on"
    long = c.max_minutes >= COMPILE_MINUTES if ahead is None else ahead >= COMPILE_STEPS
    return device.type == "cuda" and long
