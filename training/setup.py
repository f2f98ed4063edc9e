"""From the command line to configuration and data: what train.py does before its first step."""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from config import PRESETS, Config, ConfigError, Parser, flag, shown
from data import DataNotFound, ImageSet, load_splits
from models.summary import layers, text
from training.resume import SCHEDULE, Resumed, changed_settings, find_checkpoint
from training.state import TrainState, build
from utils.devices import main_memory

COPIES = 4  # of the weights: themselves, gradient, EMA and momentum
FROM_DATA = {"num_classes": -1, "image_size": 0}  # values that the data set fills in


@dataclass(frozen=True)
class Args:
    """The checked command line: the configuration, and options of this invocation alone."""

    config: Config
    resumed: Resumed | None
    run_root: Path
    device: str
    dry_run: bool
    prove_resume: bool
    replay: int | None
    may_substitute: bool  # `digits` where MNIST is absent and --dataset was not typed
    argv: list[str]


def parse_args(argv: list[str] | None, description: str) -> Args:
    """The preset, or the resumed run's configuration, with the typed flags on top; checked."""
    parser = Parser(prog="train.py", description=description)
    parser.add_argument("--preset", choices=PRESETS, help="settings to start from [mnist]")
    parser.add_argument(
        "--resume",
        metavar="PATH",
        help="checkpoint, version folder, latest; auto: latest intact, or start",
    )
    parser.add_argument("--run-root", type=Path, default="Logs_Checkpoints", help="[%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--dry-run", action="store_true", help="print settings, layers, data; exit")
    parser.add_argument(
        "--prove-resume", action="store_true", help="train, kill, resume, compare; exit"
    )
    parser.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="with --resume: recompute this step, print it; exit",
    )
    own, typed = parser.parse(argv, list(vars(PRESETS["mnist"]).values()))
    if own["preset"] and own["resume"]:
        raise ConfigError("--preset and --resume exclude each other: a run keeps its configuration")

    resumed = find_checkpoint(own["resume"], own["run_root"])
    preset = PRESETS[own["preset"] or "mnist"]
    stored = Config.from_dict(resumed.ckpt["config"]) if resumed else preset
    config = amend(stored, typed, resumed is not None)
    check(config, typed)
    check_replay(own["replay"], resumed)
    if resumed:
        changes = changed_settings(resumed.path, stored, config)
        reschedule = any(getattr(config.train, n) != getattr(stored.train, n) for n in SCHEDULE)
        resumed = replace(resumed, changes=tuple(changes), reschedule=reschedule)
    names = ("run_root", "device", "dry_run", "prove_resume", "replay")
    return Args(
        config=config,
        resumed=resumed,
        **{name: own[name] for name in names},
        may_substitute=not resumed and stored.data.dataset == "mnist" and "dataset" not in typed,
        argv=sys.argv[1:] if argv is None else argv,
    )


def amend(config: Config, typed: dict[str, Any], resuming: bool) -> Config:
    """The configuration with the typed flags, and what follows from them."""
    if resuming:  # what the data set filled in stays
        typed = {name: value for name, value in typed.items() if FROM_DATA.get(name) != value}
    if typed.keys() & {"max_steps", "max_minutes"} and "epochs" not in typed:
        typed = {**typed, "epochs": 0}
    if "alphas" in typed:
        typed = {"schedule": "manual", "timesteps": len(typed["alphas"]), **typed}
    config = config.override(**typed)
    if "steps" in typed:
        return config
    return config.override(steps=min(config.sample.steps, config.diffusion.most_steps))


def check(config: Config, typed: dict[str, Any]) -> None:
    """ConfigError for values out of range, and for flags that would have no effect."""
    config.check()
    config.check_sampling(typed)
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
    if 4 * COPIES * parameters > main_memory():
        raise ConfigError(
            f"{parameters:,} parameters do not fit into memory: use a smaller network"
        )


def check_replay(step: int | None, resumed: Resumed | None) -> None:
    """ConfigError unless the step of --replay lies behind the checkpoint."""
    if step is None:
        return
    if resumed is None:
        raise ConfigError("--replay needs --resume PATH, the checkpoint to start from")
    if step <= resumed.ckpt["step"]:
        raise ConfigError(
            f"--replay must be a step after {resumed.ckpt['step']}, that of {resumed.path}, "
            f"got {step}"
        )


def load_data(args: Args) -> tuple[Config, ImageSet, ImageSet]:
    """The configuration with what follows from the data filled in; training and test set."""
    config = args.config
    fingerprint = args.resumed and args.resumed.ckpt.get("data", {}).get("fingerprint")
    try:
        train_set, test_set = load_splits(**asdict(config.data), fingerprint=fingerprint)
    except DataNotFound as e:
        if not args.may_substitute:
            raise
        print(SUBSTITUTE.format(reason=e), file=sys.stderr, flush=True)
        digits = config.override(dataset="digits")
        return load_data(replace(args, config=digits, may_substitute=False))
    classes = config.model.num_classes
    if classes not in (-1, 0, train_set.num_classes):
        raise ConfigError(
            f"--num-classes must be 0 (none) or -1 (all {train_set.num_classes} of "
            f"{train_set.name}), got {classes}"
        )
    config = config.override(
        image_channels=train_set.image_shape[0],
        image_size=train_set.image_shape[1],
        num_classes=train_set.num_classes if classes < 0 else classes,
    )
    return config, train_set, test_set


SUBSTITUTE = """
!!! MNIST is not here and cannot be downloaded. {reason}
!!! Training goes on with `digits` INSTEAD: digits drawn by this program, which are NOT MNIST.
!!! The run's configuration and checkpoints say so. To insist on MNIST: --dataset mnist
"""


def describe(state: TrainState, train_set: ImageSet) -> str:
    """What --dry-run prints: settings, layers, data, device."""
    settings = [
        f"{flag(f.name) if f.metadata['typed'] else f.name:26}{shown(value)}"
        for f, _, value in state.config.options()
    ]
    rows = layers(state.ema.module, train_set.image_shape)  # the EMA's copy is never compiled
    return "\n".join(
        [
            *settings,
            "",
            text(rows),
            "",
            f"{'data':26}{len(train_set):,} images: {train_set.source}",
            f"{'device':26}{state.device}",
        ]
    )
